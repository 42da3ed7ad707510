"""Bootstrap intervals against simulations and against formulas, and what groups do to them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr

from glia_rt.errors import UsageError
from glia_train.bootstrap import MIN_GROUPS, Interval, intervals, srcc_difference
from glia_train.metrics import NAMES, compare

Floats = npt.NDArray[np.float64]


def normal_pair(rng: np.random.Generator, rho: float, count: int) -> tuple[Floats, Floats]:
    labels = rng.normal(size=count)
    return rho * labels + math.sqrt(1 - rho**2) * rng.normal(size=count), labels


def each(count: int) -> list[str]:
    """Every picture a group of its own."""
    return [f"{i:05}" for i in range(count)]


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_every_metric_has_an_interval_around_its_value() -> None:
    scores, labels = normal_pair(np.random.default_rng(1), 0.7, 200)
    found = intervals(scores, labels, each(200), seed=0, resamples=300)
    assert set(found) == set(NAMES)
    for name, value in compare(scores, labels).to_dict().items():
        assert found[name].low < value < found[name].high, name


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_intervals_hold_the_truth_as_often_as_they_say(rho: float) -> None:
    rng = np.random.default_rng(2)
    truth = 6 / math.pi * math.asin(rho / 2)  # Spearman's correlation of a normal pair
    held = 0
    for seed in range(150):
        scores, labels = normal_pair(rng, rho, 80)
        found = intervals(scores, labels, each(80), seed=seed, names=["srcc"], resamples=120)["srcc"]
        held += found.low <= truth <= found.high
    assert 0.89 <= held / 150 <= 0.99  # 95 %, within three standard errors


def test_pictures_of_one_content_are_drawn_together() -> None:
    rng = np.random.default_rng(12)

    def draw(contents: int) -> tuple[Floats, Floats]:
        """Five pictures a content, which share most of their quality, and of the model's error on them."""
        quality, error = rng.normal(size=(contents, 1)), rng.normal(size=(contents, 1))
        labels = quality + 0.5 * rng.normal(size=(contents, 5))
        scores = 0.8 * quality + 0.6 * error + 0.5 * rng.normal(size=(contents, 5))
        return scores.ravel(), labels.ravel()

    truth = spearmanr(*draw(50_000)).statistic
    held = {"by content": 0, "by picture": 0}
    for seed in range(80):
        scores, labels = draw(40)
        for way, groups in (("by content", [f"{i // 5:05}" for i in range(200)]), ("by picture", each(200))):
            found = intervals(scores, labels, groups, seed=seed, names=["srcc"], resamples=120)["srcc"]
            held[way] += found.low <= truth <= found.high
    assert held["by content"] / 80 > 0.86  # 95 %, but for 40 contents and three standard errors
    assert held["by picture"] / 80 < 0.86


def test_plcc_has_the_width_of_fisher_s_interval() -> None:
    scores, labels = normal_pair(np.random.default_rng(3), 0.6, 1000)
    found = intervals(scores, labels, each(1000), seed=0, names=["plcc"], resamples=300)["plcc"]
    assert width(found) == pytest.approx(2 * 1.96 * (1 - 0.6**2) / math.sqrt(1000), rel=0.2)


def test_copies_in_a_group_add_nothing() -> None:
    scores, labels = normal_pair(np.random.default_rng(4), 0.7, 80)
    copies = 4
    many = [np.repeat(values, copies) for values in (scores, labels)]
    alone = intervals(scores, labels, each(80), seed=0, resamples=400)
    grouped = intervals(*many, list(np.repeat(each(80), copies)), seed=0, resamples=400)
    apart = intervals(*many, each(80 * copies), seed=0, resamples=400)
    for name in ("srcc", "krcc", "plcc"):
        # Four copies of each picture tell no more than the picture itself.
        assert width(grouped[name]) == pytest.approx(width(alone[name]), rel=0.1), name
        # Drawn one by one they would halve the interval.
        assert width(grouped[name]) > 1.6 * width(apart[name]), name


def test_groups_of_unequal_sizes_are_drawn_whole() -> None:
    rng = np.random.default_rng(5)
    labels = np.concatenate([np.full(20, 1.0), rng.normal(size=40)])
    scores = np.concatenate([np.full(20, 1.0), rng.normal(size=40)])
    groups = ["twenty alike"] * 20 + each(40)
    found = intervals(scores, labels, groups, seed=0, names=["srcc"])["srcc"]
    # A resample without the large group, a third of them, has no correlation; one with it three times has much.
    assert width(found) > 1.3 * width(intervals(scores, labels, each(60), seed=0, names=["srcc"])["srcc"])


def test_the_seed_alone_decides() -> None:
    scores, labels = normal_pair(np.random.default_rng(6), 0.7, 60)
    groups = [f"{i // 3:05}" for i in range(60)]
    first = intervals(scores, labels, groups, seed=1, resamples=100)
    assert intervals(scores, labels, groups, seed=1, resamples=100) == first
    assert intervals(scores, labels, groups, seed=2, resamples=100) != first
    back = intervals(scores[::-1], labels[::-1], groups[::-1], seed=1, resamples=100)
    for name in NAMES:
        assert back[name].low == pytest.approx(first[name].low, rel=1e-3)


@pytest.mark.parametrize("count", [0, 1, MIN_GROUPS - 1])
def test_too_few_groups_have_no_interval(count: int) -> None:
    scores, labels = normal_pair(np.random.default_rng(7), 0.7, 4 * count)
    assert intervals(scores, labels, each(count) * 4, seed=0) == {}
    assert intervals(scores[:3], labels[:3], each(count * 4)[:3], seed=0) == {}
    assert srcc_difference(scores, labels, labels, each(count) * 4, seed=0).interval is None


def test_what_is_not_defined_has_no_interval() -> None:
    labels = np.arange(20.0)
    assert intervals(np.ones(20), labels, each(20), seed=0) == {}
    # The one score that differs is missing from a third of the resamples.
    assert intervals([*np.ones(19), 2], labels, each(20), seed=0, names=["srcc"]) == {}


def test_the_difference_of_paired_models() -> None:
    rng = np.random.default_rng(8)
    better, labels = normal_pair(rng, 0.8, 300)
    worse = better + 0.5 * rng.normal(size=300)
    found = srcc_difference(better, worse, labels, each(300), seed=0)
    assert found.pictures == 300
    assert found.first == pytest.approx(spearmanr(better, labels).statistic)
    assert found.second == pytest.approx(spearmanr(worse, labels).statistic)
    assert found.interval is not None
    assert found.interval.low < found.value < found.interval.high
    assert found.interval.excludes_zero
    # The models err on the same pictures, so that their difference is known better than either figure.
    own = intervals(better, labels, each(300), seed=0, names=["srcc"])["srcc"]
    assert width(found.interval) < width(own)
    turned = srcc_difference(worse, better, labels, each(300), seed=0)
    assert turned.interval is not None
    assert (turned.interval.low, turned.interval.high) == pytest.approx((-found.interval.high, -found.interval.low))


def test_equal_models_do_not_differ() -> None:
    scores, labels = normal_pair(np.random.default_rng(9), 0.8, 100)
    found = srcc_difference(scores, 3 * scores + 1, labels, each(100), seed=0, resamples=100)
    assert found.interval is not None
    assert (found.value, found.interval.low, found.interval.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert not found.interval.excludes_zero


def test_models_of_one_quality_rarely_seem_to_differ() -> None:
    rng = np.random.default_rng(10)
    seemed = 0
    for seed in range(60):
        labels = rng.normal(size=80)
        first, second = labels + rng.normal(size=80), labels + rng.normal(size=80)
        found = srcc_difference(first, second, labels, each(80), seed=seed, resamples=120)
        assert found.interval is not None
        seemed += found.interval.excludes_zero
    assert seemed <= 9  # of 60, where 3 are expected


def test_lists_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="lists of one length"):
        intervals([1, 2, 3], [1, 2, 3], ["a"], seed=0)
    with pytest.raises(UsageError, match="lists of one length"):
        srcc_difference([1, 2, 3], [1, 2], [1, 2, 3], each(3), seed=0)
