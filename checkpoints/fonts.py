"""Names in pictures: drawn by a font of this machine that has their letters, or else written in Latin ones."""

import unicodedata
from functools import lru_cache

from checkpoints import escape
from checkpoints.figures import FT2Font, font_manager, mpl

BOXES = "Last Resort"
"""A font that comes with matplotlib and has a box for every character."""


def label(text: object, longest: int | None = None) -> str:
    """`escape.plot` of a text, of its first `longest` letters, with others in place of those that no font has."""
    return escape.plot(legible(text)[:longest])


def legible(text: object) -> str:
    """A text with other letters in place of those that no font has. Fonts that are found are drawn with from now on."""
    kept = (one if one.isspace() or not one.isprintable() or _drawn(one) else written(one) for one in str(text))
    return "".join(kept).rstrip(" ")


def latin(text: object) -> str:
    """A text in ASCII on one line, for what draws no other letters (OpenCV)."""
    return "".join(one if one.isascii() else written(one) for one in " ".join(str(text).split())).rstrip(" ")


def written(character: str) -> str:
    """A character by its Unicode name: kana, Hangul and other letters by their sound, ideographs by their number."""
    words = unicodedata.name(character, "").lower().split()
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if plain.strip() or not words:
        return plain.strip() or "?"
    if any(word.startswith("ideograph") for word in words):
        return f"U+{ord(character):04X} "
    return words[-1] if {"letter", "syllable", "vowel", "digit"} & set(words) else f"{' '.join(words)} "


@lru_cache(maxsize=4096)
def _drawn(character: str) -> bool:
    """Whether the usual font has a glyph, or another one that is drawn with from now on."""
    if ord(character) in _characters(font_manager.findfont(font_manager.FontProperties())):
        return True
    own = [font for font in font_manager.fontManager.ttflist if not font.name.startswith(BOXES)]
    for font in sorted(own, key=lambda one: (one.style != "normal", one.weight != 400, one.name)):
        if ord(character) in _characters(font.fname):
            families = list(mpl.rcParams["font.family"])
            if font.name not in families:
                mpl.rcParams["font.family"] = [*families, font.name]
            return True
    return False


@lru_cache(maxsize=1024)
def _characters(path: str) -> frozenset[int]:
    """Numbers of the characters that a font file has; none where it cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
