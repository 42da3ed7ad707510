"""The model against its equations, its counts, and what each field of its config changes."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glia_rt.errors import UsageError
from glia_train.models.glianet import CrossAttention, GLIANet, ModelConfig
from glia_train.models.table import read_config, untrained
from glia_train.stem import statistics

TINY = "vit_tiny_patch16_224"
HYBRID = "vit_tiny_r_s16_p8_224"
#: One of our own, on a stem.
STEMMED = "vit_192x2_efficientnet_lite0"


def make_model(**config: Any) -> GLIANet:
    """An untrained model whose interactions are strong enough for a wrong one to show."""
    model, _ = untrained(ModelConfig(**{"backbone": HYBRID} | config))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.glia:
            for weight in (block.lambda_d, block.lambda_s, block.scale):
                if weight is not None:
                    weight.normal_(generator=rng)
    return model


def make_views(count: int = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(2)
    shape = (count, 224, 224, 3)
    global_view, fragments = (torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng) for _ in range(2))
    return global_view, fragments


def names(model: GLIANet) -> list[str]:
    return [one.name for one in model.inputs(model.config)]


# The reference: MODEL.md's equations word by word, one head at a time, with no shortcut.


def reference_normalise(model: GLIANet, view: Tensor) -> Tensor:
    pixels = (view.numpy() / 255 - model.mean.numpy()) / model.std.numpy()
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def reference_attention(attention: CrossAttention, query: Tensor, context: Tensor) -> Tensor:
    width = query.shape[-1]
    q = query @ attention.query.weight.T + attention.query.bias
    k = context @ attention.key_value.weight[:width].T + attention.key_value.bias[:width]
    v = context @ attention.key_value.weight[width:].T + attention.key_value.bias[width:]
    head = width // attention.heads
    outputs = []
    for i in range(attention.heads):
        one = slice(i * head, (i + 1) * head)
        weights = torch.softmax(q[..., one] @ k[..., one].transpose(1, 2) / math.sqrt(head), dim=-1)
        outputs.append(weights @ v[..., one])
    return torch.cat(outputs, dim=-1) @ attention.out.weight.T + attention.out.bias


def reference_mlp(layers: torch.nn.Sequential, x: Tensor) -> Tensor:
    first, _, second = layers
    return F.gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias


def reference_score(model: GLIANet, global_view: Tensor, fragments: Tensor) -> Tensor:
    vit, config = model.backbone, model.config
    views = {"global_view": global_view, "fragments": fragments}
    if config.fusion:
        f_s = vit.forward_features(reference_normalise(model, views[config.guidance]))
        f_sd = reference_mlp(model.projection, f_s)
    patches = vit.patch_embed(reference_normalise(model, views[config.main]))
    f_d = torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], dim=1) + vit.pos_embed
    for glia, block in zip(model.glia, vit.blocks, strict=True):
        z = reference_mlp(glia.down, f_d)
        fused = z + glia.lambda_d * reference_attention(glia.fusion, z, f_sd) if config.fusion else z
        up = reference_mlp(glia.up, fused)
        f_d = up if not model.config.residual else f_d + glia.scale * up
        if glia.refinement is not None:
            f_sd = f_sd + glia.lambda_s * reference_attention(glia.refinement, f_sd, z)
        f_d = block(f_d)
    cls = vit.norm(f_d)[:, 0]
    return (cls @ model.head.weight.T + model.head.bias)[:, 0] * model.calibration[0] + model.calibration[1]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"backbone": TINY},
        {"residual": False},
        {"mlp": "loda"},
        {"latent": 24, "heads": 2},
        {"tune_backbone": True},
        {"main": "global_view", "guidance": "fragments"},
        {"main": "global_view"},
        {"guidance": "fragments"},
        {"refinement": False},
        {"fusion": False},
        {"backbone": STEMMED},
    ],
    ids=str,
)
def test_scores_are_those_of_the_equations(config: dict[str, Any]) -> None:
    model, views = make_model(**config), make_views()
    model.calibration.copy_(torch.tensor([20.0, 50.0]))
    with torch.no_grad():
        expected = reference_score(model, *views)
        read = [view for name, view in zip(("global_view", "fragments"), views, strict=True) if name in names(model)]
        torch.testing.assert_close(model.score(*read), expected, atol=1e-4, rtol=1e-4)
    assert expected[0] - expected[1] != pytest.approx(0, abs=1e-2)  # else a score that ignores its input would pass


def test_local_and_global_streams_both_reach_the_score() -> None:
    model = make_model()
    (global_view, other_global), (fragments, other_fragments) = (view.split(1) for view in make_views())
    with torch.no_grad():
        score = model(global_view, fragments)
        assert abs(model(other_global, fragments) - score) > 1e-3
        assert abs(model(global_view, other_fragments) - score) > 1e-3


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        pytest.param("vit_base_patch16_224.augreg2_in21k_ft_in1k", 8_048_065, marks=pytest.mark.slow),
        ("vit_small_patch16_224", 2_024_161),
        (TINY, 512_113),
        (HYBRID, 512_113),
    ],
)
def test_trainable_parameters(backbone: str, expected: int) -> None:
    model = GLIANet(ModelConfig(backbone=backbone))
    assert sum(p.numel() for p in model.trainable_parameters()) == expected
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize(("backbone", "tokens", "width"), [(TINY, 197, 192), (HYBRID, 50, 192)])
def test_token_shapes(backbone: str, tokens: int, width: int) -> None:
    model, views = make_model(backbone=backbone), make_views(1)
    with torch.no_grad():
        assert model.precompute(views[0]).shape == (1, tokens, width)
        assert model.features(*views).shape == (1, width)
        score = model.score(*views)
    assert (score.shape, score.dtype) == ((1,), torch.float32)


def test_small_vit_scores() -> None:
    model = make_model(backbone="vit_small_patch16_224")
    assert (model.projection[2].out_features, model.glia[0].fusion.heads) == (96, 3)
    with torch.no_grad():
        assert model.score(*make_views(1)).isfinite().all()


@pytest.mark.parametrize(("backbone", "mean"), [(HYBRID, 0.5), ("deit_tiny_patch16_224", (0.485, 0.456, 0.406))])
def test_pixels_are_normalised_as_the_backbone_wants(backbone: str, mean: float | tuple[float, ...]) -> None:
    model, contract = untrained(ModelConfig(backbone=backbone))
    assert contract.mean == (mean if isinstance(mean, tuple) else (mean, mean, mean))
    view = make_views(1)[0]
    assert view.min() == 0
    assert view.max() == 255
    expected = (view.numpy() / 255 - np.array(contract.mean)) / np.array(contract.std)
    np.testing.assert_allclose(model.normalise(view).permute(0, 2, 3, 1), expected, atol=1e-6)


def test_frozen_backbone_stays_in_eval_and_gets_no_gradient() -> None:
    model = make_model().train()
    assert model.glia.training
    assert not any(module.training for module in model.backbone.modules())
    before = [p.clone() for p in model.backbone.parameters()]
    optimiser = torch.optim.AdamW(model.trainable_parameters(), lr=0.1, weight_decay=0.1)
    model.raw_score(model.features(*make_views())).square().sum().backward()
    optimiser.step()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.backbone.parameters(), strict=True))
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("tune", [False, True])
def test_a_tuned_backbone_trains_in_both_streams(tune: bool) -> None:
    model = make_model(tune_backbone=tune).train()
    assert model.backbone.training == tune
    seen: list[Tensor] = []
    model.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.raw_score(model.features(*make_views())).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert seen[0].requires_grad == tune


@pytest.mark.parametrize(
    ("config", "inputs"),
    [
        ({}, ["global_view", "fragments"]),
        ({"main": "global_view", "guidance": "fragments"}, ["global_view", "fragments"]),
        ({"main": "global_view"}, ["global_view"]),
        ({"guidance": "fragments"}, ["fragments"]),
        ({"fusion": False}, ["fragments"]),
        ({"fusion": False, "main": "global_view"}, ["global_view"]),
    ],
    ids=str,
)
def test_an_input_that_nothing_reads_is_left_out(config: dict[str, Any], inputs: list[str]) -> None:
    model = make_model(**config)
    assert [one.name for one in model.contract().inputs] == names(model) == inputs
    # Tokens of the whole picture can be kept only if the guidance alone reads them.
    assert model.precomputed_input() == ("global_view" if config == {} else None)
    model.train()
    model.raw_score(model.features(*make_views()[: len(inputs)])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_of_a_hybrid_the_stem_alone_is_pretrained() -> None:
    frozen, tuned = (make_model(backbone=STEMMED, tune_backbone=tune) for tune in (False, True))
    [(name, stem)] = frozen.backbones().items()
    assert all(key in frozen.state_dict() for key in (f"{name}.{own}" for own in stem.state_dict()))
    assert not any(p.requires_grad for p in stem.parameters())
    assert all(p.requires_grad for p in frozen.backbone.blocks.parameters())
    assert all(p.requires_grad for p in tuned.parameters())
    assert frozen.precomputed_input() is None
    assert len(frozen.frozen_backbones()) == 1
    assert len(tuned.frozen_backbones()) == 0


@pytest.mark.parametrize("config", [{}, {"main": "global_view", "guidance": "fragments"}, {"fusion": False}], ids=str)
def test_the_second_head_reads_the_statistics_of_every_input(config: dict[str, Any]) -> None:
    model = make_model(backbone=STEMMED, statistics=True, **config)
    views = make_views()[: len(names(model))]
    stem, width = model.backbone.patch_embed.stem, 192
    with torch.no_grad():
        features = model.features(*views)
        expected = torch.cat([statistics(stem(reference_normalise(model, view))) for view in views], dim=1)
        torch.testing.assert_close(features[:, width:], expected, atol=1e-4, rtol=1e-4)
        model.head.weight.fill_(0.1)
        model.ridge_head.weight.zero_()
        plain = dataclasses.replace(model.config, statistics=False)
        first = GLIANet(plain).eval()
        first.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("ridge_head")})
        alone = first(*views)
        torch.testing.assert_close(model(*views), alone)
        labels = np.array([1.0, 3.0], np.float32)
        model.ridge_head.fit(features[:, width:].numpy(), labels)
        second = model(*views) - alone
    assert second[1] > second[0] + 0.1
    assert not GLIANet(model.config).head.weight.any()


def test_dropout_only_while_training() -> None:
    model, views = make_model(dropout=0.5), make_views()
    with torch.no_grad():
        feature = model.features(*views)
        assert torch.equal(model.raw_score(feature), model.raw_score(feature))
        model.train()
        assert not torch.equal(model.raw_score(feature), model.raw_score(feature))


def test_config_fields_change_what_they_name() -> None:
    plain = GLIANet(ModelConfig(backbone=HYBRID))
    loda = GLIANet(ModelConfig(backbone=HYBRID, mlp="loda"))
    assert (plain.glia[0].up[0].out_features, loda.glia[0].up[0].out_features) == (48, 192)
    assert GLIANet(ModelConfig(backbone=HYBRID, residual=False)).glia[0].scale is None
    sized = GLIANet(ModelConfig(backbone=HYBRID, latent=64, heads=4, interaction_init=0.25))
    assert (sized.glia[0].fusion.heads, sized.projection[2].out_features) == (4, 64)
    assert (sized.glia[0].lambda_d == 0.25).all()
    assert (sized.glia[0].lambda_s == 0.25).all()
    assert plain.glia[-1].refinement is None
    assert plain.glia[-1].lambda_s is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet50"}, "resnet50 is not a ViT"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "not a plain ViT"),
        ({"backbone": "vit_base_patch16_siglip_224"}, "not a plain ViT"),  # no cls token
        ({"backbone": "vit_medium_patch16_gap_256"}, "not a plain ViT"),
        ({"backbone": "vit_tny_patch16_224"}, "did you mean vit_tiny_patch16_224"),
        ({"backbone": "xyzzy"}, "timm has no model 'xyzzy'$"),
        ({"backbone": f"{TINY}.nosuch"}, "nosuch"),
        ({"latent": 48, "heads": 5}, "cannot be cut into 5 heads"),
        ({"latent": 0}, "latent must be at least 1"),
        ({"heads": -1}, "heads must be at least 1"),
        ({"mlp": "wide"}, "mlp must be"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"main": "mosaic"}, 'main must be "global_view" or "fragments"'),
        ({"guidance": ""}, "guidance must be"),
        ({"statistics": True}, f"statistics are those of a stem, and {HYBRID} has none"),
    ],
    ids=str,
)
def test_impossible_configs_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GLIANet(ModelConfig(**{"backbone": HYBRID} | config))


def test_config_round_trip_and_unknown_field() -> None:
    config = ModelConfig(backbone=HYBRID, latent=64, mlp="loda")
    record = dataclasses.asdict(config)
    assert read_config("glianet", json.loads(json.dumps(record))) == config
    with pytest.raises(UsageError, match="glianet has no option depth; it has backbone, "):
        read_config("glianet", record | {"depth": 3})


def test_untrained_is_fixed_by_its_seed_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (untrained(ModelConfig(backbone=HYBRID), seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not torch.equal(first.backbone.pos_embed, other.backbone.pos_embed)
