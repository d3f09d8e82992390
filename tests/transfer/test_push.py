"""`--push` of an export, against a client that keeps what it is given. 46c01a2 had no such flag."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from checkpoints import export
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, run_command
from tests.support import networks


class Client:
    """Takes the place of HfApi."""

    made: list[dict[str, Any]] = []  # noqa: RUF012
    sent: dict[str, bytes] = {}  # noqa: RUF012
    offline = False

    def create_repo(self, **about: Any) -> None:
        if self.offline:
            raise ConnectionError("no route to host\nand more")
        self.made.append(about)

    def upload_folder(self, *, folder_path: str, **about: Any) -> str:
        self.made.append(about)
        self.sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return "address/commit/1"


def test_an_export_is_pushed_with_a_card_that_the_hub_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    checkpoint = networks.write(tmp_path / "a.safetensors")
    words = ["--ckpt", str(checkpoint), "--to", "timm", "--out"]
    assert run_command(export.main, [*words, str(tmp_path / "no"), "--push", "no name"]) == WRONG_COMMAND
    assert "give OWNER/NAME" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert run_command(export.main, [*words, str(tmp_path / "unasked")]) == DONE and not Client.made
    assert run_command(export.main, [*words, str(tmp_path / "out"), "--push", "me/mine"]) == DONE
    assert "pushed to me/mine: address/commit/1" in capsys.readouterr().out
    assert [about["repo_id"] for about in Client.made] == ["me/mine", "me/mine"] and Client.made[0]["private"]
    assert Client.sent == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    _, head, card = Client.sent["README.md"].decode().split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "timm" and about["pipeline_tag"] == "image-feature-extraction" and "ibot" in about["tags"]
    assert card.lstrip().startswith("# ")
    monkeypatch.setattr(Client, "offline", True)
    assert run_command(export.main, [*words, str(tmp_path / "left"), "--push", "me/mine"]) == FAILED
    said = capsys.readouterr().err
    assert "no route to host): log in with `hf auth login`" in said and said.count("\n") == 1 and (tmp_path / "left").is_dir()
