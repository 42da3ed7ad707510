"""The size the project is about: ViT-B/16, random weights, exported and scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from glia_engines.build import build
from glia_export.export import Exported, export
from glia_export.parity import read_pictures, run_model
from glia_rt import Scorer
from glia_rt.backends.choose import CPU_BACKENDS
from glia_rt.contract import Contract
from glia_train.checkpoint import make_checkpoint
from glia_train.models.glianet import DEFAULT_BACKBONE, GLIANet

pytestmark = pytest.mark.slow

#: Bytes of an FP16 engine of TensorRT for RTX.
ENGINE_LIMIT = 230e6
#: Kernels of that engine besides the matrix products: two fewer than ViT-Ti's, whose last block differs.
OTHER_KERNELS = 148
PARAMETERS = 85_800_000 + 8_048_065  # the backbone's, and what is trained


@dataclass(frozen=True)
class VitB:
    exported: Exported
    scores: npt.NDArray[np.float32]
    span: float


@pytest.fixture(scope="module")
def vit_b(
    telling_model: Callable[[str], tuple[GLIANet, Contract]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VitB]:
    folder = tmp_path_factory.mktemp("vit_b")
    model, contract = telling_model(DEFAULT_BACKBONE)
    scores = run_model(model, read_pictures([], contract)).scores
    checkpoint = folder / "vit_b.pt"
    make_checkpoint(model, contract, "random").save(checkpoint)
    del model
    yield VitB(export(checkpoint), scores, float(np.ptp(scores)))
    shutil.rmtree(folder)  # 1.5 GB


def test_every_stage_of_the_export_is_timed(vit_b: VitB) -> None:
    seconds = vit_b.exported.seconds
    assert {"trace the rules", "trace fp32", "trace fp16"} <= set(seconds)
    assert all(spent >= 0 for spent in seconds.values())


def test_sizes_are_those_of_the_weights(vit_b: VitB) -> None:
    for name, size in vit_b.exported.sizes.items():
        each = 2 if "fp16" in name else 4
        assert size == pytest.approx(each * PARAMETERS, rel=0.01), name


def test_parity_holds(vit_b: VitB) -> None:
    assert len(vit_b.exported.parity) == 13
    assert all(row.passed for row in vit_b.exported.parity)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_scores_are_pytorchs(backend: str, vit_b: VitB, selftest_pictures: list[Path]) -> None:
    with Scorer.open(vit_b.exported.path, backend, precision="fp32") as scorer:
        found = scorer.score_batch(selftest_pictures)
    assert np.abs(found - vit_b.scores).max() / vit_b.span <= 1e-5


def test_what_auto_takes_is_close(vit_b: VitB, selftest_pictures: list[Path]) -> None:
    with Scorer.open(vit_b.exported.path) as scorer:
        found = scorer.score_batch(selftest_pictures)
        limit = {"fp32": 1e-5, "bf16": 1e-2}[scorer.backend.precision]
    assert np.abs(found - vit_b.scores).max() / vit_b.span <= limit


def test_the_fp16_engine_of_views(vit_b: VitB) -> None:
    record = build(vit_b.exported.path, "tensorrt-rtx").record
    assert record.engine_size < ENGINE_LIMIT
    assert record.layers["other_kernels"] == OTHER_KERNELS
    names = record.layers["others_by_name"]
    # The last block's single query is a matrix-vector product.
    assert (names["_gemm_mha_v2"], names["_gemv_mha_v1"]) == (46, 1)


def test_the_fp16_engine_of_pictures(vit_b: VitB) -> None:
    sizes = ((224, 224), (768, 1024), (3000, 4000))
    record = build(vit_b.exported.path, "tensorrt-rtx", input="image", sizes=sizes, batch=(1, 4, 8)).record
    assert record.engine_size < ENGINE_LIMIT
    assert record.layers["attention_kernels"] == 47
