"""Pickles that corrupt memory, take all of it, never end, or reach for code: each is read in a process of its own.

What each did on 46c01a2 stands beside it; `held` means that it was refused there already, and is kept as its brother.
"""

import argparse
import io
import json
import os
import pickle
import random
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.cli import DONE, run_command
from pretrain.tokenizers import dalle_pickle
from probes.retrieval import revisited
from tests.support.commands import program


def outcomes(job: str, paths: Sequence[Path]) -> dict[str, str]:
    """By the file's name: `read`, `refused: why`, or what else has happened."""
    run = subprocess.run(**program("read_hostile", job, *map(str, paths)), check=False, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
    return {Path(name).name: said for name, said in json.loads(run.stdout.splitlines()[-1]).items()}


def refused(job: str, folder: Path, attacks: dict[str, bytes]) -> None:
    """Every one of these files is refused in a sentence."""
    paths = [folder / name for name in attacks]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(attacks[path.name])
    found = outcomes(job, paths)
    wrong = {name: said for name, said in found.items() if not said.startswith("refused: ") or "\n" in said}
    assert not wrong, json.dumps(wrong, indent=1)


class Forged:
    """Is pickled as a call of `function`, and of what that gives with `state`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


RECONSTRUCT, SCALAR = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
ADDRESS = (0x4141414141414141).to_bytes(8, "little")


def dtype(text: str, *state: Any) -> Forged:
    return Forged(np.dtype, text, False, True, state=state or None)


def array(kind: Any, content: Any, shape: Any = (1,), version: Any = 1) -> Forged:
    return Forged(RECONSTRUCT, np.ndarray, (0,), b"b", state=(version, shape, kind, False, content))


WITH_OBJECT = dtype("V8", 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
"""Eight bytes that are the address of an object, and do not say so."""
AS_PART = dtype("V8", 3, "|", (np.dtype("O"), (1,)), None, None, 8, 1, 0)


def truth(**more: Any) -> dict[str, Any]:
    return {"gnd": [{"easy": [0], "hard": [1], "junk": [], "bbx": [0.0]}], "imlist": ["a", "b"], "qimlist": ["q"], **more}


def gnd(easy: Any, **more: Any) -> bytes:
    return pickle.dumps(truth(gnd=[{"easy": easy, "hard": [1], "junk": []}], **more), protocol=2)


def laughs(depth: int) -> list[Any]:
    """A list that comes to 2^depth values."""
    found: list[Any] = ["a"]
    for _ in range(depth):
        found = [found, found]
    return found


def cyclic() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def memo_bomb(number: int = 1 << 26) -> bytes:
    """None, remembered under a number: the unpickler in C keeps room for all numbers below."""
    return b"\x80\x02Nr" + number.to_bytes(4, "little")


def test_a_ground_truth_cannot_corrupt_memory_or_take_it(tmp_path: Path) -> None:
    """46c01a2: SIGSEGV by object, number and part, an error inside numpy by flags, 1 GB by memo and called, no end by laughs.

    unused, cycle, size, letters, plain_object, text and half were read; the others held.
    """
    refused(
        "truth",
        tmp_path,
        {
            "object.pkl": gnd(array(WITH_OBJECT, ADDRESS)),
            "number.pkl": gnd(Forged(SCALAR, WITH_OBJECT, ADDRESS)),
            "part.pkl": gnd(array(AS_PART, ADDRESS)),
            "memo.pkl": memo_bomb() + b".",
            "laughs.pkl": pickle.dumps(truth(imlist=laughs(26)), protocol=2),
            "unused.pkl": pickle.dumps(truth(more=laughs(40)), protocol=2),
            "cycle.pkl": pickle.dumps(truth(imlist=cyclic()), protocol=2),
            "deep.pkl": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
            "flags.pkl": gnd(array(dtype("i8", 3, "<", None, None, None, -1, -1, 1), ADDRESS)),
            "size.pkl": gnd(array(dtype("i8", 3, "<", None, None, None, 1 << 40, -1, 0), ADDRESS)),
            "texts.pkl": gnd(array(dtype("S8", 3, "|", None, None, None, 1 << 40, 1, 0), ADDRESS)),
            "letters.pkl": gnd([0], qimlist=array(dtype("U2", 3, "<", None, None, None, 8, 4, 8), b"\xff" * 8)),
            "plain_object.pkl": gnd(array(np.dtype("O"), [1])),
            "bytes_as_objects.pkl": gnd(array(np.dtype("O"), ADDRESS)),
            "shape.pkl": gnd(array(np.dtype("i8"), ADDRESS, (1 << 40,))),
            "negative.pkl": gnd(array(np.dtype("i8"), ADDRESS, (-1, -1))),
            "called.pkl": gnd(Forged(np.ndarray, (1 << 27,))),
            "big_bytes.pkl": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".",
            "extension.pkl": b"\x80\x02\x82\x01.",
            "instance.pkl": b"(i__main__\nX\n.",
            "code.pkl": gnd(Forged(os.system, "exit")),
            "text.pkl": gnd([], imlist="ab"),
            "half.pkl": gnd([0.5]),
            "huge.pkl": gnd([1 << 100_000]),
            "hex.pkl": pickle.dumps(truth(), protocol=2)[:-20],
        },
    )


def of_python_2() -> bytes:
    """As Python 2 and numpy 1 wrote it: protocol 2, texts of bytes, an array's numbers as such a text."""

    def text(content: bytes) -> bytes:
        return b"U" + bytes([len(content)]) + content

    def numbers(kind: bytes, values: np.ndarray) -> bytes:
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        described = (
            b"cnumpy\ndtype\n"
            + text(kind)
            + b"K\x00K\x01\x87R(K\x03"
            + text(b"<")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        return start + b"(K\x01K" + bytes([len(values)]) + b"\x85" + described + b"\x89" + text(values.tobytes()) + b"tb"

    def names(*words: bytes) -> bytes:
        return b"](" + b"".join(text(word) for word in words) + b"e"

    lists = {b"bbx": (b"f8", [1.5, 2.5, 200.0, 300.0]), b"easy": (b"i8", [0, 2]), b"hard": (b"i8", [1]), b"junk": (b"i8", [])}
    one = b"}(" + b"".join(text(key) + numbers(kind, np.array(v, kind.decode())) for key, (kind, v) in lists.items()) + b"u"
    content = text(b"gnd") + b"](" + one + b"e" + text(b"imlist") + names(b"x", b"caf\xe9", b"z") + text(b"qimlist") + names(b"q")
    return b"\x80\x02}(" + content + b"u."


def test_a_published_ground_truth_is_read_and_converted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 had no command for it; the pickle had to be read every time."""
    path = tmp_path / "gnd_roxford5k.pkl"
    path.write_bytes(of_python_2())
    assert pickle.loads(of_python_2(), encoding="latin1")["gnd"][0]["easy"].tolist() == [0, 2]  # the test's own file is right
    before = revisited.read_truth(path)
    assert before.names == ["x", "café", "z"] and before.queries == ["q"]
    assert {kind: numbers.tolist() for kind, numbers in before.relevant[0].items()} == {"easy": [0, 2], "hard": [1], "junk": []}
    assert run_command(revisited.main, [str(path)]) == DONE
    assert f"{tmp_path / 'gnd_roxford5k.json'}: 3 pictures, 1 queries" in capsys.readouterr().out
    path.unlink()
    after = revisited.find_truth(path)
    assert after[:2] == before[:2] and after.relevant[0]["easy"].dtype == np.int64
    assert all((after.relevant[0][kind] == before.relevant[0][kind]).all() for kind in ("easy", "hard", "junk"))


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def rezipped(content: bytes, changed: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with parts changed, by the last of their name."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, changed.get(entry.filename.rsplit("/", 1)[-1], old.read(entry)))
    return out.getvalue()


def network(**more: Any) -> dict[str, Any]:
    return {"cls_token": torch.zeros(1, 1, 8), "blocks.0.attn.qkv.weight": torch.zeros(24, 8), **more}


class Attributes(OrderedDict[str, Any]):
    """Is pickled as an OrderedDict with attributes of this name."""

    def __init__(self, content: Any, **attributes: Any) -> None:
        super().__init__(content)
        self.attributes = attributes

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), self.attributes, None, iter(self.items())


def tensor(function: Callable[..., Any], *arguments: Any) -> Forged:
    return Forged(function, *arguments)


def test_a_checkpoint_is_read_as_data_before_torch_reads_it(tmp_path: Path) -> None:
    """46c01a2 failed it: not all were refused in a sentence. code.pt and old_code.pt held."""
    rebuilt = torch._utils
    zeros = torch.zeros(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=zeros, dtype=torch.float32, _internal=True)
    wide = torch.zeros(1).expand(1 << 40)
    hooked = Forged(rebuilt._rebuild_tensor_v2, typed, 0, (4,), (1,), True, OrderedDict({0: torch.Size}))
    attacks: dict[str, Any] = {
        "object.pt": network(epoch=Forged(SCALAR, WITH_OBJECT, ADDRESS)),
        "flags.pt": network(epoch=Forged(SCALAR, dtype("f8", 3, "<", None, None, None, -1, -1, 1), ADDRESS)),
        "fields.pt": network(epoch=dtype("f8", 3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 63)),
        "array.pt": network(epoch=Forged(np.ndarray, (1 << 40,), np.dtype("f8"), bytes(8), 0, (0,))),
        "methods.pt": Attributes(network(), items=torch.Size, get=torch.Size),
        "hooks.pt": network(hooked=hooked),
        "expanded.pt": network(wide=wide),
        "bytes.pt": network(more=Forged(bytearray, 1 << 30)),
        "meta.pt": network(meta=torch.zeros(1 << 40, device="meta")),
        "sparse.pt": network(sparse=torch.zeros(4, 4).to_sparse()),
        "quantised.pt": network(
            quantised=Forged(
                rebuilt._rebuild_qtensor, typed, 0, (4,), (1,), (torch.per_tensor_affine, 1.0, 0), False, OrderedDict()
            )
        ),
        "subclass.pt": network(other=Forged(torch._tensor._rebuild_from_type_v2, torch.Size, torch.Tensor, ([1],), {})),
        "tensor.pt": network(large=Forged(torch.Tensor, 1 << 20)),
        "options.pt": network(args=Forged(argparse.Namespace, state={"__class__": OrderedDict})),
        "cycle.pt": network(more=cyclic()),
        "laughs.pt": network(more=laughs(30)),
    }
    files = {name: saved(content) for name, content in attacks.items()}
    files["deflated.pt"] = rezipped(saved(network(large=torch.zeros(1 << 27))), {}, zipfile.ZIP_DEFLATED)
    files["code.pt"] = saved(network(more=Forged(os.system, "exit")))  # held
    files["old_code.pt"] = saved(network(more=Forged(os.system, "exit")), _use_new_zipfile_serialization=False)  # held
    files["old_object.pt"] = saved(network(epoch=Forged(SCALAR, WITH_OBJECT, ADDRESS)), _use_new_zipfile_serialization=False)
    refused("weights", tmp_path, files)


def test_a_run_whose_values_never_end_is_refused(tmp_path: Path) -> None:
    """46c01a2 failed it: the checksum went through a list in itself."""
    for name, content in (("cycle", cyclic()), ("laughs", laughs(30))):
        refused("run", tmp_path / name, {"last.pt": saved({"format": "ibot-run", "checksum": "", "config": content})})


def old_dalle(content: bytes) -> bytes:
    """A file from before torch 1.6 around a pickle."""
    start = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return start + content + pickle.dumps([], protocol=2)


ENCODER = b"\x80\x02cdall_e.encoder\nEncoder\n)\x81"


def test_the_file_of_dalle_changes_nothing_and_ends(tmp_path: Path) -> None:
    """On 46c01a2 its unpickler in C set attributes of torch's own functions, and modules that hold themselves were walked."""
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    inside = ENCODER + b"q\x01}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x01ssb."
    zipped = rezipped(saved({}), {"data.pkl": inside})
    refused(
        "dalle",
        tmp_path,
        {
            "changed.pkl": old_dalle(b"\x80\x02" + function + b"N}X\x0c\x00\x00\x00__defaults__(K\x01ts\x86b."),
            "marked.pkl": old_dalle(b"\x80\x02" + function + b"}X\x01\x00\x00\x00aK\x01sb."),
            "cycle.pkl": old_dalle(inside),
            "zipped_cycle.pkl": zipped,
            "memo.pkl": old_dalle(memo_bomb() + b"."),
            "code.pkl": old_dalle(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00exit\x85R."),
            "numbers.pkl": old_dalle(
                b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\x7fNtQ."
            ),
        },
    )
    with pytest.raises(ValueError, match="holds code"):
        dalle_pickle.read(tmp_path / "code.pkl")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes or opcodes changed, put in, taken out, copied."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        place, kind = chance.randrange(len(found)), chance.random()
        if kind < 0.5:
            found[place] = chance.randrange(256)
        elif kind < 0.7:
            del found[place : place + chance.randint(1, 9)]
        elif kind < 0.85:
            found[place:place] = bytes(
                chance.choice(b"(.0lt2d}]ebasuRcN\x85\x86\x87\x81\x93\x94qhrj\x8aJKMU\x8c\x8eBC") for _ in range(3)
            )
        else:
            start = chance.randrange(len(found))
            found[place:place] = found[start : start + chance.randint(1, 60)]
    return bytes(found) or b"."


@pytest.mark.parametrize("job", ["truth", "weights", "dalle"])
def test_no_mutation_of_a_good_file_is_more_than_read_or_refused(tmp_path: Path, job: str) -> None:
    """Not known to fail on 46c01a2: a search for what the attacks above have not thought of."""
    chance = random.Random(job)
    arrays = {"easy": np.array([0, 1]), "hard": np.array([b"ab"]), "junk": np.array(["ab"]), "bbx": np.float64(2)}
    seeds = {
        "truth": [pickle.dumps(truth(gnd=[arrays]), protocol=protocol) for protocol in (0, 2, 4)],
        "weights": [
            zipfile.ZipFile(io.BytesIO(saved(network(args=argparse.Namespace(a=np.float64(1)))))).read("archive/data.pkl")
        ],
        "dalle": [ENCODER + b"}X\x0b\x00\x00\x00_parametersccollections\nOrderedDict\n)Rsb."],
    }[job]
    around = saved(network()) if job == "weights" else b""
    paths = []
    for number in range(200):
        content = mutated(chance.choice(seeds), chance)
        whole = {"truth": content, "weights": b"", "dalle": old_dalle(content)}[job] or rezipped(around, {"data.pkl": content})
        paths.append(tmp_path / f"{number}.pt")
        paths[-1].write_bytes(whole)
    found = outcomes(job, paths)
    wrong = {name: said for name, said in found.items() if said != "read" and not said.startswith("refused: ")}
    assert len(found) == len(paths) and not wrong, json.dumps(wrong, indent=1)


def test_a_dense_run_goes_on_without_running_what_its_folder_holds(tmp_path: Path) -> None:
    """46c01a2, by MMEngine's source: it read bomb.pth by the unsafe way, ran the config of a checkpoint, and fetched."""
    pytest.importorskip("mmengine")
    run = subprocess.run(**program("resume_dense", str(tmp_path)), check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    *_, config, bomb, address, name = run.stdout.splitlines()
    assert not (tmp_path / "ran").exists() and config == "False"
    assert "UserError" in bomb and "mkdir" in bomb and all("not fetched" in said for said in (address, name))


def test_a_dense_run_goes_on_from_its_own_folder(tmp_path: Path) -> None:
    """46c01a2, by MMEngine's source: it opened whatever `last_checkpoint` named, addresses too."""
    resume = pytest.importorskip("transfer.resume")
    run = tmp_path / "run"
    run.mkdir()
    assert resume.newest(run) is None
    (tmp_path / "iter_9.pth").write_bytes(b"another's")
    for place in (str(tmp_path / "iter_9.pth"), "../iter_9.pth", "https://127.0.0.1:9/iter_9.pth", "", ".."):
        (run / "last_checkpoint").write_text(place)
        with pytest.raises(ValueError, match="not in that folder"):
            resume.newest(run)
    (run / "iter_9.pth").write_bytes(b"its own")
    (run / "last_checkpoint").write_text("/moved/since/iter_9.pth\n")
    assert resume.newest(run) == run / "iter_9.pth"
