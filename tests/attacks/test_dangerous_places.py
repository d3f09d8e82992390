"""Every place in the code that could run something, read code from a file, decode a picture or reach the network, and why.

A new place fails here until somebody has thought about what a hostile file, name or server could do with it.
"""

import functools
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.support.commands import ROOT

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
    r"\bHfApi\b|\bhf_hub_download\b|\bsnapshot_download\b|\bload_dataset\b|\bsocket\.\w|\bHTTPServer\b|\bcreate_model\b|\bgopen\b|\bFileCache\b",
    "glob": r"\br?glob(?:\.glob)?\(|\bscandir\b|\blistdir\b|\bos\.walk\b",
    "a link": r"\bsymlink\w*\b|\breadlink\b|\bos\.link\b",
    "a deletion": r"\brmtree\b|\bunlink\(|\bos\.remove\b",
    "a whole file": r"\.read_text\(|\.read_bytes\(",
    "an archive": r"\bextractall\b|\bunpack_archive\b|\bZipFile\b|\btarfile\.open\b",
}

PLACES: dict[str, dict[str, str]] = {
    "probes/shared/dense_layout.py": {
        "glob": "whether the folder that was given has a file of annotations, opens nothing",
    },
    "checkpoints/config_file.py": {
        "a pickle": "yaml.load by a reader below BaseLoader: texts, lists and mappings; tags are refused"
    },
    "checkpoints/download.py": {
        "the network": "the one place of ours that fetches: addresses of zoo.json or typed ones, https alone",
        "a deletion": "its own .part and the note beside it",
    },
    "checkpoints/elsewhere.py": {"code from text": "libraries by names that stand in this code, or a tracker by --track"},
    "checkpoints/export.py": {"a deletion": "the folder that this export began and could not finish"},
    "transfer/exports/reload.py": {
        "the network": "timm.create_model with a file that was just written; it fetches nothing without pretrained=True",
        "code from text": "optional packages by names that stand in this code",
        "a pickle": "weights_only=True, of a file that was just written",
        "torch.load": "weights_only=True, of a file that was just written",
    },
    "checkpoints/hold.py": {
        "a deletion": "its own lock, once it is let go",
        "the network": "socket.gethostname, to say in a lock which machine has it; asks nobody",
    },
    "checkpoints/once.py": {"a deletion": "its own lock and part, never through a link"},
    "checkpoints/places.py": {
        "glob": "walks a folder to refuse the links in it, opens nothing",
        "a deletion": "an empty file of its own, by which a folder was tried",
    },
    "checkpoints/start.py": {"code from text": "runs one of our modules, named on the command line that starts it"},
    "checkpoints/store.py": {
        "torch.load": "weights_only=True, after torch_pickle has read the file as data",
        "a pickle": "weights_only=True; the rest is messages",
        "glob": "finds checkpoints in the runs folder that was named",
        "a link": "a second name for the run's own last.pt, where nothing lies under that name",
        "a deletion": "its own temporary file",
    },
    "checkpoints/neighbours.py": {"a whole file": "/proc/stat and the like"},
    "probes/shared/memory.py": {"a whole file": "/proc/meminfo and a control group's limit"},
    "checkpoints/zoo.py": {"a whole file": "the list of published checkpoints, which is this project's own"},
    "checkpoints/torch_pickle.py": {"an archive": "reads members of a torch file into memory; nothing is unpacked to disk"},
    "checkpoints/resolve.py": {"the network": "timm's published weights, only for a timm:NAME that was typed"},
    "pretrain/backbones/timm_model.py": {
        "the network": "timm.create_model by a name of timm's own list, with what its caller says"
    },
    "pretrain/backbones/hf_file.py": {
        "the network": "files of hf:OWNER/NAME by their usual names, only where it was typed; nothing in them is run",
    },
    "pretrain/backbones/own.py": {
        "code from text": "the file of python:FILE.py:FUNCTION, only where these words stand on this call's command line",
    },
    "probes/bench/alone.py": {"a process": "a bench again, for each row of its table, with words of its own"},
    "probes/bench/day_process.py": {
        "a process": "parts of the GPU day, modules of this project and pytest, through checkpoints.start"
    },
    "probes/bench/original.py": {
        "code from text": "the original's training script, only from the clone that --against original PATH names, to time it",
    },
    "probes/bench/step.py": {
        "code from text": "the plain method in tests/support/plain.py, a fixed path in this project",
    },
    "pretrain/images/decode.py": {
        "np.load": "allow_pickle=False, after the header was compared with the length",
        "a pickle": "allow_pickle=False",
    },
    "pretrain/images/formats.py": {"Image.open": "the one door to Pillow, with the list of formats and the limit on bytes"},
    "pretrain/images/hubs.py": {"the network": "hf: and torchvision:, only where they were typed"},
    "pretrain/images/open.py": {"glob": "a pattern that was typed; what it finds is opened as a path, never as a scheme"},
    "pretrain/run/report_process.py": {"a process": "probes.report and probes.live, through checkpoints.start"},
    "pretrain/run/replay.py": {"glob": "counts refused steps in the run's own folder"},
    "pretrain/engine/run_folder.py": {
        "a deletion": "temporary files by the exact names that a killed process of this project leaves, in the run's own folder",
        "a link": "reads where the run's own folder has been moved to, from this process's own descriptor",
    },
    "pretrain/sample/retrieval.py": {
        "Image.open": "a JPEG that was encoded one line before",
        "a pickle": "writes the sample's ground truth in the published layout; reading is plain_pickle's",
    },
    "checkpoints/architecture.py": {"the network": "timm.create_model by a name of timm's own list, without weights"},
    "pretrain/images/tar_shards.py": {
        "the network": "webdataset's gopen for commands and addresses that were typed; http and https go through download",
        "a deletion": "its own part of a download",
    },
    "pretrain/images/walk.py": {"glob": "lists a data set's folder; each name is a path"},
    "pretrain/engine/provenance.py": {"a whole file": "/proc/cpuinfo"},
    "pretrain/images/stacks.py": {"Image.open": "tifffile, of bytes with a TIFF's magic, after its header was judged"},
    "probes/bench/knn.py": {"np.load": "features that the bench has just drawn, without objects"},
    "probes/paper/published.py": {"a whole file": "the paper's tables, which are this project's own file"},
    "probes/report/page.py": {"a whole file": "the page's style sheet, which is this project's own file"},
    "probes/robustness/class_maps.py": {"a whole file": "ImageNet's classes, which are this project's own file"},
    "probes/features/kept.py": {
        "np.load": "arrays without objects, whose type and length are compared",
        "a deletion": "an unfinished folder of features, in the cache",
    },
    "probes/shared/label_files.py": {"glob": "lists a data set's folder; each name is a path"},
    "probes/linear/train.py": {"a deletion": "its own state, when the training has ended"},
    "probes/live.py": {"the network": "a server on this machine's own address; asks nobody"},
    "probes/shared/subprocesses.py": {"a process": "steps of reproduce and ablate, through checkpoints.start"},
    "probes/report/commands.py": {"code from text": "a module of probes/ whose name stands in this file, not what a record says"},
    "probes/reproduce/__main__.py": {
        "a process": "probes.tables and probes.report, through checkpoints.start",
        "a deletion": "its own mark of a step whose files are gone",
    },
    "probes/compare/plan.py": {"glob": "walks a data set's folder for a digest of its files, opens them as bytes"},
    "probes/embed.py": {"a deletion": "its own folder of patch tokens beside --out, when they are in the file"},
    "probes/shared/feature_files.py": {
        "np.load": "allow_pickle=False, of a typed file of features",
        "a pickle": "allow_pickle=False",
        "a deletion": "its own unfinished file",
    },
    "probes/tables.py": {"glob": "records below the folders that were named"},
    "probes/shared/record.py": {"glob": "files by a probe's name in results/ beside the checkpoint; each name is a path"},
    "transfer/exports/push.py": {"the network": "uploads an export, only to the repository that --push names"},
    "transfer/exports/card.py": {"glob": "records of k-NN in results/ beside the checkpoint; each name is a path"},
    "probes/bench/sources.py": {
        "a link": "of files that it has just drawn, in a temporary folder of its own",
        "a deletion": "of what it has drawn itself, there",
        "an archive": "is written, of pictures that it has drawn",
    },
    "tools/draw_messages.py": {"glob": "lists the code", "a whole file": "the code and the page that it draws"},
    "tools/draw_results.py": {"a whole file": "the pages and records of this repository, and a run that is typed"},
    "tools/draw_imports.py": {"glob": "lists the code", "a whole file": "the code and the page that it draws"},
    "transfer/hooks.py": {"Image.open": "a test image that was decoded before, through the same door (transfer/pictures.py)"},
    "transfer/resume.py": {"code from text": "mmengine's modules by names that stand in this code"},
    "transfer/config.py": {
        "code from text": "packages by names that stand in this code; a typed --config is a program (docs/security.md)",
        "glob": "this project's own configs",
    },
    "transfer/predict/export.py": {
        "a deletion": "its own unfinished folder",
        "a whole file": "the backbone's file, which is this project's own",
        "code from text": "mmdet.apis or mmseg.apis, names that stand in this code; they run the config that was just written",
    },
    "transfer/prepare.py": {"glob": "walks the run's folder to take hard links apart, opens nothing else"},
    "tools/broken_packages.py": {
        "a deletion": "the .dist-info of a package in .venv that was not written whole, after a set-up that was interrupted",
        "a whole file": "RECORD of an installed package",
    },
    "tools/count_downloads.py": {
        "a process": "uv, typed by who counts what the set-up fetches",
        "a whole file": "this project's own pyproject.toml, constraints.txt and uv's answer",
    },
}
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


@functools.cache
def places() -> dict[str, set[str]]:
    """What is in the code: file -> kinds of places."""
    found: dict[str, set[str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sh", ".sbatch"):
                sought = WORDS if path.suffix == ".py" else {"code from text": r"^\s*eval\b"}
                kinds = {kind for kind, pattern in sought.items() if re.search(pattern, code_of(path), re.MULTILINE)}
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
    assert all(len(reason) > 12 for kinds in PLACES.values() for reason in kinds.values())


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
        ("json.loads(path.read_text())", "a whole file"),
    ],
)
def test_the_search_sees_what_it_looks_for(tmp_path: Path, line: str, kind: str) -> None:
    file = tmp_path / "some.py"
    file.write_text(f'"""{line}"""\n# {line}\n')
    assert not re.search(WORDS[kind], code_of(file))
    file.write_text(f"{line}\n")
    assert re.search(WORDS[kind], code_of(file))
