"""Names of classes in pictures, whatever letters they have (46c01a2 drew boxes and warned)."""

import io
import warnings

from checkpoints import fonts
from checkpoints.figures import Figure, FigureCanvasAgg


def test_names_in_any_letters_are_drawn_without_a_warning() -> None:
    names = ["猫", "ねこ", "강아지", "собака", "🐈", "देव", "\U000e0001", "한$x$"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure()
        FigureCanvasAgg(figure)
        figure.subplots().set_xticks(range(len(names)), [fonts.label(name) for name in names])
        figure.savefig(io.BytesIO(), format="png")


def test_what_no_font_has_is_written_by_its_sound_or_number() -> None:
    assert fonts.written("ね") + fonts.written("こ") == "neko" and fonts.written("강") == "gang"
    assert fonts.written("猫").strip() == "U+732B" and fonts.written("🐈").strip() == "cat"
    assert fonts.label("chien é $5 собака") == r"chien é \$5 собака"  # what the usual font has stays
