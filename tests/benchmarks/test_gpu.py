"""benchmarks/gpu.py without a GPU: all it does but CUDA, rehearsed on the CPU with real models and engines."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flops import count_flops
from PIL import Image
from telling import telling_model
from torch import Tensor, nn

from glia_export.parity import read_pictures, run_model
from glia_rt.bench import Timings
from glia_rt.bundle import Bundle
from glia_rt.errors import BundleError, ParityError, UsageError
from glia_train.models.glianet import GLIANet

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")
WAYS = ("latency", "host", "resident")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module")
def gpu_report(gpu: Any) -> Any:
    return sys.modules["gpu_report"]


@pytest.fixture(scope="module")
def task(gpu: Any, tiny_bundle: Path, tiny_model: GLIANet) -> Any:
    made = gpu.make_task(Bundle.open(tiny_bundle), tiny_model, CPU, (1, 2), seconds=0.0, rounds=1)
    assert {(8192, 8192, 8192), (2 * 197, 192, 768)} < set(made.products)
    return dataclasses.replace(made, calls=3, products=[(64, 64, 64), (256, 64, 128)])


@pytest.fixture(scope="module")
def report(gpu: Any, task: Any, tiny_bundle: Path, tiny_model: GLIANet) -> dict[str, Any]:
    """PyTorch and ONNX Runtime, and one whose target is not here."""

    def refuse() -> dict[str, Any]:
        raise UsageError("no such\ntarget")

    eager = gpu.pytorch("pytorch", gpu.Scores(tiny_model), "fp32", CPU)
    contenders = [
        eager,
        gpu.runtime("onnxruntime", Bundle.open(tiny_bundle), "fp32", task.batches),
        gpu.Contender("refused", eager.open, refuse),
    ]
    facts = {
        "machine": gpu.machine(CPU),
        "versions": gpu.installed_versions(*gpu.PACKAGES),
        "command": "python benchmarks/gpu.py",
        "backbone": tiny_model.config.backbone,
        "flops_per_image": count_flops(tiny_bundle / "scorer.onnx"),
        "batches": list(task.batches),
    }
    after_each = [json.loads(json.dumps(found)) for found in gpu.compete(contenders, task, facts)]
    assert [len(found["contenders"]) for found in after_each] == [1, 1, 2, 2, 3]
    return dict(after_each[-1])


class Brightness(nn.Module):
    """The simplest scorer; for each picture of the batch it may add something that has no place in a score."""

    def __init__(self, added: float = 0.0) -> None:
        super().__init__()
        self.added = added

    def forward(self, global_view: Tensor, fragments: Tensor) -> Tensor:
        return global_view.float().mean((1, 2, 3)) + self.added * len(fragments)


@pytest.fixture(scope="module")
def brightness_task(task: Any) -> Any:
    reference = Brightness()(torch.from_numpy(task.views["global_view"]), torch.zeros(0)).numpy()
    return dataclasses.replace(task, reference=reference, span=256.0)


def measured(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for row in report["contenders"].values() for found in row["batches"].values()]


@pytest.mark.slow
def test_whatever_runs_is_measured(report: dict[str, Any]) -> None:
    ran = {name: list(row["batches"]) for name, row in report["contenders"].items()}
    assert ran == {"pytorch": ["1", "2"], "onnxruntime": ["1", "2"], "refused": []}


@pytest.mark.slow
def test_whatever_does_not_run_has_its_reason(report: dict[str, Any]) -> None:
    failed = {name: row["failed"] for name, row in report["contenders"].items()}
    assert failed == {"pytorch": {}, "onnxruntime": {}, "refused": {"any batch size": "no such target"}}


@pytest.mark.slow
def test_what_fails_at_one_batch_size_goes_on_at_the_next(gpu: Any, brightness_task: Any) -> None:
    def short_of_memory(batch: int) -> Any:
        return torch.empty(2**60) if batch == 2 else eager.open(batch)

    eager = gpu.pytorch("brightness", Brightness(), "fp32", CPU)
    task = dataclasses.replace(brightness_task, batches=(1, 2, 4))
    *_, row = gpu.measure(gpu.Contender("short of memory", short_of_memory), task)
    assert list(row["batches"]) == ["1", "4"]
    assert list(row["failed"]) == ["batch 2"]
    assert "allocate" in row["failed"]["batch 2"]


@pytest.mark.slow
def test_times_are_consistent(report: dict[str, Any]) -> None:
    for found in measured(report):
        for way in WAYS:
            times = found[way]
            assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
            assert times["images_per_s"] == times["rounds"][0] > 0
            assert times["calls"] == 3
    for batch in ("1", "2"):
        latency = report["contenders"]["pytorch"]["batches"][batch]["latency"]
        # One call of `batch` pictures after the other: the rate is the inverse of a call's time.
        assert latency["images_per_s"] * latency["p99_ms"] / 1000 >= int(batch) * 0.5
        assert latency["callers"] == 1


@pytest.mark.slow
def test_rates_are_shares_of_the_ceiling(report: dict[str, Any]) -> None:
    ceiling = report["ceiling"]
    rates = [rate for products in ceiling["before_each_contender"] for rate in products.values()]
    assert len(rates) == 2 * 3
    assert ceiling["flops_per_s"] == max(rates) > min(rates) > 0
    for found in measured(report):
        for way in ("host", "resident"):
            share = found[way]["images_per_s"] * report["flops_per_image"] / ceiling["flops_per_s"]
            assert found[way]["share_of_ceiling"] == pytest.approx(share)


@pytest.mark.slow
def test_scores_are_held_against_pytorch(report: dict[str, Any], gpu: Any) -> None:
    for found in measured(report):
        assert found["parity"]["pictures"] == 6
        assert found["parity"]["worst"] <= found["parity"]["limit"] == 1e-5
        assert found["off_itself_alone"] <= 1e-5
    gpu.require_parity(report)


@pytest.mark.slow
def test_scores_that_are_off_are_found(gpu: Any, brightness_task: Any) -> None:
    wrong = gpu.pytorch("wrong", Brightness(added=0.64), "fp32", CPU)
    *_, report = gpu.compete([wrong], brightness_task, {"flops_per_image": 1})
    one, two = (report["contenders"]["wrong"]["batches"][batch] for batch in ("1", "2"))
    assert one["parity"]["worst"] == pytest.approx(0.64 / 256, rel=1e-3)  # as a share of the range
    assert two["parity"]["worst"] == pytest.approx(1.28 / 256, rel=1e-3)
    assert one["off_itself_alone"] == 0
    assert two["off_itself_alone"] == pytest.approx(0.64 / 256, rel=1e-3)
    with pytest.raises(ParityError, match="wrong, batch 1; wrong, batch 2"):
        gpu.require_parity(report)


def test_the_median_round_counts(gpu: Any) -> None:
    loops = [Timings((0.1, 0.1), 0.2), Timings((1.0, 3.0), 4.0), Timings((0.2, 0.2), 0.4)]
    found = gpu.summary(loops, batch=8, callers=1)
    assert found["images_per_s"] == 8 * 5
    assert found["rounds"] == [80, 4, 40]
    assert found["calls"] == 6
    assert found["p50_ms"] == pytest.approx(200)


@pytest.mark.slow
def test_json_tables_and_plot_are_written(gpu_report: Any, report: dict[str, Any], tmp_path: Path) -> None:
    path = gpu_report.write(tmp_path, report)
    stem = "gpu-none-vit_tiny_patch16_224"
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{stem}.{kind}" for kind in ("json", "md", "png")]
    assert json.loads(path.read_text()) == report
    table = path.with_suffix(".md").read_text()
    assert report["versions"]["torch"] in table
    assert report["machine"]["CPU"] in table
    assert "refused did not run at any batch size: no such target" in table
    for name, batch in (("pytorch", "1"), ("pytorch", "2"), ("onnxruntime", "2")):
        [_, host, resident] = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
        found = report["contenders"][name]["batches"][batch]
        assert f" {found['host']['images_per_s']:.1f} ({found['host']['share_of_ceiling']:.0%}) |" in host
        assert f" {found['resident']['images_per_s']:.1f} (" in resident
    columns = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert columns == {8, 4}  # of both kinds of table, header and rows alike
    pixels = np.asarray(Image.open(path.with_suffix(".png")).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


@pytest.mark.slow
def test_the_plot_shows_what_was_measured(gpu_report: Any, report: dict[str, Any]) -> None:
    latency, throughput = gpu_report.plot(report).axes
    found = report["contenders"]["onnxruntime"]["batches"]
    lines = {line.get_label(): line for line in throughput.get_lines()}
    assert not any(label.startswith("refused") for label in lines)
    assert list(lines["onnxruntime, from the host"].get_xdata()) == [1, 2]
    assert list(lines["onnxruntime, from the host"].get_ydata()) == [
        at["host"]["images_per_s"] for at in found.values()
    ]
    ceiling = report["ceiling"]["flops_per_s"] / report["flops_per_image"]
    assert lines["ceiling: the matrix products alone"].get_ydata()[0] == pytest.approx(ceiling)
    assert list(latency.get_lines()[1].get_ydata()) == [at["latency"]["p50_ms"] for at in found.values()]


def test_a_given_bundle_is_copied_without_its_engines(
    gpu: Any, edited_bundle: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    given = edited_bundle(lambda _folder, _manifest: None)
    (given / "engines").mkdir()
    (given / "engines" / "old.engine").touch()
    folder = tmp_path / "work"
    folder.mkdir()
    bundle, checkpoint = gpu.make_bundle(folder, "", tiny_checkpoint, given)
    assert bundle.path.parent == folder
    assert bundle.identity == Bundle.open(given).identity
    assert not (bundle.path / "engines").exists()
    assert (given / "engines" / "old.engine").exists()
    assert checkpoint.config.backbone == "vit_tiny_patch16_224"


def test_a_bundle_of_another_checkpoint_is_refused(gpu: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"another model")
    with pytest.raises(BundleError, match=r"was not exported from .*other\.pt"):
        gpu.make_bundle(tmp_path, "", other, tiny_bundle)


@pytest.mark.slow
def test_a_telling_model_spans_its_range() -> None:
    model, contract = telling_model("vit_tiny_patch16_224")
    scores = run_model(model, read_pictures([], contract)).scores
    assert (scores.min(), scores.max()) == pytest.approx(contract.score.range) == (1, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [([], 6, "driver"), (["--bundle", "model.glia"], 2, "--bundle needs the --checkpoint it was exported from")],
    ids=["no GPU", "bundle without checkpoint"],
)
def test_it_ends_with_one_message_and_writes_nothing(
    arguments: list[str], status: int, message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(out), *arguments]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # where there is a GPU
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden, timeout=120)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("gpu.py: ")
    assert message in line
    assert not out.exists()
