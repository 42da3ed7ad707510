"""Rewriting of timm's modules before tracing: those of the stems of the hybrid ViTs."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.norm_act import GroupNormAct
from timm.layers.padding import pad_same
from timm.layers.std_conv import StdConv2d, StdConv2dSame
from torch import Tensor, nn


def rewrite_backbone(model: nn.Module) -> None:
    """Fold the weight-standardised convolutions of a model, and make its group norms two-pass, in place."""
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, StdConv2d | StdConv2dSame):
            setattr(model.get_submodule(parent), child, _fold(module))
        elif isinstance(module, GroupNormAct):
            setattr(model.get_submodule(parent), child, _TwoPassGroupNorm(module))


class _FoldedConv(nn.Conv2d):
    """A weight-standardised convolution whose weights were standardised once, beforehand."""

    same_padding: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.same_padding:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _TwoPassGroupNorm(nn.Module):
    """Group normalisation in float32 around the mean, as ONNX Runtime and OpenVINO compute it.

    PyTorch's kernel for CPUs computes both moments in one pass. On a dark photograph this causes a relative error of
    1e-5 in the features, which is as much as an exported graph may be off.
    """

    def __init__(self, norm: GroupNormAct) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        groups = x.float().reshape(x.shape[0], norm.num_groups, -1)  # (N, groups, C/groups * H * W)
        groups = groups - groups.mean(dim=-1, keepdim=True)
        groups = groups * torch.rsqrt((groups * groups).mean(dim=-1, keepdim=True) + norm.eps)
        y = groups.reshape(x.shape) * norm.weight.float().view(-1, 1, 1) + norm.bias.float().view(-1, 1, 1)
        return cast(Tensor, norm.act(norm.drop(y.to(x.dtype))))


def _fold(conv: Any) -> _FoldedConv:
    folded = _FoldedConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )
    folded.same_padding = bool(getattr(conv, "same_pad", False))
    flat = conv.weight.detach().reshape(1, conv.out_channels, -1)
    standardised = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=conv.eps)
    weights = {"weight": standardised.reshape_as(conv.weight)}
    folded.load_state_dict(weights if conv.bias is None else weights | {"bias": conv.bias})
    return folded
