"""Checkpoints round trip, and what is no checkpoint, or no weights of this backbone, is refused without being run."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from glia_rt.contract import Contract
from glia_rt.errors import BundleError, UsageError
from glia_train.backbones import backbone_sha256, create_backbone, load_backbone_weights
from glia_train.checkpoint import Checkpoint, make_checkpoint
from glia_train.models.glianet import GLIANet, ModelConfig
from glia_train.models.table import untrained

BACKBONE = "vit_tiny_patch16_224"
CONFIG = ModelConfig(backbone=BACKBONE)


@pytest.fixture(scope="module")
def model() -> GLIANet:
    model, _ = untrained(CONFIG, seed=1)
    model.calibration.copy_(torch.tensor([2.0, 3.0]))
    return model


@pytest.fixture(scope="module")
def contract() -> Contract:
    return untrained(CONFIG)[1].with_range(1.0, 5.0)


@pytest.fixture(scope="module")
def saved(model: GLIANet, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "checkpoint.pt"
    trained_on = {"pictures": {"train": 8}, "options": {"score_range": (1.0, 5.0), "seed": 1}}
    make_checkpoint(model, contract, "random", trained_on=trained_on, metrics={"srcc": 0.5}).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights as timm publishes them: of the whole classifier, its head included."""
    torch.manual_seed(9)
    return dict(timm.create_model(BACKBONE, pretrained=False, num_classes=10).state_dict())


@pytest.fixture(scope="module")
def weights_file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(weights, path)
    return path


def score(model: GLIANet) -> Tensor:
    views = torch.randint(0, 256, (2, 2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.score(*views)


def resave(path: Path, target: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    record = torch.load(path, weights_only=True)
    edit(record)
    torch.save(record, target)
    return target


class Evil:
    """Unpickled by the book, this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_round_trip(saved: Path, model: GLIANet, contract: Contract) -> None:
    loaded = Checkpoint.load(saved)
    assert (loaded.config, loaded.contract) == (CONFIG, contract)
    assert loaded.backbones == {"backbone": {"source": "random", "sha256": backbone_sha256(model.backbone)}}
    assert loaded.calibration == (2.0, 3.0)
    assert loaded.trained_on == {"pictures": {"train": 8}, "options": {"score_range": (1.0, 5.0), "seed": 1}}
    assert loaded.metrics == {"srcc": 0.5}
    assert loaded.calibrated
    assert not loaded.adapter_only
    rebuilt = loaded.build_model()
    assert not rebuilt.training
    assert torch.equal(score(rebuilt), score(model))
    assert list(saved.parent.iterdir()) == [saved]
    json.dumps(loaded.describe())


def test_weights_that_are_halves_take_half_the_space(model: GLIANet, contract: Contract, tmp_path: Path) -> None:
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(parameter.half())
    sizes = []
    for name, one in (("plain", model), ("rounded", rounded)):
        make_checkpoint(one, contract, "random").save(tmp_path / name)
        loaded = Checkpoint.load(tmp_path / name)
        assert {value.dtype for value in loaded.weights.values()} == {torch.float32}
        torch.testing.assert_close(dict(loaded.weights), dict(one.state_dict()), rtol=0, atol=0)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] < 0.55 * sizes[0]


def test_a_checkpoint_is_a_copy(contract: Contract) -> None:
    model, _ = untrained(CONFIG)
    checkpoint = make_checkpoint(model, contract, "random")
    before = checkpoint.weights["head.weight"].clone()
    with torch.no_grad():
        model.head.weight.add_(1)
    assert torch.equal(checkpoint.weights["head.weight"], before)


def test_an_untrained_checkpoint_is_not_calibrated() -> None:
    model, contract = untrained(CONFIG)
    assert not make_checkpoint(model, contract, "random").calibrated


def test_a_failed_save_leaves_the_file_before(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    Checkpoint.load(saved).save(path)
    before = path.read_bytes()
    unsaveable = dataclasses.replace(Checkpoint.load(saved), trained_on={"function": lambda: None})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        unsaveable.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_code_of_a_file_is_run(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hidden = resave(saved, tmp_path / "hidden.pt", lambda record: record["trained_on"].update(x=Evil(marker)))
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Evil(marker)))
    for path in (hidden, bare):
        with pytest.raises(BundleError, match=f"{path.name}: not a checkpoint"):
            Checkpoint.load(path)
        with pytest.raises(BundleError, match="not weights of"):
            load_backbone_weights(create_backbone(BACKBONE), str(path))
    assert not marker.exists()
    pickle.loads(bare.read_bytes())
    assert marker.exists()  # it would have


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", pickle.dumps({"schema": 1})], ids=repr)
def test_what_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"checkpoint.pt: "):
        Checkpoint.load(path)


def test_missing_and_truncated(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such checkpoint"):
        Checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(BundleError, match="no such checkpoint"):
        Checkpoint.load(tmp_path)
    content = saved.read_bytes()
    for size in (100, len(content) // 2, len(content) - 100):
        (tmp_path / "short.pt").write_bytes(content[:size])
        with pytest.raises(BundleError, match="damaged"):
            Checkpoint.load(tmp_path / "short.pt")


def test_a_torch_file_of_something_else(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    for other in (weights, torch.zeros(3), [1, 2]):
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(BundleError, match="glia-rt train"):
            Checkpoint.load(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(schema=3, glia_rt="9.1"), r"schema 3 is newer than 2.*upgrade to glia-rt 9\.1"),
        (lambda r: r.update(schema="2"), "schema '2' is not a schema"),
        (lambda r: r.update(extra=1), "unknown field extra; .*upgrade"),
        (lambda r: r.pop("metrics"), "missing field metrics"),
        (lambda r: r.update(family="cnn"), "there is no family 'cnn'"),
        (lambda r: r.update(calibration=[1.0]), "damaged"),
        (lambda r: r.update(backbones=None), "damaged"),
        (lambda r: r["config"].update(depth=3), "no option depth"),
        (lambda r: r["config"].update(mlp="wide"), "mlp: Input should be 'narrow' or 'loda'"),
        (lambda r: r["config"].update(dropout="much"), "damaged"),
        (lambda r: r.update(config=3), "damaged"),
        (lambda r: r["contract"].update(schema=3), "contract: schema 3 is newer"),
        (lambda r: r["contract"]["inputs"][1].pop("grid"), "missing field grid"),
        (lambda r: r.update(contract=None), "damaged"),
        (lambda r: r.update(weights={"head.weight": 1}), "weights are no tensors"),
        (lambda r: r.update(weights=None), "weights are no tensors"),
    ],
)
def test_records_of_another_version(
    saved: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Checkpoint.load(resave(saved, tmp_path / "edited.pt", edit))


def test_pixels_are_normalised_as_the_contract_says(saved: Path, tmp_path: Path) -> None:
    edit = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    model = Checkpoint.load(resave(saved, tmp_path / "edited.pt", lambda r: r["contract"].update(edit))).build_model()
    pixels = model.normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))[0, :, 0, 0]
    torch.testing.assert_close(pixels, torch.tensor([(1 - 0.1) / 0.4, (1 - 0.2) / 0.5, (1 - 0.3) / 0.6]))


@pytest.mark.parametrize(
    "edit",
    [
        lambda w: w.pop("head.weight"),
        lambda w: w.update({"head.weight": torch.zeros(1, 5)}),
        lambda w: w.update(other=torch.zeros(1)),
        lambda w: w.pop("backbone.cls_token"),
    ],
)
def test_weights_that_do_not_fit_the_config(
    saved: Path, tmp_path: Path, edit: Callable[[dict[str, Tensor]], object]
) -> None:
    path = resave(saved, tmp_path / "edited.pt", lambda record: edit(record["weights"]))
    with pytest.raises(BundleError, match="do not fit its config, first at"):
        Checkpoint.load(path).build_model()


def test_adapter_only(
    weights: dict[str, Tensor], weights_file: Path, saved: Path, contract: Contract, tmp_path: Path
) -> None:
    model, _ = untrained(CONFIG, str(weights_file))
    path = tmp_path / "adapters.pt"
    make_checkpoint(model, contract, weights_file.name, adapter_only=True).save(path)
    assert path.stat().st_size < saved.stat().st_size / 5
    adapters = Checkpoint.load(path)
    assert adapters.adapter_only
    assert adapters.backbones["backbone"]["source"] == "backbone.safetensors"
    with pytest.raises(UsageError, match=r"adapters only: give --backbone-weights .*backbone.safetensors"):
        adapters.build_model()
    assert torch.equal(score(adapters.build_model(str(weights_file))), score(model))
    torch.save(weights, tmp_path / "same.pth")
    assert torch.equal(score(adapters.build_model(str(tmp_path / "same.pth"))), score(model))
    other = weights | {"norm.bias": weights["norm.bias"] + 1e-3}
    torch.save(other, tmp_path / "other.pth")
    for wrong in (str(tmp_path / "other.pth"), "random"):
        with pytest.raises(BundleError, match="trained against another backbone"):
            adapters.build_model(wrong)


def test_adapter_only_needs_a_backbone_that_can_be_had_again(contract: Contract) -> None:
    with pytest.raises(UsageError, match="nobody could restore it"):
        make_checkpoint(untrained(CONFIG)[0], contract, "random", adapter_only=True)
    tuned, _ = untrained(dataclasses.replace(CONFIG, tune_backbone=True))
    with pytest.raises(UsageError, match="drop it or --tune-backbone"):
        make_checkpoint(tuned, contract, "hub", adapter_only=True)


def save_as_jax(weights: dict[str, Tensor], path: Path) -> None:
    """The layout of the ViT authors' npz files, which timm reads."""
    w = {key: value.numpy() for key, value in weights.items()}
    width, heads = 192, 3
    arrays = {
        "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": w["patch_embed.proj.bias"],
        "cls": w["cls_token"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "Transformer/encoder_norm/scale": w["norm.weight"],
        "Transformer/encoder_norm/bias": w["norm.bias"],
    }
    for i in range(12):
        block, source = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for norm, layer in ((0, "norm1"), (2, "norm2")):
            arrays[f"{block}/LayerNorm_{norm}/scale"] = w[f"{source}.{layer}.weight"]
            arrays[f"{block}/LayerNorm_{norm}/bias"] = w[f"{source}.{layer}.bias"]
        for part, kernel, bias in zip(
            ("query", "key", "value"),
            np.split(w[f"{source}.attn.qkv.weight"], 3),
            np.split(w[f"{source}.attn.qkv.bias"], 3),
            strict=True,
        ):
            arrays[f"{attention}/{part}/kernel"] = kernel.T.reshape(width, heads, -1)
            arrays[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = w[f"{source}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = w[f"{source}.attn.proj.bias"]
        for j in (0, 1):
            arrays[f"{block}/MlpBlock_3/Dense_{j}/kernel"] = w[f"{source}.mlp.fc{j + 1}.weight"].T
            arrays[f"{block}/MlpBlock_3/Dense_{j}/bias"] = w[f"{source}.mlp.fc{j + 1}.bias"]
    np.savez(path, **arrays)


@pytest.mark.parametrize("name", ["backbone.safetensors", "backbone.pth", "wrapped.pth", "backbone.npz"])
def test_backbone_weights_from_each_kind_of_file(name: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    match name:
        case "backbone.safetensors":
            save_file(weights, path)
        case "backbone.npz":
            save_as_jax(weights, path)
        case "wrapped.pth":
            torch.save({"state_dict": weights}, path)
        case _:
            torch.save(weights, path)
    vit = create_backbone(BACKBONE)
    load_backbone_weights(vit, str(path))
    assert all(torch.equal(value, weights[key]) for key, value in vit.state_dict().items())


def test_position_embeddings_are_fitted_to_the_view(weights: dict[str, Tensor], tmp_path: Path) -> None:
    larger = timm.create_model("vit_tiny_patch16_384", pretrained=False)
    save_file(larger.state_dict(), tmp_path / "384.safetensors")
    vit = create_backbone(BACKBONE)
    load_backbone_weights(vit, str(tmp_path / "384.safetensors"))
    assert vit.pos_embed.shape == (1, 197, 192)
    assert torch.equal(vit.blocks[3].mlp.fc1.weight, larger.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("blocks.3.norm1.weight"), r"1 tensors missing or unknown, first blocks.3.norm1.weight"),
        (lambda w: w.update({"blocks.12.norm1.weight": torch.ones(192)}), r"first blocks.12.norm1.weight"),
        (lambda w: w.update(cls_token=torch.zeros(1, 1, 384)), "size mismatch"),
        (lambda w: w.clear(), "missing"),
    ],
)
def test_backbone_weights_of_another_model(
    edit: Callable[[dict[str, Tensor]], object], message: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    changed = dict(weights)
    edit(changed)
    torch.save(changed, tmp_path / "other.pth")
    with pytest.raises(BundleError, match=rf"(?s)other.pth: not weights of {BACKBONE}\S*: .*{message}"):
        load_backbone_weights(create_backbone(BACKBONE), str(tmp_path / "other.pth"))


@pytest.mark.parametrize("name", ["text.safetensors", "text.pth", "text.npz", "arrays.npz"])
def test_files_that_hold_no_weights(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("not weights\n")
    if name == "arrays.npz":
        np.savez(path, x=np.zeros(3))
    with pytest.raises(BundleError, match=f"{name}: not weights of"):
        load_backbone_weights(create_backbone(BACKBONE), str(path))


def test_no_such_file_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"none.pth: no such file. Give hub .*, random, or the path of weights of vit_"
    ):
        load_backbone_weights(create_backbone(BACKBONE), str(tmp_path / "none.pth"))


def test_hub_without_a_network_names_both_ways_out(tmp_path: Path) -> None:
    # The hub's client reads its environment when it is imported, so this takes a process of its own.
    code = (
        "from glia_train.backbones import create_backbone, load_backbone_weights\n"
        f"load_backbone_weights(create_backbone('{BACKBONE}'), 'hub')"
    )
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "TORCH_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"glia_rt.errors.UsageError: cannot get {BACKBONE}.")
    assert "--backbone-weights FILE" in last
    assert "--backbone-weights random" in last
