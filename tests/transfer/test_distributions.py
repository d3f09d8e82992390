"""OpenMMLab's own packages beside those of the extra `transfer`."""

import pytest

from checkpoints.cli import UserError
from transfer import config, distributions


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Only these packages are installed."""

    def version(name: str) -> str:
        if name not in names:
            raise distributions.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(distributions, "version", version)


def test_both_kinds_are_refused_with_the_cure_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "mmdet", "mmengine", "onedl-mmdetection")
    with pytest.raises(
        UserError, match=r"mmengine, mmdet and onedl-mmdetection are both.*pip uninstall mmengine mmdet onedl-mmdetection, then"
    ):
        config.toolboxes()


@pytest.mark.parametrize("names", [("mmdet", "mmengine"), ("onedl-mmdetection", "onedl-mmengine"), ()])
def test_one_kind_is_taken_as_it_is(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, *names)
    distributions.refuse_both()
