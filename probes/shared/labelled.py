"""Labels of a probe's images: which kinds it takes."""

from pretrain.images.source import Images


def without_labels(images: Images, who: str) -> str:
    """What is wrong with images that have no class each."""
    truth = images.truth()
    if truth is None:
        return f"{images.name} has no labels: {who} needs class sub-folders, or a label column"
    kind = "several labels an image" if truth.task == "multi-label" else "numbers to predict"
    return f"{images.name} has {kind}, and {who} needs one class an image: --task classes takes each entry for a class"
