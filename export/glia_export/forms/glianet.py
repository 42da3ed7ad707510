"""Rewriting of GLIANet's own modules before tracing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glia_train.backbones import split_heads
from glia_train.models.glianet import CrossAttention, GliaBlock


def pack_glia_blocks(model: nn.Module) -> None:
    """Give packed projections to the GLIA blocks of a GLIANet that have a refinement, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, GliaBlock) and module.fusion is not None and module.refinement is not None:
            parent, _, child = name.rpartition(".")
            packed = _PackedGliaBlock(module, module.fusion, module.refinement)
            setattr(model.get_submodule(parent), child, packed)


class _PackedGliaBlock(nn.Module):
    """A GLIA block with one projection for each stream instead of two.

    z is the query of the fusion and the context of the refinement. F_sd is the query of the refinement and the context
    of the fusion. So [q | k, v] of each stream is one product, and TensorRT splits it into heads with one kernel
    (docs/tensorrt.md has the comparison).
    """

    def __init__(self, block: GliaBlock, fusion: CrossAttention, refinement: CrossAttention) -> None:
        super().__init__()
        self.block = block
        self.fusion = fusion
        self.refinement = refinement
        self.local = _packed(fusion.query, refinement.key_value)  # r -> 3r
        self.latent_global = _packed(refinement.query, fusion.key_value)  # r -> 3r

    def forward(self, local: Tensor, latent_global: Tensor) -> tuple[Tensor, Tensor | None]:
        z = self.block.down(local)  # (N, T, r)
        q_fusion, k_refinement, v_refinement = split_heads(self.local(z), 3, self.fusion.heads)
        q_refinement, k_fusion, v_fusion = split_heads(self.latent_global(latent_global), 3, self.fusion.heads)
        fusion = self.fusion.attend(q_fusion, k_fusion, v_fusion)
        refinement = self.refinement.attend(q_refinement, k_refinement, v_refinement)
        return self.block.mix(local, latent_global, z, fusion, refinement)


def _packed(*layers: nn.Linear) -> nn.Linear:
    packed = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    weights = {key: torch.cat([layer.state_dict()[key] for layer in layers]) for key in ("weight", "bias")}
    packed.load_state_dict(weights)
    return packed
