r"""Escapes text of files, folders and stored options: one function for each kind of output.

Ordinary text passes unchanged, letters of any language included. `terminal` comes first in each: characters that are invisible or
that move what stands around them (controls, escape sequences, turned writing, bytes that are no text) become `\x1b`, `\u202e`.
"""

import csv
import html as standard_html
import io
import json
import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

SPOKEN = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories: controls, formatting, surrogates (bytes of a file name that are no text), separators of lines."""
JOINERS = "\u200c\u200d"
"""Formatting characters that emoji and several scripts need."""
MARKDOWN = re.compile(r"[\\`*|~$<]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|&(?=[#A-Za-z])|:(?=//)|(?<=www)\.")
"""Signs of Markdown where they would mean something: `a_b` and `[one]` are plain text."""
ENTITIES = {"<": "&lt;", "&": "&amp;"}
LATEX = str.maketrans(
    {mark: f"\\{mark}" for mark in "&%_#${}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
NUMBER = re.compile(r"(\+-|[-+])?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?%?( \([a-z ]+\))?")
"""A number, perhaps with a remark in words."""
FORMULA = re.compile(r"(^|;)(\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Start of a spreadsheet formula: at a cell's start, or after a character that some programs take for the end of a cell."""


def terminal(text: object, *, lines: bool = False) -> str:
    """For a screen, a log, a file's metadata: one line, or several if `lines`, where line feeds and tabs stay."""
    return "".join(one if one.isprintable() else _visible(one, lines) for one in str(text))


def _visible(one: str, lines: bool) -> str:
    if unicodedata.category(one) not in UNSEEN or one in JOINERS or (lines and one in "\n\t"):
        return one
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return SPOKEN.get(one) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def markdown(text: object) -> str:
    """For inside a line of Markdown, a cell of a table too."""
    return MARKDOWN.sub(lambda sign: ENTITIES.get(sign[0], f"\\{sign[0]}"), terminal(text))


def html(text: object) -> str:
    """For HTML and SVG, between tags or in a quoted attribute that is no address."""
    return standard_html.escape(terminal(text))


def latex(text: object) -> str:
    """For running text and cells of LaTeX. A row that begins with `[` or `*` would be an argument of the row before."""
    plain = terminal(text).translate(LATEX)
    return f"{{{plain[0]}}}{plain[1:]}" if plain.startswith(("[", "*")) else plain


def csv_cell(text: object) -> str:
    """For a cell of a table that a spreadsheet may open: a formula gets an apostrophe before it, a number stays one."""
    plain = terminal(text)
    return plain if NUMBER.fullmatch(plain) else FORMULA.sub(r"\1\2'", plain)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as a file."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([csv_cell(cell) for cell in row] for row in rows)
    return stream.getvalue()


def shell(words: Iterable[object]) -> str:
    """A command that can be typed. A word with unseen characters needs bash or zsh (`$'...'`)."""
    return " ".join(_shell_word(str(word)) for word in words)


def _shell_word(word: str) -> str:
    if terminal(word) == word:
        return shlex.quote(word)
    return "$'" + "".join(one if terminal(one) == one and one not in "\\'" else _bytes(one) for one in word) + "'"


def _bytes(one: str) -> str:
    if one in SPOKEN:
        return SPOKEN[one]
    how = "surrogateescape" if 0xDC80 <= ord(one) <= 0xDCFF else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in one.encode("utf-8", how))


def python(text: str) -> str:
    """A string of Python in double quotes, which may stand within a fence of Markdown."""
    return terminal(json.dumps(text, ensure_ascii=False)).replace("`", r"\x60")


def plot(text: object) -> str:
    """For matplotlib, which takes what stands between two dollars for a formula and hides what begins with a low line."""
    plain = terminal(text, lines=True).replace("\t", " ").replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def json_text(value: Any, indent: int = 1) -> str:
    """JSON that every reader takes: null for a number that is not finite, which JSON cannot say."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
