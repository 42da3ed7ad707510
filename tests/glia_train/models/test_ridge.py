"""The baseline: a head that is fitted to frozen features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.labels import noise_dataset
from sklearn.linear_model import Ridge as SklearnRidge

from glia_rt.errors import UsageError
from glia_train.checkpoint import Checkpoint
from glia_train.evaluate import score, select
from glia_train.models.glianet import ModelConfig
from glia_train.models.ridge import RidgeConfig
from glia_train.options import TrainOptions
from glia_train.ridge_head import ALPHAS, RidgeHead
from glia_train.train import train


def test_the_head_is_the_ridge_regression_of_standardised_features() -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(0, 1, (80, 12)) * rng.uniform(0.1, 9, 12) + 5).astype(np.float32)
    labels = (features @ rng.normal(0, 1, 12) + rng.normal(0, 3, 80)).astype(np.float32)
    head = RidgeHead(12, dropout=0.5).eval()
    alpha = head.fit(features, labels)
    assert alpha in ALPHAS
    standardised = (features - features.mean(0)) / features.std(0)
    scaled = (labels - labels.mean()) / labels.std()
    expected = SklearnRidge(alpha=alpha).fit(standardised, scaled).predict(standardised)
    with torch.no_grad():
        np.testing.assert_allclose(head(torch.from_numpy(features)), expected, atol=1e-5)
        norms = ((torch.from_numpy(features) - head.centre) / head.spread).norm(dim=1)
    assert norms.square().mean() == pytest.approx(1, abs=1e-4)


def test_noise_gets_more_regularisation_than_a_line() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (200, 20)).astype(np.float32)
    line = RidgeHead(20, dropout=0.0).fit(features, features @ np.arange(20, dtype=np.float32))
    noise = RidgeHead(20, dropout=0.0).fit(features, rng.normal(0, 1, 200).astype(np.float32))
    assert line < 10 < 100 < noise


def test_a_feature_that_never_varies_has_no_say() -> None:
    features = np.ones((30, 2), np.float32)
    features[:, 0] = np.arange(30)
    head = RidgeHead(2, dropout=0.0)
    head.fit(features, np.arange(30, dtype=np.float32))
    with torch.no_grad():
        low, high = head(torch.tensor([[3.0, 1.0], [3.0, 1.0001]]))
    assert low == pytest.approx(high.item(), abs=1e-3)


def test_a_head_that_is_not_fitted_can_be_trained(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path, 40, 224, 224)
    options = TrainOptions(epochs=1, batch_size=8, lr=1e-2)
    result = train(dataset, tmp_path / "run", RidgeConfig(), options, "package")
    assert result.metrics.srcc > 0.8


def test_no_epoch_gives_the_ridge_regression(tmp_path: Path) -> None:
    """Brighter noise is better, which the means of feature maps tell."""
    dataset = noise_dataset(tmp_path, 40, 224, 224)
    options = TrainOptions(epochs=0, batch_size=8, fit_head=True)
    result = train(dataset, tmp_path / "run", RidgeConfig(), options, "package")
    assert result.metrics.srcc > 0.9
    checkpoint = Checkpoint.load(result.checkpoint)
    assert checkpoint.trained_on["options"]["fit_head"]
    head = checkpoint.build_model().ridge_head
    assert head is not None
    assert head.centre.abs().max() > 0


def test_a_head_that_was_fitted_goes_on_learning(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path, 40, 224, 224)
    config = ModelConfig(backbone="vit_192x2_efficientnet_lite0", statistics=True, tune_backbone=True)
    heads = {}
    for epochs in (0, 1):
        options = TrainOptions(epochs=epochs, batch_size=8, fit_head=True, ranking=0.1, lr=1e-3, backbone_lr=1e-5)
        result = train(dataset, tmp_path / f"run{epochs}", config, options, "package")
        heads[epochs] = Checkpoint.load(result.checkpoint).weights
    moved = {key: float((heads[1][key] - heads[0][key]).abs().max()) for key in heads[0]}
    assert moved["ridge_head.weight"] > 1e-3
    # AdamW's steps are of the size of the learning rate: 3 steps of up to 1e-3, or 1e-5 for the stem.
    assert 1e-4 < moved["projection.0.weight"] < 4e-3
    assert 1e-6 < moved["backbone.patch_embed.stem.stages.conv_stem.weight"] < 4e-5
    assert moved["ridge_head.centre"] == 0


def test_the_validation_part_is_trained_on_if_asked(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path, 40, 224, 224)
    heads = []
    for asked in (False, True):
        options = TrainOptions(epochs=0, batch_size=8, fit_head=True, train_on_validation=asked)
        result = train(dataset, tmp_path / f"run{asked}", RidgeConfig(), options, "package")
        checkpoint = Checkpoint.load(result.checkpoint)
        assert checkpoint.trained_on["calibrated_on"] == len(result.split.train) + asked * len(result.split.validation)
        sizes = [len(part) for part in (result.split.train, result.split.validation, result.split.test)]
        counts = [sizes[0] + sizes[1], 0, sizes[2]] if asked else sizes
        assert [checkpoint.trained_on["pictures"][part] for part in ("train", "validation", "test")] == counts
        heads.append(checkpoint.weights["ridge_head.centre"])
    assert not torch.equal(*heads)


def test_figures_of_pictures_that_were_trained_on_are_not_kept(tmp_path: Path) -> None:
    """Neither does `evaluate` take that part without a warning."""
    dataset = noise_dataset(tmp_path, 40, 224, 224)
    options = TrainOptions(epochs=0, batch_size=8, fit_head=True, train_on_validation=True, measure_test=False)
    result = train(dataset, tmp_path / "run", RidgeConfig(), options, "package")
    checkpoint = Checkpoint.load(result.checkpoint)
    assert checkpoint.metrics == {}
    assert checkpoint.trained_on["measured_on"] == "training"
    assert train(dataset, tmp_path / "run", RidgeConfig(), options, "package", resume=True).checkpoint.exists()
    warnings = [score(result.checkpoint, select(dataset, part, 3407)).warning for part in ("validation", "test")]
    assert warnings == ["the model was trained on the validation part, too", ""]


def test_a_learning_rate_for_a_frozen_backbone(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path, 40, 224, 224)
    with pytest.raises(UsageError, match="--backbone-lr is for a backbone that is trained: give --tune-backbone"):
        train(dataset, tmp_path / "run", RidgeConfig(), TrainOptions(batch_size=8, backbone_lr=1e-4), "random")


def test_a_backbone_that_is_left_out_cannot_be_rounded() -> None:
    with pytest.raises(UsageError, match="half_weights rounds the backbone too, which adapter_only leaves out"):
        TrainOptions(half_weights=True, adapter_only=True)


def test_a_model_without_such_a_head(tmp_path: Path) -> None:
    dataset = noise_dataset(tmp_path, 40, 224, 224)
    options = TrainOptions(epochs=1, batch_size=8, fit_head=True)
    with pytest.raises(UsageError, match="--fit-head: this glianet has no head that can be fitted: drop it"):
        train(dataset, tmp_path / "run", ModelConfig(backbone="vit_tiny_r_s16_p8_224"), options, "random")
