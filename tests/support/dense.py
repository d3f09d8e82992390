"""The configs of dense transfer."""

from mmengine.config import Config

from transfer import train

CONFIGS = sorted(path for path in train.CONFIGS.glob("*/*.py") if not train.is_base(path))


def config_of(name: str) -> Config:
    train.toolboxes()
    return Config.fromfile(next(path for path in CONFIGS if path.stem == name))
