"""Dockerfile, .dockerignore and the devcontainer name what this project has. (A weekly job of the CI builds the image.)"""

import fnmatch
import json
import re
import shlex
from pathlib import Path

from tests.support.commands import ROOT

LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def of(word: str) -> list[list[str]]:
    """The words of each line of this instruction."""
    return [shlex.split(line)[1:] for line in LINES if line.startswith(f"{word} ")]


def known() -> set[str]:
    """What tools/setup.sh takes."""
    usage = re.findall(r"choose from ([a-z0-9 -]+)", (ROOT / "tools" / "setup.sh").read_text())[0]
    return {*usage.split(), "--cpu"}


def ignored(path: str) -> bool:
    return any(fnmatch.fnmatch(path, rule.removeprefix("**/")) or path.startswith(f"{rule}/") for rule in IGNORED)


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = [path for words in of("COPY") if not words[0].startswith("--from") for path in words[:-1]]
    assert {"pyproject.toml", "constraints.txt", "tools/setup.sh", "."} <= set(sources)
    assert all((ROOT / path).exists() and not ignored(path) for path in sources)
    assert all(
        not ignored(str(path.relative_to(ROOT))) for floor in ("checkpoints", "pretrain") for path in (ROOT / floor).rglob("*.py")
    )
    assert all(ignored(path) for path in (".git", ".venv/bin/python", "runs/sample/last.pt"))


def test_the_files_that_the_set_up_reads_are_copied_before_it() -> None:
    before = LINES[: next(number for number, line in enumerate(LINES) if line.startswith("RUN --mount"))]
    copied = {word for line in before if line.startswith("COPY ") for word in line.split()[1:-1]}
    scripts = "".join((ROOT / "tools" / name).read_text() for name in ("setup.sh", "install.sh"))
    read = set(re.findall(r"\$ROOT/((?:tools|checkpoints)/[\w.]+|constraints\.txt)", scripts)) - {"checkpoints/start.py"}
    metadata = {"pyproject.toml", "README.md", "LICENSE", "checkpoints/version.py"}
    assert read | metadata <= copied and len(read) >= 4


def test_extras_are_those_of_the_set_up() -> None:
    (extras,) = [words[0].partition("=")[2].split() for words in of("ARG") if words[0].startswith("EXTRAS=")]
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert {*extras, *container["build"]["args"]["EXTRAS"].split()} <= known()
    typed = " ".join([(ROOT / "docs" / "install.md").read_text(), (ROOT / ".github/workflows/weekly.yml").read_text()])
    asked = [word for words in re.findall(r'EXTRAS="?([^"`\n]+?)["`]', typed) for word in words.split() if word != "--tag"]
    assert asked and set(asked) <= known()


def test_the_container_is_of_two_stages_and_not_of_root() -> None:
    assert [words[0] for words in of("FROM")] == ["${BASE}", "${BASE}"] and of("FROM")[0][1:] == ["AS", "build"]
    (user,) = of("USER")
    made = re.search(r"useradd .*--uid (\d+) (\w+)", "\n".join(LINES))
    assert made is not None and user == [made[1]] and int(user[0]) > 0
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["remoteUser"] == made[2]
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"


def test_the_environment_is_where_the_set_up_makes_it() -> None:
    (place,) = [words[0] for words in of("WORKDIR") if words != ["/work"]]
    variables = dict(word.split("=", 1) for words in of("ENV") for word in words)
    assert variables["VIRTUAL_ENV"] == f"{place}/.venv" and variables["PYTHONPATH"] == place
    assert variables["PATH"].startswith(f"{place}/.venv/bin:") and ["--from=build", f"{place}/.venv", f"{place}/.venv"] in of(
        "COPY"
    )
    module = json.loads(LINES[-1].removeprefix("CMD "))[2]
    assert Path(ROOT, *module.split(".")).with_suffix(".py").exists()
