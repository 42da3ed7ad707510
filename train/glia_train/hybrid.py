"""Hybrid backbones: a small ViT whose tokens are made of a stem's feature maps."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from glia_train.stem import IMAGE_SIZE, Stem


@dataclass(frozen=True)
class Hybrid:
    """A small ViT on a stem.

    Attributes:
        stem: Name of the stem.
        width: Width D of the tokens.
        depth: Number of blocks.
        heads: Number of heads of the attentions.
    """

    stem: str
    width: int
    depth: int
    heads: int


#: Every hybrid, by the name that a config's `backbone` gives it.
HYBRIDS: Final[dict[str, Hybrid]] = {"vit_192x2_efficientnet_lite0": Hybrid("efficientnet_lite0", 192, 2, 3)}


class StemEmbed(nn.Module):
    """Makes 7 x 7 tokens of a stem's two smallest feature maps, 14 x 14 and 7 x 7.

    A token stands for 32 x 32 pixels.

    Attributes:
        stem: The stem.
        num_patches: Number of tokens.
    """

    def __init__(self, stem: Stem, *, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.stem = stem
        self.num_patches = (IMAGE_SIZE // 32) ** 2
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in stem.channels[-2:])
        self.proj = nn.Linear(sum(stem.channels[-2:]), embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return tokens (N, 49, D) of normalised pixels (N, 3, 224, 224)."""
        return self.tokens(self.stem(pixels))

    def tokens(self, maps: list[Tensor]) -> Tensor:
        """Return tokens (N, 49, D) of the stem's feature maps."""
        fine, coarse = maps[-2:]
        small = (one.flatten(2).transpose(1, 2) for one in (F.avg_pool2d(fine, 2), coarse))  # (N, 49, C)
        return cast(Tensor, self.proj(torch.cat([n(x) for n, x in zip(self.norms, small, strict=True)], dim=-1)))


def create_hybrid(name: str) -> VisionTransformer:
    """Return a backbone of `HYBRIDS` with random weights and no classification head."""
    hybrid = HYBRIDS[name]
    stem = Stem(hybrid.stem)
    vit = VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=32,
        num_classes=0,
        embed_dim=hybrid.width,
        depth=hybrid.depth,
        num_heads=hybrid.heads,
        embed_layer=cast(Any, functools.partial(StemEmbed, stem)),
    )
    facts: Any = {"architecture": name, "mean": stem.config.mean, "std": stem.config.std}
    vit.pretrained_cfg = facts
    return vit
