"""GLIANet: a frozen ViT that sees the whole picture and a mosaic of fragments, joined by GLIA blocks.

"Unleashing Vision Transformer Potential in Image Quality Assessment via Global-Local Adaptive Interaction",
arXiv 2605.17748. Where the paper is silent, each decision is a field of `ModelConfig`.

Shapes below: N pictures, T tokens (197 for a ViT with patches of 16), D the backbone's width, r the latent width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glia_rt.errors import BundleError, UsageError
from glia_train.backbone import block_cls_row, create_backbone, embed, pretrained_cfg, split_heads

DEFAULT_BACKBONE = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
HEAD_WIDTH = 32
MIN_HEADS = 3


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a GLIANet's architecture.

    Attributes:
        backbone: Name of a timm VisionTransformer with a cls token and 224x224 input.
        latent: Latent width r; None for a quarter of the backbone's width.
        heads: Heads of the cross-attentions; None for heads of width 32, at least three.
        mlp: Hidden width of the two-layer projections: "narrow" is r everywhere; "loda" gives the upward
            projection hidden width D, as LoDa's code does.
        residual: F_d + s * up(.) where True; Eq. 3 to the letter, F_d = up(.), where False.
        interaction_init: First value of lambda_d and lambda_s.
        dropout: Before the head, while training.
        tune_backbone: The backbone is trained too.
    """

    backbone: str = DEFAULT_BACKBONE
    latent: int | None = None
    heads: int | None = None
    mlp: Literal["narrow", "loda"] = "narrow"
    residual: bool = True
    interaction_init: float = 0.1
    dropout: float = 0.1
    tune_backbone: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside what the model defines."""
        if self.mlp not in ("narrow", "loda"):
            raise UsageError(f'mlp must be "narrow" or "loda", not {self.mlp!r}')
        for name in ("latent", "heads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must lie in [0, 1), not {self.dropout}")

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelConfig:
        """Read a config back.

        Raises:
            BundleError: An unknown field, which a newer version must have written.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(record) - known):
            raise BundleError(f"model config: unknown field {', '.join(unknown)}; upgrade glia-rt to read it")
        return cls(**record)


def two_layer(d_in: int, d_hidden: int, d_out: int) -> nn.Sequential:
    """Linear, GELU, Linear: the form of every projection between D and r."""
    return nn.Sequential(nn.Linear(d_in, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_out))


class CrossAttention(nn.Module):
    """Multi-head cross-attention, MHCA in Eq. 3 and 4."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """Attend from `query` (N, Tq, r) to `context` (N, Tk, r); returns (N, Tq, r)."""
        [q] = split_heads(self.query(query), 1, self.heads)
        k, v = split_heads(self.key_value(context), 2, self.heads)
        return self.attend(q, k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same from projected heads, (N, heads, Tq, r/heads) and (N, heads, Tk, r/heads) twice."""
        x = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.out(x.transpose(1, 2).flatten(2)))


class GliaBlock(nn.Module):
    """Global-local interaction before one ViT block of the local stream."""

    def __init__(self, width: int, latent: int, heads: int, config: ModelConfig, *, refine: bool) -> None:
        super().__init__()
        self.down = two_layer(width, latent, latent)
        self.up = two_layer(latent, width if config.mlp == "loda" else latent, width)
        self.fusion = CrossAttention(latent, heads)
        self.lambda_d = nn.Parameter(torch.full((latent,), config.interaction_init))
        self.scale: nn.Parameter | None = None
        if config.residual:
            self.scale = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        # Nothing reads what the last block would refine, so that one has no refinement.
        self.refinement = CrossAttention(latent, heads) if refine else None
        self.lambda_s = nn.Parameter(torch.full((latent,), config.interaction_init)) if refine else None

    def forward(self, local: Tensor, latent_global: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the streams: `local` F_d (N, T, D) and `latent_global` F_sd (N, T, r), both returned anew."""
        z = self.down(local)  # (N, T, r)
        fusion = self.fusion(z, latent_global)
        refinement = None if self.refinement is None else self.refinement(latent_global, z)
        return self.mix(local, latent_global, z, fusion, refinement)

    def mix(
        self, local: Tensor, latent_global: Tensor, z: Tensor, fusion: Tensor, refinement: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What follows the two attentions, whose outputs `fusion` and `refinement` are (N, T, r)."""
        # Eq. 3, Local-Global Fusion: F_d' = up(z + lambda_d * MHCA(z, F_sd))
        fused = self.up(z + self.lambda_d * fusion)  # (N, T, D)
        mixed = fused if self.scale is None else local + self.scale * fused
        if refinement is not None and self.lambda_s is not None:
            # Eq. 4, Global-Local Refined: F_sd' = F_sd + lambda_s * MHCA(F_sd, z), z as it was before the fusion
            latent_global = latent_global + self.lambda_s * refinement  # (N, T, r)
        return mixed, latent_global


class GLIANet(nn.Module):
    """Two uint8 views of a picture -> one quality score.

    Attributes:
        calibration: float32 (2,), the linear map (scale, offset) from raw output to label units; (1, 0) until fitted.
    """

    mean: Tensor
    std: Tensor
    calibration: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(config.backbone)
        width = self.backbone.embed_dim
        latent = config.latent or width // 4
        heads = config.heads or max(MIN_HEADS, latent // HEAD_WIDTH)
        if heads < 1 or latent % heads:
            raise UsageError(f"latent width {latent} cannot be cut into {heads} heads: set latent or heads")
        depth = len(self.backbone.blocks)
        self.projection = two_layer(width, latent, latent)
        self.glia = nn.ModuleList(GliaBlock(width, latent, heads, config, refine=i < depth - 1) for i in range(depth))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, 1)
        pixels = pretrained_cfg(self.backbone)
        self.register_buffer("mean", torch.tensor(pixels["mean"]), persistent=False)
        self.register_buffer("std", torch.tensor(pixels["std"]), persistent=False)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self.backbone.requires_grad_(config.tune_backbone)

    def train(self, mode: bool = True) -> GLIANet:
        """Switch to training; a frozen backbone stays in eval mode."""
        super().train(mode)
        if not self.config.tune_backbone:
            self.backbone.eval()
        return self

    def normalise(self, view: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) -> float32 (N, 3, S, S), (v / 255 - mean) / std per channel."""
        x = view.to(torch.float32).permute(0, 3, 1, 2)
        gain = (1 / (255 * self.std)).view(1, 3, 1, 1)
        shift = (self.mean / self.std).view(1, 3, 1, 1)
        return x * gain - shift

    def global_tokens(self, global_view: Tensor) -> Tensor:
        """F_s: all tokens (N, T, D) of the whole picture after the backbone's final norm."""
        x = embed(self.backbone, self.normalise(global_view))
        for block in self.backbone.blocks:
            x = block(x.to(_dtype(block)))
        return cast(Tensor, self.backbone.norm(x.to(_dtype(self.backbone.norm))))

    def features(self, global_view: Tensor, fragments: Tensor) -> Tensor:
        """The local stream's cls token (N, D) after the last block and the final norm: what the head reads."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.tune_backbone):
            f_s = self.global_tokens(global_view)  # (N, T, D)
        f_sd = self.projection(f_s.to(_dtype(self.projection)))  # (N, T, r)
        f_d = embed(self.backbone, self.normalise(fragments))  # (N, T, D)
        last = len(self.glia) - 1
        for i, (glia, block) in enumerate(zip(self.glia, self.backbone.blocks, strict=True)):
            f_d, f_sd = glia(f_d.to(_dtype(glia)), f_sd.to(_dtype(glia)))
            f_d = f_d.to(_dtype(block))
            # Only the cls row leaves the last block, so only that row is computed there: exact, and cheaper.
            f_d = block(f_d) if i < last else block_cls_row(block, f_d)
        return cast(Tensor, self.backbone.norm(f_d.to(_dtype(self.backbone.norm)))[:, 0])  # (N, D)

    def forward(self, global_view: Tensor, fragments: Tensor) -> Tensor:
        """Score N pictures.

        Args:
            global_view: uint8 (N, 224, 224, 3), RGB, the whole picture.
            fragments: uint8 (N, 224, 224, 3), RGB, the mosaic of 49 fragments.

        Returns:
            float32 (N,), in label units once calibrated.
        """
        return self.score(self.features(global_view, fragments))

    def score(self, feature: Tensor) -> Tensor:
        """Regression head and calibration, in float32: cls features (N, D) -> float32 (N,)."""
        return self.raw_score(feature) * self.calibration[0] + self.calibration[1]

    def raw_score(self, feature: Tensor) -> Tensor:
        """The score before calibration, float32 (N,): what the loss sees and what the calibration is fitted to."""
        # The head's one output as a product and a sum: engines that run matrix products in bfloat16 keep these in
        # float32, where a bfloat16 score would have three digits.
        raw: Tensor = (self.dropout(feature.float()) * self.head.weight[0]).sum(-1) + self.head.bias
        return raw

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser sees."""
        return [p for p in self.parameters() if p.requires_grad]


def _dtype(module: nn.Module) -> torch.dtype:
    """The type a stage computes in; stages of a half model may stay in float32 one by one."""
    return next(module.parameters()).dtype
