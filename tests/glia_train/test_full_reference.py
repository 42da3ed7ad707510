"""Full-reference metrics."""

from __future__ import annotations

import numpy as np
import pytest

from glia_train.full_reference import METRICS, ssim


def test_ssim_is_wang_s_on_each_channel() -> None:
    # Of flat pictures only the first factor is left: (2 a b + C1) / (a^2 + b^2 + C1), C1 = (0.01 * 255)^2.
    a = np.full((32, 32, 3), (100, 50, 200), np.uint8)
    b = np.full((32, 32, 3), (100, 50, 120), np.uint8)
    c1 = 2.55**2
    blue = (2 * 200 * 120 + c1) / (200**2 + 120**2 + c1)
    assert ssim(a, b) == pytest.approx((1 + 1 + blue) / 3)
    # One bright pixel in the middle of the window: its Gaussian weight w gives variance 255^2 w (1 - w).
    dot = np.zeros((11, 11, 3), np.uint8)
    dot[5, 5] = 255
    w = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = (w / w.sum())[5] ** 2
    c2 = (0.03 * 255) ** 2
    expected = c1 / ((255 * w) ** 2 + c1) * c2 / (255**2 * w * (1 - w) + c2)
    assert ssim(np.zeros_like(dot), dot) == pytest.approx(expected)


def test_larger_pictures_are_reduced_first() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (256, 300, 3), np.uint8)
    other = rng.integers(0, 256, (256, 300, 3), np.uint8)
    twice = [one.repeat(2, axis=0).repeat(2, axis=1) for one in (small, other)]
    assert ssim(*twice) == pytest.approx(ssim(small, other))
    odd = [np.pad(one, ((0, 1), (0, 1), (0, 0))) for one in twice]  # what is left over at the edges is dropped
    assert ssim(*odd) == pytest.approx(ssim(small, other))


def test_labels_rise_with_quality_from_1_to_5() -> None:
    for name, metric in METRICS.items():
        assert name == metric.name
        picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        best = metric.measure(picture, picture)
        worst = metric.measure(picture, 255 - picture)
        assert metric.to_score(best) == pytest.approx(5)
        assert 1 <= metric.to_score(worst) < 2
    assert ssim(picture, 255 - picture) < 0
    assert METRICS["ssim"].to_score(-0.5) == 1
    assert METRICS["ssim"].to_score(0.5) == 3
