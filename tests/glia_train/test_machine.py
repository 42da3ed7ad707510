"""Precisions on this machine, and the attention that training computes in bf16 on a CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glia_train.machine import Machine, _QuickGradients

CPU = torch.device("cpu")


def attention(dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """The result of one attention, and its gradients, in float32."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (torch.randn(2, 3, t, 16, generator=generator).to(dtype) for t in (20, 30, 30, 20))
    leaves = [one.requires_grad_() for one in (q, k, v)]
    out = F.scaled_dot_product_attention(*leaves, **options)
    out.backward(upstream)  # type: ignore[no-untyped-call]
    return [out.detach().float(), *(one.grad.float() for one in leaves if one.grad is not None)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_attention_of_products_is_attention(dtype: torch.dtype, tolerance: float) -> None:
    """bf16 has 8 bits: a result of about 1 that is rounded a few times is off by a few times 2**-8."""
    expected = attention(torch.float32)
    with _QuickGradients():
        found = attention(dtype)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_attention_with_a_mask_is_left_alone() -> None:
    mask = torch.ones(20, 30, dtype=torch.bool).tril()
    expected = attention(torch.float32, attn_mask=mask)
    with _QuickGradients():
        found = attention(torch.float32, attn_mask=mask)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("precision", "gradients", "products"), [
    ("bf16", True, not torch.cpu._is_amx_tile_supported()), ("bf16", False, False), ("fp32", True, False),
])  # fmt: skip
def test_products_are_taken_where_they_are_quicker(precision: Any, gradients: bool, products: bool) -> None:
    with (
        torch.set_grad_enabled(gradients),
        Machine(CPU, precision).autocast(),
        torch.profiler.profile() as profiler,
    ):
        attention(torch.bfloat16) if gradients else F.scaled_dot_product_attention(
            *torch.ones(3, 1, 1, 4, 8).bfloat16()
        )
    called = {event.key for event in profiler.key_averages()}
    assert ("aten::scaled_dot_product_attention" not in called) == products


@pytest.mark.parametrize(("kernel", "stride", "quick"), [(5, 1, True), (3, 2, True), (3, 1, False)])
def test_depthwise_convolutions_that_are_slow_stay_in_float32(kernel: int, stride: int, quick: bool) -> None:
    """Their gradients are those of float32, of an upstream gradient and a result that bf16 rounds."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(16, 16, kernel, stride, kernel // 2, groups=16)
    pixels = torch.randn(4, 16, 20, 20, generator=generator).bfloat16().float()
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        layer.zero_grad()
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", dtype), _QuickGradients():
                out = layer(pixels)
        else:
            out = layer(pixels)
        assert out.dtype == dtype
        out.float().sum().backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients) == quick
    torch.testing.assert_close(*gradients, rtol=2**-6, atol=1)


def test_memory_that_is_freed_is_kept_for_the_next_step() -> None:
    """Each page of a block that comes from the system is a fault. Pages may be small or huge."""
    assert 20 * faults(keep=True) < faults(keep=False)


def faults(*, keep: bool) -> int:
    """Page faults of 40 blocks of 64 MB, each freed before the next, after five of the same.

    The heap may grow by one more block.
    """
    code = (
        "import resource, torch\n"
        "from glia_train.machine import keep_freed_memory\n"
        f"if {keep}: keep_freed_memory()\n"
        "for _ in range(5): torch.ones(2**24)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(40): torch.ones(2**24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)
