"""Which packages provide `mmdet` and its like here: OpenMMLab's own, the extra `transfer`, or, which is refused, both."""

from importlib.metadata import PackageNotFoundError, version

from checkpoints.cli import UserError

OURS = ("onedl-mmengine", "onedl-mmcv", "onedl-mmpretrain", "onedl-mmdetection", "onedl-mmsegmentation")
ORIGINALS = ("mmengine", "mmengine-lite", "mmcv", "mmcv-lite", "mmcv-full", "mmpretrain", "mmdet", "mmsegmentation")


def installed(names: tuple[str, ...]) -> list[str]:
    """Those of these packages that are."""
    found = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found


def refuse_both() -> None:
    """Raise UserError where both kinds are installed: each has overwritten files of the other."""
    originals, ours = installed(ORIGINALS), installed(OURS)
    if originals and ours:
        raise UserError(
            f"{', '.join(originals)} and {', '.join(ours)} are both installed, and each has overwritten files of the other: "
            f"pip uninstall {' '.join(originals + ours)}, then tools/setup.sh transfer"
        )
