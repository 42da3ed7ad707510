"""GLIANet: a frozen ViT reads the whole picture and a mosaic of fragments, and GLIA blocks join the two streams.

"Unleashing Vision Transformer Potential in Image Quality Assessment via Global-Local Adaptive Interaction",
arXiv 2605.17748. Each decision that the paper leaves open is a field of `ModelConfig`.

Shapes below: N pictures, T tokens (197 for a ViT with patches of 16), D the backbone's width, r the latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glia_rt.contract import Fragments, ModelInput, Resize
from glia_rt.errors import UsageError
from glia_train.backbones import (
    add_positions,
    block_cls_row,
    create_backbone,
    embed,
    pretrained_cfg,
    pretrained_part,
    split_heads,
)
from glia_train.hybrid import StemEmbed
from glia_train.models.base import Model, Stage
from glia_train.ridge_head import RidgeHead
from glia_train.stem import IMAGE_SIZE, statistics

#: Names of the two inputs.
GLOBAL_VIEW = "global_view"
FRAGMENTS = "fragments"
#: Fragments along each side of the mosaic. The paper leaves the number open; this is FAST-VQA's.
GRID = 7

#: The two inputs of the paper.
VIEWS: Final[tuple[ModelInput, ...]] = (
    ModelInput(GLOBAL_VIEW, Resize(IMAGE_SIZE)),
    ModelInput(FRAGMENTS, Fragments(IMAGE_SIZE, GRID, IMAGE_SIZE // GRID)),
)

DEFAULT_BACKBONE = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
HEAD_WIDTH = 32
MIN_HEADS = 3


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a GLIANet's architecture.

    Attributes:
        backbone: Name of a timm VisionTransformer with a cls token and 224x224 input, or of a hybrid in
            `glia_train.hybrid`.
        latent: Latent width r. None means a quarter of the backbone's width.
        heads: Number of heads of the cross-attentions. None means heads of width 32, and at least three of them.
        mlp: Hidden width of the two-layer projections. "narrow" is r everywhere. "loda" gives the upward projection
            hidden width D, as LoDa's code does.
        residual: If True, F_d' = F_d + s * up(.). If False, F_d' = up(.), which is Eq. 3 as printed.
        interaction_init: First value of lambda_d and lambda_s.
        dropout: Dropout probability before the head, while training.
        tune_backbone: Whether the pretrained part of the backbone is trained too. Of a hybrid that is its stem; its ViT
            is trained in any case.
        main: Name of the input that the main stream reads, whose cls token the head reads. The paper's is "fragments".
        guidance: Name of the input that the guidance comes from, F_s. The paper's is "global_view".
        fusion: Whether there is the Local-Global Fusion, Eq. 3. Without it, nothing reads the guidance, and its input
            is left out.
        refinement: Whether there is the Global-Local Refined, Eq. 4.
        statistics: Whether a second head reads the statistics of the feature maps of a hybrid's stem, of all inputs,
            and is added to the first.
    """

    backbone: str = DEFAULT_BACKBONE
    latent: int | None = None
    heads: int | None = None
    mlp: Literal["narrow", "loda"] = "narrow"
    residual: bool = True
    interaction_init: float = 0.1
    dropout: float = 0.1
    tune_backbone: bool = False
    main: Literal["global_view", "fragments"] = "fragments"
    guidance: Literal["global_view", "fragments"] = "global_view"
    fusion: bool = True
    refinement: bool = True
    statistics: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside what the model defines."""
        if self.mlp not in ("narrow", "loda"):
            raise UsageError(f'mlp must be "narrow" or "loda", not {self.mlp!r}')
        for name in ("main", "guidance"):
            if (value := getattr(self, name)) not in (GLOBAL_VIEW, FRAGMENTS):
                raise UsageError(f'{name} must be "{GLOBAL_VIEW}" or "{FRAGMENTS}", not {value!r}')
        for name in ("latent", "heads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must lie in [0, 1), not {self.dropout}")


def two_layer(d_in: int, d_hidden: int, d_out: int) -> nn.Sequential:
    """Return Linear, GELU, Linear, the form of every projection between D and r."""
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
        """Attend from `q` (N, heads, Tq, r/heads) to `k` and `v` (N, heads, Tk, r/heads); returns (N, Tq, r)."""
        x = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.out(x.transpose(1, 2).flatten(2)))


class GliaBlock(nn.Module):
    """Global-local interaction before one ViT block of the local stream."""

    def __init__(self, width: int, latent: int, heads: int, config: ModelConfig, *, refine: bool) -> None:
        super().__init__()
        self.down = two_layer(width, latent, latent)
        self.up = two_layer(latent, width if config.mlp == "loda" else latent, width)
        self.fusion = CrossAttention(latent, heads) if config.fusion else None
        self.lambda_d = nn.Parameter(torch.full((latent,), config.interaction_init)) if config.fusion else None
        self.scale: nn.Parameter | None = None
        if config.residual:
            self.scale = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        # The last block has no refinement, because nothing would read its result.
        self.refinement = CrossAttention(latent, heads) if refine else None
        self.lambda_s = nn.Parameter(torch.full((latent,), config.interaction_init)) if refine else None

    def forward(self, local: Tensor, latent_global: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return both streams after their interaction: `local` F_d (N, T, D) and `latent_global` F_sd (N, T, r).

        Without a fusion there is no guidance, and `latent_global` is None.
        """
        z = self.down(local)  # (N, T, r)
        if self.fusion is None or latent_global is None:
            return self.mix(local, latent_global, z, None, None)
        fusion = self.fusion(z, latent_global)
        refinement = None if self.refinement is None else self.refinement(latent_global, z)
        return self.mix(local, latent_global, z, fusion, refinement)

    def mix(
        self,
        local: Tensor,
        latent_global: Tensor | None,
        z: Tensor,
        fusion: Tensor | None,
        refinement: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return both streams, mixed from the outputs of the two attentions, `fusion` and `refinement` (N, T, r)."""
        # Eq. 3, Local-Global Fusion: F_d' = up(z + lambda_d * MHCA(z, F_sd))
        fused = self.up(z if fusion is None or self.lambda_d is None else z + self.lambda_d * fusion)  # (N, T, D)
        mixed = fused if self.scale is None else local + self.scale * fused
        if latent_global is not None and refinement is not None and self.lambda_s is not None:
            # Eq. 4, Global-Local Refined: F_sd' = F_sd + lambda_s * MHCA(F_sd, z), where z is from before the fusion
            latent_global = latent_global + self.lambda_s * refinement  # (N, T, r)
        return mixed, latent_global


class GLIANet(Model):
    """A model that gives one quality score for two uint8 views of a picture."""

    family = "glianet"
    Config = ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        backbone = create_backbone(config.backbone)
        pixels = pretrained_cfg(backbone)
        super().__init__(config, tuple(pixels["mean"]), tuple(pixels["std"]))
        self.backbone = backbone
        width = self.backbone.embed_dim
        latent = config.latent or width // 4
        heads = config.heads or max(MIN_HEADS, latent // HEAD_WIDTH)
        if heads < 1 or latent % heads:
            raise UsageError(f"latent width {latent} cannot be cut into {heads} heads: set latent or heads")
        depth = len(self.backbone.blocks)
        self.projection = two_layer(width, latent, latent) if config.fusion else None
        refines = depth - 1 if config.fusion and config.refinement else 0
        self.glia = nn.ModuleList(GliaBlock(width, latent, heads, config, refine=i < refines) for i in range(depth))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, 1)
        if config.statistics:
            if not isinstance(backbone.patch_embed, StemEmbed):
                raise UsageError(f"statistics are those of a stem, and {config.backbone} has none: it is no hybrid")
            nn.init.zeros_(self.head.weight)  # so that the second head's first scores stand
            channels = sum(backbone.patch_embed.stem.channels)
            self.ridge_head = RidgeHead(2 * len(self.inputs(config)) * channels, config.dropout)
        pretrained_part(backbone).requires_grad_(config.tune_backbone)

    @classmethod
    def inputs(cls, config: ModelConfig) -> tuple[ModelInput, ...]:
        """Return the whole picture and the mosaic of 49 fragments, both 224 x 224, less what the config leaves out."""
        read = {config.main, config.guidance} if config.fusion else {config.main}
        return tuple(view for view in VIEWS if view.name in read)

    def stages(self) -> dict[str, Stage]:
        """Return the embedding, the projection, and each ViT block with the GLIA block before it.

        The final norm belongs to the stage of the last block, because it reads that block's output.
        """
        vit = self.backbone
        own = tuple(vit.parameters(recurse=False))  # cls token, registers, positions
        stages = {
            "embedding": Stage((vit.patch_embed, vit.patch_drop, vit.norm_pre), own),
        }
        if self.projection is not None:
            stages["projection"] = Stage((self.projection,))
        last = len(vit.blocks) - 1
        for i, (block, glia) in enumerate(zip(vit.blocks, self.glia, strict=True)):
            modules = (block, glia) if i < last else (block, glia, vit.norm)
            stages[f"block {i}"] = Stage(modules, attends=True)
        return stages

    def backbones(self) -> dict[str, nn.Module]:
        """Return what is pretrained of the ViT that both streams share: all of it, or a hybrid's stem."""
        pretrained = pretrained_part(self.backbone)
        return {"backbone" if pretrained is self.backbone else "backbone.patch_embed.stem": pretrained}

    @property
    def _frozen(self) -> bool:
        """Whether no weight of the backbone is trained, so that F_s of a picture never changes."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def precomputed_input(self) -> str | None:
        """Return the whole picture's input, if the guidance comes from it and nothing trained reads it."""
        config = self.config
        guided = config.fusion and config.guidance == GLOBAL_VIEW != config.main
        return GLOBAL_VIEW if guided and self._frozen else None

    def precompute(self, view: Tensor) -> Tensor:
        """Return F_s (N, T, D) of whole pictures, uint8 (N, 224, 224, 3)."""
        return self.guide(self.embed(view)[0])

    def embed(self, view: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the tokens (N, T, D) of a view that enter the first block, and what the second head reads of it."""
        pixels, vit = self.normalise(view), self.backbone
        if not self.config.statistics:
            return embed(vit, pixels), []
        maps = vit.patch_embed.stem(pixels)
        return add_positions(vit, vit.patch_embed.tokens(maps)), [statistics(maps)]

    def guide(self, x: Tensor) -> Tensor:
        """Return F_s, all tokens (N, T, D) after the backbone's final norm, for those that enter the first block."""
        for block in self.backbone.blocks:
            x = block(x.to(_dtype(block)))
        return cast(Tensor, self.backbone.norm(x.to(_dtype(self.backbone.norm))))

    def features(self, *inputs: Tensor) -> Tensor:
        """Return the features (N, D): the main stream's cls token after the last block and the final norm.

        With the second head, the statistics of each input follow, in the order of the inputs.

        Args:
            inputs: The inputs of the contract. With the paper's config they are the whole picture and the mosaic of 49
                fragments, both uint8 (N, 224, 224, 3), RGB. The whole picture may be its tokens, from `precompute`.
        """
        views = dict(zip((one.name for one in self.inputs(self.config)), inputs, strict=True))
        config, f_sd = self.config, None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            f_s = views[config.guidance] if config.fusion else None
            made = f_s is not None and f_s.is_floating_point() and config.guidance != config.main
            read = {name: self.embed(view) for name, view in views.items() if not made or name != config.guidance}
            if f_s is not None and not made:
                f_s = self.guide(read[config.guidance][0])  # (N, T, D)
        if f_s is not None and self.projection is not None:
            f_sd = self.projection(f_s.to(_dtype(self.projection)))  # (N, T, r)
        f_d = read[config.main][0]  # (N, T, D)
        last = len(self.glia) - 1
        for i, (glia, block) in enumerate(zip(self.glia, self.backbone.blocks, strict=True)):
            f_d, f_sd = glia(f_d.to(_dtype(glia)), None if f_sd is None else f_sd.to(_dtype(glia)))
            f_d = f_d.to(_dtype(block))
            # Only the cls row of the last block is used. Computing that row alone is exact, and cheaper.
            f_d = block(f_d) if i < last else block_cls_row(block, f_d)
        cls = self.backbone.norm(f_d.to(_dtype(self.backbone.norm)))[:, 0]  # (N, D)
        return torch.cat([cls, *(one for _, second in read.values() for one in second)], dim=1)

    def raw_score(self, features: Tensor) -> Tensor:
        """Return the regression heads' output for features (N, D), float32 (N,)."""
        # The head is written as a product and a sum, not as a matrix product. Engines that run matrix products in
        # bfloat16 keep these in float32. A bfloat16 score would have three digits.
        width = self.head.in_features
        raw: Tensor = (self.dropout(features[:, :width].float()) * self.head.weight[0]).sum(-1) + self.head.bias
        return raw if self.ridge_head is None else raw + self.ridge_head(features[:, width:])


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that a stage computes in. Each stage of a half-precision model may stay in float32."""
    return next(module.parameters()).dtype
