"""Half precision: which activations are recorded, which parts stay in float32, and that the gate closes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glia_export import half
from glia_export.parity import Picture, compare, input_batches, read_pictures, run_model
from glia_rt.contract import Contract
from glia_rt.errors import ParityError
from glia_rt.verify import Parity, require
from glia_train.models.glianet import GLIANet, ModelConfig
from glia_train.models.table import untrained

SMALL = ModelConfig(backbone="test_vit", heads=2)
DEPTH = 6
#: A power of two over what half can hold: multiplied in one place and divided in another, float32 stays as it was.
HUGE = 2.0**17


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return read_pictures([], untrained(SMALL)[1])[:3]


@pytest.fixture
def model() -> GLIANet:
    return untrained(SMALL)[0]


@pytest.fixture(scope="module")
def contract(pictures: list[Picture]) -> Contract:
    model, contract = untrained(SMALL)
    scores = run_model(model, pictures).scores
    low, high = float(scores.min()), float(scores.max())
    return contract.with_range(low - (high - low) / 2, high + (high - low) / 2)


@torch.no_grad()
def enlarge_values(model: Any, block: int) -> None:
    """Attention's values beyond half, and the projection after them as much smaller."""
    attention = model.backbone.blocks[block].attn
    attention.qkv.weight[2 * attention.attn_dim :] *= HUGE
    attention.qkv.bias[2 * attention.attn_dim :] *= HUGE
    attention.proj.weight /= HUGE


@torch.no_grad()
def enlarge_projection(model: Any) -> None:
    """The hidden activations between both projection layers beyond half, where GELU is close to linear."""
    first, _, second = model.projection
    first.weight *= HUGE
    first.bias *= HUGE
    second.weight /= HUGE


@torch.no_grad()
def enlarge_positions(model: Any) -> None:
    """A sum of patches and positions beyond half, though neither patches nor blocks alone say so."""
    model.backbone.pos_embed += HUGE


@torch.no_grad()
def enlarge_interaction(model: Any) -> None:
    """A weight beyond half; no activation is."""
    glia = model.glia[1]
    glia.lambda_d *= 8 * HUGE
    glia.fusion.out.weight /= 8 * HUGE
    glia.fusion.out.bias /= 8 * HUGE


def parity(model: GLIANet, keep: list[str], pictures: list[Picture], contract: Contract) -> Parity:
    reference = run_model(model, pictures)
    assert np.isfinite(reference.scores).all()
    found = run_model(half.half_copy(model, keep), pictures)
    return compare("FP16", found, reference, pictures, contract, "fp16")


def kept(model: GLIANet, pictures: list[Picture]) -> list[str]:
    return half.float32_stages(half.largest_activations(model, input_batches(pictures)))


def test_largest_activation_is_the_largest_over_streams_and_batches(model: GLIANet, pictures: list[Picture]) -> None:
    seen: list[float] = []
    layer: Any = model.backbone.get_submodule("blocks.3.mlp.fc1")
    with torch.no_grad():
        layer.weight *= 1000  # so that nothing else in the block is as large
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(float(output.abs().max())))
    batches = list(input_batches(pictures, batch=1))
    assert len(batches) == 3
    found = half.largest_activations(model, batches)
    handle.remove()
    assert len(seen) == 2 * len(batches)  # both streams
    assert len(set(seen)) == len(seen)
    assert found["block 3"] == max(seen)


def test_every_part_of_the_model_is_recorded(model: GLIANet, pictures: list[Picture]) -> None:
    parts = ["embedding", "projection", *(f"block {i}" for i in range(DEPTH))]
    found = half.largest_activations(model, input_batches(pictures))
    assert sorted(found) == sorted(parts)
    assert all(0 < peak < 100 for peak in found.values())


def test_no_hook_is_left_behind(model: GLIANet) -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.zeros(1, 224, 224, 3, dtype=torch.uint8), torch.zeros(1, 3)

    with pytest.raises((RuntimeError, IndexError)):
        half.largest_activations(model, broken())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("where", ["first", "last"])
def test_nan_is_recorded_wherever_it_comes(model: GLIANet, pictures: list[Picture], where: str) -> None:
    batches = list(input_batches(pictures, batch=2))
    calls = 0

    def spoil(_module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        return output * float("nan") if calls == (1 if where == "first" else 2 * len(batches)) else None

    model.backbone.blocks[2].register_forward_hook(spoil)  # runs before the recording's own hooks
    found = half.largest_activations(model, batches)
    assert calls == 2 * len(batches)
    assert np.isnan(found["block 2"])
    assert "block 2" in half.float32_stages(found)


def test_float32_stages_are_those_over_the_limit() -> None:
    activations = {
        "small": 3.0,
        "at the limit": half.LARGEST_HALF_ACTIVATION,
        "over": np.nextafter(half.LARGEST_HALF_ACTIVATION, np.inf),
        "infinite": float("inf"),
        "not a number": float("nan"),
    }
    assert half.LARGEST_HALF_ACTIVATION == 16_000
    assert half.float32_stages(activations) == ["over", "infinite", "not a number"]


# With a norm before the blocks; with a stem of convolutions and GroupNorm.
@pytest.mark.parametrize("backbone", ["vit_xsmall_patch16_clip_224", "vit_tiny_r_s16_p8_224"])
@pytest.mark.parametrize("keep", [[], ["embedding"], ["block 0"]])
def test_only_what_must_is_float32(backbone: str, keep: list[str]) -> None:
    model, _ = untrained(ModelConfig(backbone=backbone, latent=32, heads=2))
    copied = half.half_copy(model, keep)
    always = ("head.", "backbone.head.", "calibration", "mean", "std")
    prefixes = {"block 0": ("backbone.blocks.0.", "glia.0.")}
    embedding = ("backbone.patch_embed.", "backbone.norm_pre.")
    for name, parameter in copied.named_parameters():
        stays = name.startswith(always)
        for part in keep:
            stays |= name.startswith(prefixes.get(part, embedding))
            stays |= part == "embedding" and name.startswith("backbone.") and name.count(".") == 1
        assert parameter.dtype == (torch.float32 if stays else torch.float16), name
    assert {buffer.dtype for buffer in copied.buffers()} == {torch.float32}
    views = torch.randint(0, 256, (2, 1, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model.features(*views), copied.features(*views)
    assert found.dtype == torch.float16
    assert float((found.float() - expected).norm() / expected.norm()) < 5e-3


def test_the_last_block_keeps_the_final_norm_with_it(model: GLIANet) -> None:
    last = half.half_copy(model, [f"block {DEPTH - 1}"])
    assert last.backbone.norm.weight.dtype == torch.float32
    assert last.projection[0].weight.dtype == torch.float16


def test_the_model_itself_stays_as_it_was(model: GLIANet) -> None:
    before = copy.deepcopy(model.state_dict())
    half.half_copy(model, ["block 1"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("block", [0, 2, DEPTH - 1])
def test_a_block_beyond_half_is_kept_and_passes(
    block: int, model: GLIANet, pictures: list[Picture], contract: Contract
) -> None:
    before = run_model(model, pictures).scores
    enlarge_values(model, block)
    np.testing.assert_allclose(run_model(model, pictures).scores, before, atol=1e-6)
    keep = kept(model, pictures)
    assert keep == [f"block {block}"]
    require([parity(model, keep, pictures, contract)])
    with pytest.raises(ParityError, match="off by inf of the score range"):
        require([parity(model, [], pictures, contract)])


def test_a_projection_beyond_half_is_kept_and_passes(
    model: GLIANet, pictures: list[Picture], contract: Contract
) -> None:
    enlarge_projection(model)
    keep = kept(model, pictures)
    assert keep == ["projection"]
    require([parity(model, keep, pictures, contract)])
    assert not parity(model, [], pictures, contract).passed


def test_an_embedding_beyond_half_is_kept(model: GLIANet, pictures: list[Picture], contract: Contract) -> None:
    enlarge_positions(model)
    keep = kept(model, pictures)
    assert "embedding" in keep  # and, their inputs being as large, the blocks
    require([parity(model, keep, pictures, contract)])
    without = [part for part in keep if part != "embedding"]
    assert not parity(model, without, pictures, contract).passed


def test_what_keeping_blocks_cannot_help_closes_the_gate(
    model: GLIANet, pictures: list[Picture], contract: Contract
) -> None:
    enlarge_interaction(model)
    keep = kept(model, pictures)
    assert keep == []
    with pytest.raises(ParityError, match=r"FP16: off by inf .* worst picture: \w+\.png"):
        require([parity(model, keep, pictures, contract)])
