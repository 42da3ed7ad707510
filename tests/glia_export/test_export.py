"""From a checkpoint to a bundle: what is in it, what stops it, and that nothing is left when it stops."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from glia_export.export import export
from glia_export.parity import BATCHES, SELFTEST, read_pictures, run_model
from glia_rt.bundle import GRAPHS, MANIFEST, Bundle
from glia_rt.cli.main import main
from glia_rt.contract import Contract
from glia_rt.errors import BundleError, ParityError
from glia_rt.files import sha256
from glia_rt.listing.folders import find_images
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.versions import install_command
from glia_train.checkpoint import Checkpoint, make_checkpoint
from glia_train.models.glianet import GLIANet, ModelConfig
from glia_train.models.table import untrained

#: timm's smallest ViT, where a whole export need not be ViT-Ti's.
SMALL = ModelConfig(backbone="test_vit", heads=2)
HUGE = 2.0**17  # over what half can hold
PHOTOGRAPHS = ["astronaut.png", "cat.png", "coffee.png", "galaxies.png", "retina.png", "rocket.png"]
PROCESS_LIMIT = 120


@dataclass(frozen=True)
class Ran:
    """One run of the command line."""

    status: int
    stdout: str
    stderr: str


def glia_rt(*args: str | Path) -> Ran:
    """The command line, in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = main([str(arg) for arg in args])
    return Ran(status, stdout.getvalue(), stderr.getvalue())


def calibrated(change: Callable[[Any], None] = lambda _: None) -> tuple[GLIANet, Contract]:
    """A small model, changed, whose range is twice as wide as its scores of the photographs."""
    model, contract = untrained(SMALL)
    with torch.no_grad():
        change(model)
    scores = run_model(model, read_pictures([], contract)).scores
    low, span = float(scores.min()), float(np.ptp(scores))
    return model, contract.with_range(low - span / 2, low + 3 * span / 2)


def enlarge_values(model: Any) -> None:
    """Attention's values in block 2 beyond half; the function stays the same."""
    attention = model.backbone.blocks[2].attn
    attention.qkv.weight[2 * attention.attn_dim :] *= HUGE
    attention.qkv.bias[2 * attention.attn_dim :] *= HUGE
    attention.proj.weight /= HUGE


def enlarge_interaction(model: Any) -> None:
    """A weight beyond half where no activation says so; the function stays the same."""
    model.glia[1].lambda_d *= 8 * HUGE
    model.glia[1].fusion.out.weight /= 8 * HUGE
    model.glia[1].fusion.out.bias /= 8 * HUGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def small_checkpoint(folder: Path) -> Path:
    make_checkpoint(*calibrated(), "random").save(folder / "small.pt")
    return folder / "small.pt"


@pytest.fixture(scope="module")
def overflowing_checkpoint(folder: Path) -> Path:
    make_checkpoint(*calibrated(enlarge_interaction), "random").save(folder / "overflowing.pt")
    return folder / "overflowing.pt"


@pytest.fixture(scope="module")
def kept(folder: Path) -> Path:
    """A bundle of a model with one block that half cannot hold."""
    make_checkpoint(*calibrated(enlarge_values), "random").save(folder / "kept.pt")
    return export(folder / "kept.pt").path


@dataclass(frozen=True)
class AdapterOnly:
    """An untrained, adapter-only checkpoint, exported by the command line with two pictures more."""

    folder: Path
    backbone: Path
    pictures: Path
    modified: dict[str, int]
    ran: Ran

    @property
    def bundle(self) -> Path:
        return self.folder / "adapters.glia"


@pytest.fixture(scope="module")
def adapter_only(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> AdapterOnly:
    folder, backbone = tmp_path_factory.mktemp("adapters"), tmp_path_factory.mktemp("backbone") / "vit.pth"
    model, contract = untrained(SMALL)
    torch.save(model.backbone.state_dict(), backbone)
    make_checkpoint(model, contract, backbone.name, adapter_only=True).save(folder / "adapters.pt")
    # An older bundle, and what a killed export left.
    killed = folder / ".adapters.glia.partial-01234567"
    for old in (folder / "adapters.glia", killed / "new"):
        old.mkdir(parents=True)
        (old / MANIFEST).write_text("{}")
        (old / "old").touch()
    (killed / "lock").touch()
    two = tmp_path_factory.mktemp("two")
    for name in ("00.jpg", "31.jpg"):
        shutil.copy(pictures / name, two)
    modified = {path.name: path.stat().st_mtime_ns for path in two.iterdir()}
    options = ("--images", two, "--backbone-weights", backbone, "--overwrite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")  # of the tables
        ran = glia_rt("export", folder / "adapters.pt", *options)
    return AdapterOnly(folder, backbone, two, modified, ran)


def test_parity_of_a_calibrated_model_is_in_score_units(tiny_bundle: Path) -> None:
    rows = Bundle.open(tiny_bundle).manifest["parity"]
    expected = [("PyTorch FP16 on the CPU", 6, 5e-3)]
    for (kind, precision), name in GRAPHS.items():
        label = name + (" (graph only)" if precision == "fp16" else "")
        limit = {"fp16": 5e-3, "fp32": {"views": 1e-5, "image": 1e-3}[kind]}[precision]
        counts = {1: 6, 3: 3, 8: 8} if kind == "image" else {1: 6, 3: 6, 8: 6}
        expected += [(f"{label}, batch {batch}", counts[batch], limit) for batch in BATCHES]
    assert BATCHES == (1, 3, 8)
    found = [(row["what"], row["pictures"], row["limit"]) for row in rows]
    assert sorted(found) == sorted(expected)
    for row in rows:
        assert row["measure"] == "score"
        assert row["passed"]
        assert 0 <= row["worst"] <= row["limit"]
        assert row["picture"].partition(" rolled by ")[0] in PHOTOGRAPHS
    # Half arithmetic is never exact; float32 may be, on some processors. A comparison with itself would pass all of
    # the above.
    assert rows[0]["what"] == expected[0][0]
    assert rows[0]["worst"] > 0


def test_image_graphs_are_checked_at_several_sizes() -> None:
    sizes = {read_image(path).shape for path in SELFTEST.glob("*.png")}
    assert len(sizes) == len(PHOTOGRAPHS)
    assert any(min(size[:2]) < 224 for size in sizes)


def test_the_manifest_is_complete(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    there = {p.relative_to(tiny_bundle).as_posix() for p in tiny_bundle.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == there - {MANIFEST}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256(tiny_bundle / name)
        assert entry["size"] == (tiny_bundle / name).stat().st_size
    for (kind, precision), name in GRAPHS.items():
        about = {key: manifest["files"][name][key] for key in ("input", "precision", "opset")}
        assert about == {"input": kind, "precision": precision, "opset": 20 if precision == "fp32" else 23}
    checkpoint = Checkpoint.load(tiny_checkpoint)
    assert manifest["model"] == {"family": "glianet", "config": dataclasses.asdict(checkpoint.config)}
    assert Contract.from_dict(manifest["contract"]) == checkpoint.contract
    assert manifest["checkpoint"] == {
        "sha256": sha256(tiny_checkpoint),
        "backbones": {"backbone": {"source": "random", "sha256": checkpoint.backbones["backbone"]["sha256"]}},
        "trained_on": {},
        "metrics": {},
    }
    assert set(manifest["tools"]) == {"glia-rt", "torch", "timm", "onnx", "onnxruntime", "python"}
    assert all(isinstance(version, str) and version for version in manifest["tools"].values())
    parts = {"embedding", "projection", *(f"block {i}" for i in range(12))}
    assert set(manifest["fp16"]["largest_activations"]) == parts
    assert manifest["fp16"]["kept_in_float32"] == []


def test_the_selftest_holds_pictures_views_and_scores(tiny_bundle: Path, tiny_model: GLIANet) -> None:
    bundle = Bundle.open(tiny_bundle)
    rows = bundle.selftest()
    assert [row["picture"] for row in rows] == PHOTOGRAPHS
    named = {name for row in rows for name in (row["picture"], *row["inputs"].values())}
    assert {p.name for p in (tiny_bundle / "selftest").iterdir()} == named | {"scores.json", "SOURCES.md"}
    record = json.loads((tiny_bundle / "selftest" / "scores.json").read_text())
    assert Contract.from_dict(record["contract"]) == bundle.contract
    for row in rows:
        pixels = read_image(tiny_bundle / "selftest" / row["picture"])
        stored = {name: read_image(tiny_bundle / "selftest" / file) for name, file in row["inputs"].items()}
        expected = make_inputs(pixels, bundle.contract)
        assert list(stored) == list(expected) == ["global_view", "fragments"]
        for name, view in stored.items():
            np.testing.assert_array_equal(view, expected[name])
        with torch.inference_mode():
            score = tiny_model.score(*(torch.from_numpy(view.copy())[None] for view in stored.values()))
        assert row["score"] == pytest.approx(score.item(), abs=4e-5)
    assert max(row["score"] for row in rows) == pytest.approx(5, abs=1e-4)


@pytest.mark.slow
def test_an_untrained_model_is_held_by_its_features(adapter_only: AdapterOnly) -> None:
    assert adapter_only.ran.status == 0, adapter_only.ran.stderr
    rows = Bundle.open(adapter_only.bundle).manifest["parity"]
    assert len(rows) == 13
    assert all(row["measure"] == "feature" and row["passed"] for row in rows)
    assert {row["limit"] for row in rows if "fp16" in row["what"].lower()} == {3e-3}
    assert {row["limit"] for row in rows if "fp16" not in row["what"].lower()} == {1e-5}


@pytest.mark.slow
def test_the_feature_is_read_through_a_copy_only(adapter_only: AdapterOnly) -> None:
    for name in GRAPHS.values():
        assert [output.name for output in onnx.load(adapter_only.bundle / name).graph.output] == ["score"]


@pytest.mark.slow
def test_more_pictures_are_measured_and_left_out(adapter_only: AdapterOnly) -> None:
    rows = {row["what"]: row["pictures"] for row in Bundle.open(adapter_only.bundle).manifest["parity"]}
    assert rows["PyTorch FP16 on the CPU"] == rows["scorer.onnx, batch 8"] == rows["image_scorer.onnx, batch 1"] == 8
    assert [row["picture"] for row in Bundle.open(adapter_only.bundle).selftest()] == PHOTOGRAPHS
    named = {name for picture in PHOTOGRAPHS for name in (picture, picture[:-4] + ".fragments.png")}
    named |= {picture[:-4] + ".global_view.png" for picture in PHOTOGRAPHS} | {"scores.json", "SOURCES.md"}
    assert {path.name for path in (adapter_only.bundle / "selftest").iterdir()} == named
    for name in ("00.jpg", "31.jpg"):
        assert (adapter_only.pictures / name).stat().st_mtime_ns == adapter_only.modified[name]


@pytest.mark.slow
def test_an_adapter_only_checkpoint_is_exported_whole(adapter_only: AdapterOnly) -> None:
    model, _ = untrained(SMALL)
    golden = {row["picture"]: row["score"] for row in Bundle.open(adapter_only.bundle).selftest()}
    found = run_model(model, read_pictures([], untrained(SMALL)[1])).scores
    np.testing.assert_allclose(list(golden.values()), found, atol=1e-5)


@pytest.mark.slow
def test_overwriting_replaces_the_old_bundle_and_clears_what_was_left(adapter_only: AdapterOnly) -> None:
    assert not (adapter_only.bundle / "old").exists()
    assert sorted(os.listdir(adapter_only.folder)) == ["adapters.glia", "adapters.pt"]


@pytest.mark.slow
def test_the_command_ends_with_sizes_times_parity_and_the_next_command(adapter_only: AdapterOnly) -> None:
    ran = adapter_only.ran
    for name in GRAPHS.values():
        size = (adapter_only.bundle / name).stat().st_size / 1e6
        assert any(line.split() == [name, f"{size:.1f}"] for line in ran.stdout.splitlines()), name
    for stage in ("trace the rules", "trace fp32", "trace fp16", "check scorer.onnx"):
        assert f"{stage} ..." in ran.stderr
        assert stage in ran.stdout
    assert "compared with PyTorch FP32" in ran.stdout
    assert sum(line.rstrip().endswith(" ok") for line in ran.stdout.splitlines()) == 13
    assert ran.stdout.splitlines()[-3:] == [
        f"wrote {adapter_only.bundle}; next:",
        f"  glia-rt verify {adapter_only.bundle}",
        f"  glia-rt score {adapter_only.bundle} PICTURE_OR_FOLDER",
    ]


@pytest.mark.slow
def test_the_printed_commands_work(adapter_only: AdapterOnly) -> None:
    verify, score = adapter_only.ran.stdout.splitlines()[-2:]
    assert glia_rt(*verify.split()[1:]).status == 0
    ran = glia_rt(*score.replace("PICTURE_OR_FOLDER", str(adapter_only.pictures)).split()[1:], "--json")
    assert ran.status == 0
    assert len(ran.stdout.splitlines()) == 2


@pytest.mark.slow
def test_a_block_beyond_half_stays_in_float32(kept: Path) -> None:
    manifest = Bundle.open(kept).manifest
    assert manifest["fp16"]["kept_in_float32"] == ["block 2"]
    assert manifest["fp16"]["largest_activations"]["block 2"] > 16_000
    assert all(row["passed"] for row in manifest["parity"])
    # FP32 Attention is what TensorRT does not build.
    name = GRAPHS["views", "fp16"]
    assert manifest["files"][name]["opset"] == 20
    graph = onnx.load(kept / name).graph
    assert not any(node.op_type == "Attention" for node in graph.node)
    types: dict[str, set[int]] = {}
    for value in graph.initializer:
        if part := re.search(r"(?:blocks|glia)\.(\d+)\.", value.name):
            types.setdefault(part[1], set()).add(value.data_type)
    assert types == {str(i): {TensorProto.FLOAT if i == 2 else TensorProto.FLOAT16} for i in range(6)}


def test_what_overflows_is_refused(overflowing_checkpoint: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(ParityError, match=r"PyTorch FP16 on the CPU: off by inf of the score range.*\w+\.png"):
        export(overflowing_checkpoint, tmp_path / "x.glia", report=stages.append)
    assert stages[-1] == "score with PyTorch FP16"  # nothing is traced in vain
    assert not os.listdir(tmp_path)


def test_the_bundle_that_was_there_survives_a_failed_export(overflowing_checkpoint: Path, tmp_path: Path) -> None:
    old = tmp_path / "x.glia"
    old.mkdir()
    (old / MANIFEST).write_text("old")
    ran = glia_rt("export", overflowing_checkpoint, "-o", old, "--overwrite")
    assert ran.status == 4
    assert os.listdir(tmp_path) == ["x.glia"]
    assert (old / MANIFEST).read_text() == "old"


def test_graphs_over_the_limit_are_refused(tmp_path: Path) -> None:
    """Scores that hardly differ: against their range the rounding of any runtime is too much."""
    model, contract = untrained(SMALL)
    middle = float(run_model(model, read_pictures([], contract)).scores.mean())
    narrow = contract.with_range(middle, middle + 1e-6)
    make_checkpoint(model, narrow, "random").save(tmp_path / "narrow.pt")
    ran = glia_rt("export", tmp_path / "narrow.pt")
    assert ran.status == 4
    assert any(name in ran.stderr.splitlines()[-1] for name in PHOTOGRAPHS)
    assert os.listdir(tmp_path) == ["narrow.pt"]


@pytest.mark.slow
def test_exit_statuses(small_checkpoint: Path, adapter_only: AdapterOnly, tmp_path: Path) -> None:
    there = tmp_path / "there.glia"
    there.mkdir()
    (tmp_path / "not a picture.jpg").write_text("text")
    other = tmp_path / "other.pth"
    torch.save(untrained(SMALL, seed=1)[0].backbone.state_dict(), other)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"PK\x03\x04 nothing")
    before = sorted(os.listdir(tmp_path))
    adapters = adapter_only.folder / "adapters.pt"
    new = tmp_path / "new.glia"
    cases: list[tuple[int, str, list[str | Path]]] = [
        (2, "there.glia exists; give --overwrite", [small_checkpoint, "-o", there]),
        (2, "ends in .glia", [small_checkpoint, "-o", tmp_path / "new.onnx"]),
        (2, "is not a folder", [small_checkpoint, "-o", tmp_path / "none" / "new.glia"]),
        (2, "--backbone-weights", [adapters, "-o", new]),
        (2, "no such file", [adapters, "-o", new, "--backbone-weights", tmp_path / "none.pth"]),
        (3, "not a picture.jpg", [small_checkpoint, "-o", new, "--images", tmp_path / "not a picture.jpg"]),
        (3, "none.jpg", [small_checkpoint, "-o", new, "--images", tmp_path / "none.jpg"]),
        (5, "no such checkpoint", [tmp_path / "none.pt", "-o", new]),
        (5, "damaged", [damaged, "-o", new]),
        (5, "another backbone", [adapters, "-o", new, "--backbone-weights", other]),
    ]
    for status, message, args in cases:
        ran = glia_rt("export", *args)
        last = ran.stderr.splitlines()[-1]
        assert (ran.status, ran.stdout) == (status, ""), args
        assert last.startswith("glia-rt: "), args
        assert message in last, args
        assert sorted(os.listdir(tmp_path)) == before, args


def test_without_onnxruntime_the_message_is_the_install_command(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ran = glia_rt("export", small_checkpoint)
    assert ran.status == 6
    assert f"{install_command('export,cpu')}" in ran.stderr
    assert not small_checkpoint.with_suffix(".glia").exists()


def stopped(checkpoint: Path, output: Path, stage: str, by: signal.Signals) -> tuple[int, str]:
    """Export in a process of its own, and send it a signal when a stage begins; its exit status and last line."""
    program = "import sys; from glia_rt.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "export", str(checkpoint), "-o", str(output)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        began = any(line.startswith(stage) for line in process.stderr)
        process.send_signal(by)
        _, rest = process.communicate(timeout=PROCESS_LIMIT)
    assert began
    return process.returncode, rest


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["trace the rules", pytest.param("check scorer.onnx", marks=pytest.mark.slow)])
def test_a_killed_export_leaves_nothing_that_looks_like_a_bundle(
    stage: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    status, _ = stopped(small_checkpoint, tmp_path / "x.glia", stage, signal.SIGKILL)
    assert status == -signal.SIGKILL
    [left] = os.listdir(tmp_path)  # nobody was left to remove it
    assert left.startswith(".x.glia.partial-")
    assert not list(tmp_path.glob("*.glia"))
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path / left)
    assert list(find_images([tmp_path])) == []
    assert (tmp_path / left / "new" / "scorer.onnx").exists() == (stage == "check scorer.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["trace the rules", pytest.param("check scorer.onnx", marks=pytest.mark.slow)])
def test_an_interrupted_export_leaves_nothing(stage: str, small_checkpoint: Path, tmp_path: Path) -> None:
    status, rest = stopped(small_checkpoint, tmp_path / "x.glia", stage, signal.SIGINT)
    assert status == 130
    assert rest == "glia-rt: interrupted\n"
    assert os.listdir(tmp_path) == []
