"""What `glia-rt info` shows a person, and what --json has beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glia_rt.bundle import MANIFEST
from glia_rt.cli.main import main

Capture = pytest.CaptureFixture[str]
EditedBundle = Callable[[Callable[[Path, "dict[str, Any]"], None]], Path]


def shown(path: Path, capsys: Capture) -> dict[str, str]:
    """The lines by their first word; those without one belong to the line before."""
    assert main(["info", str(path)]) == 0
    lines: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, text = line.partition("  ")  # a name has single spaces; without one the line goes on
        name, text = name or list(lines)[-1], text.strip()
        lines[name] = f"{lines[name]}; {text}" if name in lines else text
    return lines


def test_a_bundle_in_a_dozen_lines(tiny_bundle: Path, capsys: Capture) -> None:
    lines = shown(tiny_bundle, capsys)
    assert len(lines) <= 12
    assert lines["model"] == "glianet on vit_tiny_patch16_224, started from random"
    assert lines["inputs"] == "global_view: resize, 224 x 224 x 3; fragments: fragments, 224 x 224 x 3"
    assert lines["score"] == "quality, 1 to 5, higher is better"
    assert lines["trained on"] == "nothing"
    assert "scorer.onnx 24.2 MB" in lines["files"]
    assert lines["engine"].startswith("none yet; glia-rt build ")


def test_the_worst_parity_is_the_one_nearest_to_its_limit(edited_bundle: EditedBundle, capsys: Capture) -> None:
    def edit(_folder: Path, manifest: dict[str, Any]) -> None:
        [row] = [row for row in manifest["parity"] if row["what"] == "scorer.onnx, batch 8"]
        row["worst"] = 0.9 * row["limit"]

    lines = shown(edited_bundle(edit), capsys)
    assert lines["worst parity"] == "9.0e-06 of 1e-05 allowed: scorer.onnx, batch 8"


def test_what_it_was_trained_on_and_its_card(edited_bundle: EditedBundle, capsys: Capture) -> None:
    def edit(_folder: Path, manifest: dict[str, Any]) -> None:
        facts = {"labels": "koniq.csv", "pictures": {"train": 8058}, "measured_on": "validation"}
        manifest["checkpoint"]["trained_on"] = facts
        manifest["checkpoint"]["metrics"] = {"srcc": 0.9401}
        manifest["card"] = {"text": "Photographs, rated by people.", "figures": {"SRCC on LIVEC": 0.835}}

    lines = shown(edited_bundle(edit), capsys)
    assert lines["trained on"] == "koniq.csv, 8058 pictures; validation SRCC 0.940"
    assert lines["card"] == "Photographs, rated by people.; SRCC on LIVEC: 0.835"


def test_a_checkpoint(tiny_checkpoint: Path, capsys: Capture) -> None:
    lines = shown(tiny_checkpoint, capsys)
    assert lines["model"].startswith("glianet on vit_tiny_patch16_224")


def test_json_has_the_rest(tiny_bundle: Path, tiny_checkpoint: Path, capsys: Capture) -> None:
    assert main(["info", str(tiny_bundle), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["parity"]) == 13
    assert record["contract"]["schema"] == 2
    assert main(["info", str(tiny_checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibrated"] is True


def test_engines_are_lines(plain_engine: Path, capsys: Capture) -> None:
    line = shown(plain_engine, capsys)["engine"]
    assert line.startswith("tensorrt-rtx 1.")
    assert "views, fp16, compute capability 8.0, 8.6" in line


def test_a_pipe_gets_the_same(
    tiny_bundle: Path, glia_rt_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = glia_rt_command("info", tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


@pytest.fixture
def edited(plain_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A bundle with some entries of its manifest changed."""

    def edit(**changes: Any) -> Path:
        bundle = Path(shutil.copytree(plain_bundle, tmp_path / "edited.glia"))
        manifest = json.loads((bundle / MANIFEST).read_text())
        (bundle / MANIFEST).write_text(json.dumps(manifest | changes))
        return bundle

    return edit


def test_a_strangers_card_does_not_command_the_terminal(edited: Callable[..., Path], capsys: Capture) -> None:
    assert main(["info", str(edited(card={"text": "\x1b[2J\x1b]0;title\x07 \ud800"}))]) == 0
    assert r"\x1b[2J\x1b]0;title\x07 \ud800" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"family": "glianet"}},
        {"parity": [5]},
        {"parity": [{"worst": 1, "limit": 0, "what": "x"}]},
        {"checkpoint": {"metrics": 5, "trained_on": {"labels": "x"}}},
        {"card": {"figures": [1]}},
    ],
)
def test_values_of_the_wrong_kind(edited: Callable[..., Path], changes: dict[str, Any], capsys: Capture) -> None:
    assert main(["info", str(edited(**changes))]) == 5
    assert "the file is damaged" in capsys.readouterr().err
