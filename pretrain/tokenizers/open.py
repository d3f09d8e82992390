"""Tokenizers by name: `dalle`, `dalle:FILE`, `kmeans:FILE`, `colour`."""

from collections.abc import Sequence
from pathlib import Path

from checkpoints import places, store, zoo
from checkpoints.cli import UserError
from pretrain.tokenizers import dalle, dalle_pickle, kmeans
from pretrain.tokenizers.base import Colour, Tokenizer

KNOWN = "dalle, dalle:FILE, kmeans:FILE, colour"


def open_tokenizer(spec: str, mean: Sequence[float], std: Sequence[float]) -> Tokenizer:
    """The tokenizer of this name, frozen, on the CPU, for crops that are normalised by `mean` and `std`.

    Raises UserError for a name that is unknown, or a file that is missing or not what it should be; WorkError where the
    published file cannot be fetched.
    """
    kind, path = _split(spec)
    if path is None:
        return Colour(mean, std)
    return dalle.open_dalle(path, mean, std) if kind == "dalle" else kmeans.open_kmeans(path, mean, std)


def from_file(spec: object, *, file: Path) -> str:
    """The --tokenizer stored in `file`, if it may be followed: `colour`, or a file below that file's folder.

    Raises UserError for anything else: what has to be fetched, or lies elsewhere, is given on the command line.
    """
    if spec == "colour":
        return "colour"
    kind, colon, name = str(spec).partition(":")
    known = bool(colon) and kind in ("dalle", "kmeans")
    path = places.recorded(name if known else spec, file=file, below=[file.parent], cure="give --tokenizer as the run had it")
    return f"{kind}:{path}" if known else str(path)


def digest(spec: str) -> str:
    """SHA-256 of the tokenizer's file, or its name if it has no file: changes whenever codes may change."""
    _, path = _split(spec)
    return spec if path is None else store.sha256(path)


def _split(spec: str) -> tuple[str, Path | None]:
    """Kind and file, which is there."""
    kind, _, file = spec.partition(":")
    if spec == "colour":
        return kind, None
    if spec == "dalle":
        return kind, zoo.fetch(dalle_pickle.ADDRESS, zoo.cache() / "dalle_encoder.pkl", _published)
    if kind not in ("dalle", "kmeans") or not file:
        what = f"{spec} needs a file" if kind in ("dalle", "kmeans") else f"there is no tokenizer {spec or '(nothing)'}"
        raise UserError(f"{what}: choose from {KNOWN}")
    store.look_at(Path(file))
    return kind, Path(file)


def _published(path: Path) -> str:
    """Description of the published encoder's file. Raises UserError if it is another file."""
    encoder = dalle.encoder_of(dalle_pickle.read(path), path)
    return f"DALL-E's encoder, {sum(weight.numel() for weight in encoder.parameters()):,} parameters"
