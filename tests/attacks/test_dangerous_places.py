"""Every place in the code that could run something, read code from a file, decode a picture or reach the network, and why.

A new place fails here until somebody has thought about what a hostile file, name or server could do with it.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("checkpoints", "pretrain", "probes", "transfer", "tools")
WORDS = {
    "a shell": r"\bshell\s*=|\bos\.(?:system|popen|exec\w*|spawn\w*)\b",
    "a process": r"\bsubprocess\.(?:run|Popen|call|check_\w+|getoutput)\b|\bos\.fork\b",
    "code from text": r"(?<![\w.])(?:eval|exec|compile|__import__)\s*\(|\brunpy\b|\bimport_module\b|\bspec_from_file_location\b",
    "a pickle": r"\bpickle\.\w|\bUnpickler\b|\bweights_only\b|\ballow_pickle\b|\bmarshal\b|\bshelve\b|"
    r"\bjoblib\.load\b|\byaml\.load\b",
    "torch.load": r"\btorch\.load\b|\bsafe_globals\b",
    "np.load": r"\bnp\.load\b",
    "Image.open": r"\bImage\.open\b|\bimread\b|\bTiffFile\b|\bdecode_jpeg\b|\bimfrombytes\b",
    "the network": r"\burlopen\b|\burllib\.request\.\w|\bbuild_opener\b|\brequests\.\w|\bload_state_dict_from_url\b|"
    r"\bdownload_url\w*\b|"
    r"\bhf_hub_download\b|\bsnapshot_download\b|\bload_dataset\b|\bsocket\.\w|\bHTTPServer\b|\bcreate_model\b|\bgopen\b|\bFileCache\b",
    "glob": r"\br?glob(?:\.glob)?\(|\bscandir\b|\blistdir\b|\bos\.walk\b",
    "a link": r"\bsymlink\w*\b|\breadlink\b|\bos\.link\b",
    "a deletion": r"\brmtree\b|\bunlink\(|\bos\.remove\b",
    "an archive": r"\bextractall\b|\bunpack_archive\b|\bZipFile\b|\btarfile\.open\b",
}

PLACES: dict[str, dict[str, str]] = {}
"""File -> kind of place -> why it is there and why it is safe."""


def code_of(path: Path) -> str:
    """A Python file without its comments and with empty strings; another file as it is."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = [list(line) for line in text.splitlines(keepends=True)]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            (first, start), (last, end) = token.start, token.end
            for number in range(first - 1, last):
                row = lines[number]
                stop = end if number == last - 1 else len(row)
                row[start if number == first - 1 else 0 : stop] = [
                    "\n" if letter == "\n" else " " for letter in row[start if number == first - 1 else 0 : stop]
                ]
    return "".join("".join(row) for row in lines)


def places() -> dict[str, set[str]]:
    """What is in the code: file -> kinds of places."""
    found: dict[str, set[str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sh", ".sbatch"):
                kinds = {kind for kind, pattern in WORDS.items() if re.search(pattern, code_of(path))}
                if kinds:
                    found[path.relative_to(ROOT).as_posix()] = kinds
    return found


def test_every_dangerous_place_is_known_and_has_a_reason() -> None:
    """46c01a2 had no such list: nobody had looked at what `glob` hands to `pipe:` or which formats `Image.open` decodes."""
    missing = {file: kinds - set(PLACES.get(file, {})) for file, kinds in places().items()}
    missing = {file: kinds for file, kinds in missing.items() if kinds}
    assert not missing, f"places without a reason in PLACES: {missing}"


def test_the_list_of_dangerous_places_names_nothing_that_is_gone() -> None:
    found = places()
    gone = {file: set(kinds) - found.get(file, set()) for file, kinds in PLACES.items()}
    assert not {file: kinds for file, kinds in gone.items() if kinds}
    assert all(len(reason) > 15 for kinds in PLACES.values() for reason in kinds.values())


def test_no_shell_is_ever_started_by_our_code() -> None:
    """The only commands that a shell sees are those that a user types after `pipe:`, and webdataset starts that one."""
    assert not {file for file, kinds in places().items() if "a shell" in kinds}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("subprocess.run(words, shell=True)", "a shell"),
        ("os.system(name)", "a shell"),
        ("exec(text)", "code from text"),
        ("pickle.loads(content)", "a pickle"),
        ("Image.open(path)", "Image.open"),
        ("urllib.request.urlopen(address)", "the network"),
        ("sorted(folder.glob(pattern))", "glob"),
        ("os.symlink(a, b)", "a link"),
    ],
)
def test_the_search_sees_what_it_looks_for(tmp_path: Path, line: str, kind: str) -> None:
    file = tmp_path / "some.py"
    file.write_text(f'"""{line}"""\n# {line}\n')
    assert not re.search(WORDS[kind], code_of(file))
    file.write_text(f"{line}\n")
    assert re.search(WORDS[kind], code_of(file))
