"""ViTs as backbones, timm's and hybrids: functions that create them, load their weights and run parts of them."""

from __future__ import annotations

import difflib
import hashlib
import sys
from pathlib import Path
from typing import Any, cast

import timm
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models import load_checkpoint
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from glia_rt.errors import BundleError, UsageError
from glia_train.hybrid import HYBRIDS, StemEmbed, create_hybrid
from glia_train.stem import IMAGE_SIZE, Stem


def create_backbone(name: str) -> VisionTransformer:
    """Return a backbone with random weights and no classification head.

    Raises:
        UsageError: The name is neither a hybrid's nor one of timm's, or timm's model is not a plain ViT with a cls
            token and a final norm.
    """
    if name in HYBRIDS:
        return create_hybrid(name)
    if not timm.is_model(name):
        near = " or ".join(difflib.get_close_matches(name, [*HYBRIDS, *timm.list_models()]))
        raise UsageError(f"timm has no model {name!r}" + (f"; did you mean {near}?" if near else ""))
    try:
        vit = timm.create_model(name, pretrained=False, num_classes=0, img_size=IMAGE_SIZE)
    except TypeError as error:  # the model takes no img_size, which every ViT takes
        raise UsageError(f"{name} is not a ViT: it cannot be a backbone here") from error
    except RuntimeError as error:
        raise UsageError(f"{name}: {_on_one_line(error)}") from error
    plain = isinstance(vit, VisionTransformer) and all(
        type(block) is Block and type(block.attn) is Attention and block.attn.gate is None for block in vit.blocks
    )
    if not plain or vit.cls_token is None or isinstance(vit.norm, nn.Identity):
        raise UsageError(f"{name} is not a plain ViT with a cls token and a final norm: it cannot be a backbone here")
    return cast(VisionTransformer, vit)


def pretrained_cfg(vit: nn.Module) -> dict[str, Any]:
    """Return timm's record of a backbone: architecture, tag, mean, std."""
    return cast(dict[str, Any], vit.pretrained_cfg)


def pretrained_part(vit: VisionTransformer) -> nn.Module:
    """Return the part of a backbone that has pretrained weights: a hybrid's stem, or all of a ViT of timm's."""
    return vit.patch_embed.stem if isinstance(vit.patch_embed, StemEmbed) else vit


def load_backbone_weights(vit: nn.Module, source: str) -> None:
    """Load pretrained weights, in place.

    Args:
        vit: The pretrained part of a backbone: a ViT, or a stem, whose `Stem.load` takes the source.
        source: "hub" downloads the weights from timm's hub. "random" keeps the initial weights. Anything else is the
            path of a file: safetensors, timm's npz, or a pth state dict, which is read with weights_only.

    Raises:
        UsageError: The hub cannot be reached, or the file does not exist.
        BundleError: The file does not hold this backbone's weights.
    """
    if isinstance(vit, Stem):
        vit.load(source)
        return
    if source == "random":
        return
    cfg = pretrained_cfg(vit)
    name = cfg["architecture"] + (f".{tag}" if (tag := cfg.get("tag")) else "")
    if source == "hub":
        _load_from_hub(vit, name)
        return
    path = Path(source)
    if not path.is_file():
        raise UsageError(
            f"--backbone-weights {source}: no such file. Give hub (timm's hub, needs a network), random, or the path "
            f"of weights of {name} downloaded elsewhere (.safetensors, .npz, .pth)"
        )
    try:
        if path.suffix == ".npz":
            cast(VisionTransformer, vit).load_pretrained(str(path))
            return
        # The hub uses the same filter. A ViT's reads older layouts and fits position embeddings to the view's size.
        filter_fn = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
        keys = load_checkpoint(vit, str(path), strict=False, filter_fn=filter_fn, weights_only=True)
    except Exception as error:  # timm and torch raise many kinds, and each means a wrong file
        raise BundleError(f"{path}: not weights of {name}: {_on_one_line(error)}") from error
    # Most files hold a classifier, which a backbone lacks. Any other difference means another model.
    classifier = str(cfg.get("classifier") or "head").partition(".")[0]
    if odd := keys.missing_keys + [key for key in keys.unexpected_keys if not key.startswith(classifier)]:
        raise BundleError(f"{path}: not weights of {name}: {len(odd)} tensors missing or unknown, first {odd[0]}")


def _load_from_hub(vit: nn.Module, name: str) -> None:
    try:
        donor = timm.create_model(name, pretrained=True, num_classes=0, img_size=IMAGE_SIZE)
    except Exception as error:  # the hub's client raises many kinds, and each means no weights
        raise UsageError(
            f"cannot get {name} from timm's hub ({_on_one_line(error)}). Without a network give "
            "--backbone-weights FILE with weights downloaded elsewhere, or --backbone-weights random"
        ) from error
    vit.load_state_dict(donor.state_dict())


def _on_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def backbone_sha256(vit: nn.Module) -> str:
    """Return the SHA-256 of all weights of a backbone, taken in the order of their names."""
    digest = hashlib.sha256()
    for key, value in sorted(vit.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def embed(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """Return the tokens (N, T, D) that enter the first block, positions added, for normalised pixels (N, 3, S, S)."""
    return add_positions(vit, vit.patch_embed(pixels.to(next(vit.parameters()).dtype)))


def add_positions(vit: VisionTransformer, patches: Tensor) -> Tensor:
    """Return the tokens (N, T, D) that enter the first block, for what the patch embedding makes of pixels."""
    x = vit._pos_embed(patches)  # timm's only way to add cls, register and position embeddings
    return cast(Tensor, vit.norm_pre(vit.patch_drop(x)))


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split the output (N, T, parts * r) of a packed projection into `parts` tensors (N, heads, T, r/heads)."""
    n, t, _ = x.shape
    return x.view(n, t, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def block_cls_row(block: Any, x: Tensor) -> Tensor:
    """Return the first row of `block(x)`, (N, 1, D) from (N, T, D), without computing the other rows.

    Keys and values need every token. The query, the output projection and the MLP need the cls token alone.
    """
    attn = block.attn
    n, _, _ = x.shape
    normed = block.norm1(x)
    dim = attn.attn_dim
    weight, bias = attn.qkv.weight, attn.qkv.bias
    q = F.linear(normed[:, :1], weight[:dim], None if bias is None else bias[:dim])  # (N, 1, D)
    kv = F.linear(normed, weight[dim:], None if bias is None else bias[dim:])  # (N, T, 2D)
    [q] = split_heads(q, 1, attn.num_heads)  # (N, heads, 1, D/heads)
    k, v = split_heads(kv, 2, attn.num_heads)  # (N, heads, T, D/heads)
    q, k = attn.q_norm(q), attn.k_norm(k)
    # The attention is written out as its parts, because TensorRT refuses it as one operator for a single query with an
    # odd number of heads.
    weights = ((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1)  # (N, heads, 1, T)
    a = attn.attn_drop(weights) @ v  # (N, heads, 1, D/heads)
    a = attn.proj_drop(attn.proj(attn.norm(a.transpose(1, 2).reshape(n, 1, dim))))
    y = x[:, :1] + block.drop_path1(block.ls1(a))
    return cast(Tensor, y + block.drop_path2(block.ls2(block.mlp(block.norm2(y)))))
