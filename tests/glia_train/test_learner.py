"""The steps of training: gradients in parts, averages, precisions, the cache, and ends with a reason."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.labels import noise_dataset
from helpers.linear import Linear, LinearConfig
from PIL import Image
from rich.progress import Progress

from glia_rt.errors import UsageError
from glia_train.cache import FLIPS, FrozenCache
from glia_train.datasets.base import Dataset
from glia_train.learner import Learner
from glia_train.loader import InputLoader, KeptPictures, open_cache
from glia_train.machine import Machine
from glia_train.models.base import Model
from glia_train.models.glianet import FRAGMENTS, GLOBAL_VIEW, ModelConfig
from glia_train.models.table import FAMILIES, untrained
from glia_train.options import TrainOptions
from glia_train.schedule import Schedule
from glia_train.train import train

CPU = torch.device("cpu")
GLIANET = ModelConfig(backbone="vit_tiny_r_s16_p8_224", dropout=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return noise_dataset(tmp_path_factory.mktemp("pictures"), 16, 230, 240)


def learner_of(dataset: Dataset, config: Any, precision: Any = "fp32", **options: Any) -> tuple[Learner, Model]:
    model, contract = untrained(config, seed=1)
    loader = InputLoader(dataset.pictures, contract, 0, 2)
    return Learner(model, loader, TrainOptions(**options), Machine(CPU, precision)), model


def steps(learner: Learner, dataset: Dataset, options: TrainOptions) -> Iterator[None]:
    schedule = Schedule(options, len(dataset.pictures) // options.batch_size, Progress(disable=True))
    return learner.train_epoch(range(len(dataset.pictures)), 1, schedule)


def gradients(dataset: Dataset, **options: Any) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients of one step, and its loss. The learning rate is too small to move a weight."""
    made = {"batch_size": 16, "lr": 1e-30, "weight_decay": 0.0, **options}
    learner, model = learner_of(dataset, GLIANET, **made)
    list(steps(learner, dataset, TrainOptions(**made)))
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, learner.losses[0]


def test_the_gradient_of_a_batch_in_parts_is_that_of_the_whole(dataset: Dataset) -> None:
    """The loss uses the mean and the variance of the batch, so the sum of the parts' own losses is another one."""
    whole, loss = gradients(dataset)
    parts, loss_in_parts = gradients(dataset, micro_batch_size=5)
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)
    assert whole.keys() == parts.keys()
    # The loss does not change with the mean of the scores, so the gradient of the head's bias is rounding error alone.
    assert whole.pop("head.bias").abs() < 1e-6
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-4 * float(gradient.abs().max()), msg=name)
    own, _ = gradients(dataset, batch_size=5)
    assert any(not torch.allclose(own[name], whole[name], rtol=0.1, atol=0) for name in whole)


def test_a_long_gradient_is_shortened(dataset: Dataset) -> None:
    whole, _ = gradients(dataset)
    norm = float(torch.stack([g.norm() for g in whole.values()]).norm())
    clipped, _ = gradients(dataset, clip_norm=norm / 2)
    for name, gradient in whole.items():
        torch.testing.assert_close(clipped[name], gradient / 2, rtol=1e-3, atol=1e-9)
    left, _ = gradients(dataset, clip_norm=2 * norm)
    for name, gradient in whole.items():
        torch.testing.assert_close(left[name], gradient)


def test_the_average_of_the_weights(dataset: Dataset) -> None:
    options = TrainOptions(epochs=1, batch_size=4, lr=1e-2, ema=0.5)
    learner, model = learner_of(dataset, LinearConfig(), epochs=1, batch_size=4, lr=1e-2, ema=0.5)
    weight = model.get_parameter("linear.weight")
    expected = weight.detach().clone()
    for step, _ in enumerate(steps(learner, dataset, options), 1):
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, 5/14
        expected = decay * expected + (1 - decay) * weight.detach()
    last = weight.detach().clone()
    with learner.averaged():
        torch.testing.assert_close(weight.detach(), expected)
    assert torch.equal(weight.detach(), last)
    assert not torch.allclose(last, expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_train(dataset: Dataset, precision: str) -> None:
    options = {"epochs": 1, "batch_size": 4, "lr": 1e-3}
    learner, _ = learner_of(dataset, GLIANET, precision, **options)
    list(steps(learner, dataset, TrainOptions(**options)))  # type: ignore[arg-type]
    assert len(learner.losses) == 4
    assert all(0 < loss < 0.5 for loss in learner.losses)


def test_crops_of_a_picture_differ(dataset: Dataset) -> None:
    _, contract = untrained(GLIANET)
    loader = InputLoader(dataset.pictures, contract, 0, 2)
    count = len(dataset.pictures)
    mosaics = [loader.inputs(3 + crop * count, epoch=1)[FRAGMENTS].tobytes() for crop in range(6)]
    assert len(set(mosaics)) > 3
    assert loader.inputs(3 + count, epoch=None)[FRAGMENTS].tobytes() == loader.inputs(3, None)[FRAGMENTS].tobytes()


def test_pictures_are_kept_while_they_fit(dataset: Dataset) -> None:
    _, contract = untrained(GLIANET)
    one = 230 * 240 * 3
    loader = InputLoader(dataset.pictures, contract, 0, 1, kept=KeptPictures(3 * one + 1))
    loader.check(range(16))
    assert sorted(loader.kept.pixels) == [0, 1, 2]


# The cache of the frozen part


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_tokens_are_the_models(dataset: Dataset, tmp_path: Path, precision: Any) -> None:
    model, contract = untrained(GLIANET)
    machine, loader = Machine(CPU, precision), InputLoader(dataset.pictures, contract, 0, 2)
    view = torch.tensor(loader.flipped(0, FLIPS[0], GLOBAL_VIEW)).unsqueeze(0)
    with torch.inference_mode():
        shape = model.precompute(view).shape[1:]
    cache = FrozenCache(tmp_path, {}, GLOBAL_VIEW, shape, 6, flipped=4)
    assert cache.missing == 4 * 4 + 2
    assert cache.nbytes == 2 * 18 * int(np.prod(shape)) == next(tmp_path.glob("*.f16")).stat().st_size
    made: list[int] = []
    cache.fill(model, machine, lambda i, flips: loader.flipped(i, flips, GLOBAL_VIEW), 2, made.append)
    assert (sum(made), cache.missing) == (18, 0)
    for picture, flips in [(0, FLIPS[0]), (3, FLIPS[1]), (2, FLIPS[3]), (5, FLIPS[0])]:
        view = torch.tensor(loader.flipped(picture, flips, GLOBAL_VIEW)).unsqueeze(0)
        with torch.inference_mode(), machine.autocast():
            expected = model.precompute(view)[0].float()
        error = (torch.from_numpy(cache.read(picture, flips)) - expected).abs()
        # Tokens are of the size of 1 after the final norm. The sums of a batch are taken in another order, and rounded
        # in each of the blocks: to halves at the end, or to bf16, with 8 bits, all along. The limits are twice what was
        # measured.
        assert error.max() < (2e-3 if precision == "fp32" else 4e-2)
        assert error.mean() < (3e-4 if precision == "fp32" else 4e-3)
    again = FrozenCache(tmp_path, {}, GLOBAL_VIEW, shape, 6, flipped=4)
    assert again.missing == 0
    assert FrozenCache(tmp_path, {"weights": "others"}, GLOBAL_VIEW, shape, 6, flipped=4).missing == 18


def test_a_count_that_cannot_be_read_stands_for_none(tmp_path: Path) -> None:
    FrozenCache(tmp_path, {}, GLOBAL_VIEW, (2, 3), 5, flipped=1)
    [stem] = (path.stem for path in tmp_path.glob("*.f16"))
    (tmp_path / f"{stem}.json").write_text('{"arrays": 8}')
    assert FrozenCache(tmp_path, {}, GLOBAL_VIEW, (2, 3), 5, flipped=1).missing == 0
    for damaged in ("", "[]", '{"arrays": null}', "{"):
        (tmp_path / f"{stem}.json").write_text(damaged)
        assert FrozenCache(tmp_path, {}, GLOBAL_VIEW, (2, 3), 5, flipped=1).missing == 8


def test_other_pictures_have_another_cache(dataset: Dataset, tmp_path: Path) -> None:
    """The labels are the same, but not the files, as in a dataset that is there in two sizes."""
    model, contract = untrained(GLIANET)
    copies = []
    for picture in dataset.pictures[:3]:
        assert picture.path is not None
        shutil.copy(picture.path, tmp_path / picture.path.name)
        copies.append(dataclasses.replace(picture, path=tmp_path / picture.path.name))

    def key() -> str:
        loader = InputLoader(copies, contract, 0, 2)
        open_cache(loader, model, Machine(CPU, "fp32"), tmp_path / "cache", flipped=2)
        return max((tmp_path / "cache").glob("*.f16"), key=lambda file: file.stat().st_ctime_ns).name

    first = key()
    assert key() == first
    Image.new("RGB", (300, 300), (7, 7, 7)).save(tmp_path / "01.png")
    assert key() != first


def test_a_loader_with_a_cache_shares_the_decoded_pictures(dataset: Dataset) -> None:
    _, contract = untrained(GLIANET)
    plain = InputLoader(dataset.pictures, contract, 0, 1, KeptPictures(10**9))
    plain.check(range(4))
    assert sorted(dataclasses.replace(plain, pictures=dataset.pictures[:8]).kept.pixels) == [0, 1, 2, 3]


def test_a_cache_without_room(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot hold the cache .*; name another folder with --cache-dir, or give"):
        FrozenCache(tmp_path, {}, GLOBAL_VIEW, (197, 2**40), 10, flipped=10)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot hold the cache"):
        FrozenCache(tmp_path / "file", {}, GLOBAL_VIEW, (197, 192), 10, flipped=10)


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_the_loss_curve_is_that_without_a_cache(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32: in bf16, a batch taken in parts of two moves this loss by 4e-3 to 13e-3, and the cache by 7e-3."""
    reads: list[int] = []
    real = FrozenCache.read
    monkeypatch.setattr(FrozenCache, "read", lambda self, *which: reads.append(1) or real(self, *which))
    options = TrainOptions(epochs=5, batch_size=5, lr=1e-3, precision="fp32", measure_test=False)
    train(dataset, tmp_path / "with", GLIANET, options, "random", cache_dir=tmp_path / "cache")
    assert len(reads) >= 5 * 10  # two batches an epoch
    reads.clear()
    train(dataset, tmp_path / "without", GLIANET, dataclasses.replace(options, cache=False), "random")
    assert not reads
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), abs=1e-3)
    assert len(list((tmp_path / "cache").glob("*.f16"))) == 1
    assert not (tmp_path / "with" / "cache").exists()


def test_a_tuned_backbone_has_nothing_to_keep(dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(GLIANET, tune_backbone=True)
    assert untrained(config)[0].precomputed_input() is None
    options = TrainOptions(epochs=5, batch_size=10, measure_test=False)
    train(dataset, tmp_path / "run", config, options, "random", cache_dir=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_collapsed_model_stops_with_a_reason(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)
    learner, model = learner_of(dataset, LinearConfig(), batch_size=4)
    with torch.no_grad():
        model.get_parameter("linear.weight").zero_()
    with pytest.raises(Exception, match=r"gives all pictures of a batch one score in epoch 1: give an --lr under"):
        list(steps(learner, dataset, TrainOptions(batch_size=4)))


@pytest.fixture(autouse=True)
def _linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)
