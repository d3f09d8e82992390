"""The configs of dense transfer."""

from mmengine.config import Config

from transfer import config

CONFIGS = sorted(path for path in config.CONFIGS.glob("*/*.py") if not config.is_base(path))


def config_of(name: str) -> Config:
    config.toolboxes()
    return Config.fromfile(next(path for path in CONFIGS if path.stem == name))
