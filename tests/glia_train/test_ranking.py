"""Pairs of distorted copies, and the loss over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.contracts import CONTRACT
from helpers.labels import noise_dataset
from skimage import data
from skimage.metrics import structural_similarity

from glia_rt.errors import UsageError
from glia_rt.pixels.views import make_inputs
from glia_train.datasets.base import Dataset
from glia_train.distortions import DISTORTIONS, UNORDERED
from glia_train.loader import InputLoader
from glia_train.options import TrainOptions
from glia_train.ranking import HELD_OUT, MARGIN, RANKED, distorted_copy, ranking_loss

PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[:160, 100:260])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return noise_dataset(tmp_path_factory.mktemp("pictures"), 16, 230, 240)


def test_every_distortion_is_ranked_held_out_or_has_no_order() -> None:
    assert sorted([*RANKED, *HELD_OUT, *UNORDERED]) == sorted(DISTORTIONS)
    assert len(HELD_OUT) == 5


def test_the_worse_copy_is_further_from_the_picture() -> None:
    """By SSIM, which sees structure, so nearly all pairs are in order and not the few that move colours alone."""

    def likeness(copy: np.ndarray) -> float:
        return float(structural_similarity(PHOTOGRAPH, copy, channel_axis=-1))

    ordered = []
    for seed in range(60):
        better, worse = (
            distorted_copy(PHOTOGRAPH, np.random.default_rng(seed), worse=worse) for worse in (False, True)
        )
        assert not np.array_equal(better, worse)
        ordered.append(likeness(better) >= likeness(worse))
    assert np.mean(ordered) > 0.9


def test_a_pair_is_the_same_again() -> None:
    for worse in (False, True):
        first, again = (distorted_copy(PHOTOGRAPH, np.random.default_rng(5), worse=worse) for _ in range(2))
        np.testing.assert_array_equal(first, again)
    tiny = PHOTOGRAPH[:20]
    np.testing.assert_array_equal(distorted_copy(tiny, np.random.default_rng(0), worse=True), tiny)


def test_the_loss_asks_for_a_margin() -> None:
    better, worse = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 3.0])
    found = ranking_loss(better, worse, torch.tensor(2.0))
    assert found.item() == pytest.approx((0 + MARGIN + MARGIN + 1) / 3)


def test_batches_have_pairs_behind_the_rated_pictures(dataset: Dataset) -> None:
    loader = InputLoader(dataset.pictures, CONTRACT, 0, 2)
    plain = list(loader.batches(range(16), 8, epoch=1))
    paired = list(loader.batches(range(16), 8, epoch=1, pairs=2))
    for (inputs, labels), (more, same) in zip(plain, paired, strict=True):
        assert torch.equal(labels, same)
        for few, many in zip(inputs, more, strict=True):
            assert many.shape == (12, *few.shape[1:])
            torch.testing.assert_close(many[:8], few, rtol=0, atol=0)
    assert not torch.equal(paired[0][0][0][8:], paired[1][0][0][8:])
    other = next(iter(loader.batches(range(16), 8, epoch=2, pairs=2)))
    assert not torch.equal(other[0][0][8:], paired[0][0][0][8:])


def test_the_copies_of_a_pair_are_flipped_and_cut_alike(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glia_train.loader.distorted_copy", lambda pixels, rng, worse: pixels)
    loader = InputLoader(dataset.pictures, CONTRACT, 0, 2)
    seen = set()
    for inputs, _ in loader.batches(range(16), 8, epoch=1, pairs=8):
        for view in inputs:
            torch.testing.assert_close(view[8:16], view[16:24], rtol=0, atol=0)
        seen |= {view.numpy().tobytes() for view in inputs[1][8:16]}
    plain = {make_inputs(loader._pixels(i), CONTRACT)["fragments"].tobytes() for i in range(16)}
    assert len(seen - plain) > 8


def test_ranking_needs_room_in_the_batch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ranking needs a batch_size of at least 8, not 4"):
        TrainOptions(batch_size=4, ranking=0.1)
    with pytest.raises(UsageError, match="ranking must be at least 0"):
        TrainOptions(ranking=-1)
