"""Losses and metrics against plain NumPy, and what happens where they are not defined."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import curve_fit
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from glia_rt.errors import UsageError
from glia_train.loss import LOSSES, LossName, mse_rho_loss, plcc_loss
from glia_train.metrics import ScoreMapping, compare, fit_mapping

Floats = npt.NDArray[np.float64]


def sample(correlation: float = 0.7, count: int = 40) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(3)
    labels = rng.normal(size=count)
    return correlation * labels + math.sqrt(1 - correlation**2) * rng.normal(size=count), 60 + 15 * labels


def reference_mse_rho(prediction: Floats, label: Floats) -> float:
    n = len(label)
    y_hat = [(p - sum(prediction) / n) / math.sqrt(sum((q - sum(prediction) / n) ** 2 for q in prediction) / n)
             for p in prediction]  # fmt: skip
    y = [(p - sum(label) / n) / math.sqrt(sum((q - sum(label) / n) ** 2 for q in label) / n) for p in label]
    rho = sum(a * b for a, b in zip(y_hat, y, strict=True)) / n
    first = sum((a - b) ** 2 for a, b in zip(y_hat, y, strict=True)) / n / 4
    second = sum((rho * a - b) ** 2 for a, b in zip(y_hat, y, strict=True)) / n / 4
    return (first + second) / 2


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.7, 1.0])
def test_losses_are_the_published_formulas(correlation: float) -> None:
    prediction, label = sample(correlation)
    rho = np.corrcoef(prediction, label)[0, 1]
    loss = mse_rho_loss(torch.tensor(prediction), torch.tensor(label)).item()
    assert loss == pytest.approx(reference_mse_rho(prediction, label), abs=1e-12)
    assert loss == pytest.approx((1 - rho) * (3 + rho) / 8, abs=1e-12)
    assert plcc_loss(torch.tensor(prediction), torch.tensor(label)).item() == pytest.approx((1 - rho) / 2, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_ignore_scale_and_offset(name: LossName) -> None:
    prediction, label = (torch.tensor(values) for values in sample())
    expected = LOSSES[name](prediction, label)
    torch.testing.assert_close(LOSSES[name](1e-3 * prediction - 7, 20 * label + 3), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("constant", ["prediction", "label", "both"])
def test_losses_and_gradients_are_finite_without_variance(name: LossName, constant: str) -> None:
    prediction, label = (torch.tensor(values, dtype=torch.float32) for values in sample(count=8))
    if constant != "label":
        prediction = torch.full_like(prediction, 0.3)
    if constant != "prediction":
        label = torch.full_like(label, 3.0)
    prediction.requires_grad_()
    loss = LOSSES[name](prediction, label)
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_steps_raise_the_correlation(name: LossName) -> None:
    prediction, label = (torch.tensor(values) for values in sample(0.0))
    prediction.requires_grad_()
    before = np.corrcoef(prediction.detach(), label)[0, 1]
    for _ in range(50):
        LOSSES[name](prediction, label).backward()
        with torch.no_grad():
            prediction -= 5 * prediction.grad
            prediction.grad.zero_()
    assert np.corrcoef(prediction.detach(), label)[0, 1] > before + 0.3


def test_rank_correlations_against_their_definitions() -> None:
    scores, labels = sample()
    scores[:5] = scores[5]  # ties
    metrics = compare(scores, labels)
    assert metrics.srcc == pytest.approx(np.corrcoef(rankdata(scores), rankdata(labels))[0, 1])
    pairs = [(i, j) for i in range(40) for j in range(i)]
    a = np.array([np.sign(scores[i] - scores[j]) for i, j in pairs])
    b = np.array([np.sign(labels[i] - labels[j]) for i, j in pairs])
    assert metrics.krcc == pytest.approx((a @ b) / math.sqrt((a @ a) * (b @ b)))


def test_plcc_and_rmse_come_after_the_logistic() -> None:
    rng = np.random.default_rng(4)
    scores = rng.uniform(-3, 3, 200)
    labels = 10 + 80 / (1 + np.exp(-(scores - 0.5) / 0.4)) + rng.normal(scale=2, size=200)
    metrics = compare(scores, labels)
    assert metrics.note == ""
    assert metrics.plcc > 0.995 > np.corrcoef(scores, labels)[0, 1] + 0.03
    assert metrics.rmse == pytest.approx(2, rel=0.1)
    mapped = fit_mapping(scores, labels).apply(scores)
    assert metrics.rmse == pytest.approx(math.sqrt(np.mean((mapped - labels) ** 2)))
    assert (np.diff(mapped[np.argsort(scores)]) >= 0).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 5), (0, 100), (-1e-3, 1e-3)])
def test_metrics_do_not_depend_on_the_unit(low: float, high: float) -> None:
    scores, labels = sample()
    scale = (high - low) / np.ptp(labels)
    metrics, moved = compare(scores, labels), compare(low + scale * (30 + 20 * scores), low + scale * labels)
    assert moved.srcc == pytest.approx(metrics.srcc)
    assert moved.plcc == pytest.approx(metrics.plcc, abs=1e-4)
    assert moved.rmse == pytest.approx(metrics.rmse * scale, rel=1e-3)


@pytest.mark.parametrize("slope", [1.0, -2.0])
def test_an_exact_line_is_fitted(slope: float) -> None:
    labels = np.linspace(0, 10, 30)
    metrics = compare(slope * labels, labels)
    assert metrics.plcc == pytest.approx(1, abs=1e-3)
    assert metrics.srcc == pytest.approx(math.copysign(1, slope))


@pytest.mark.parametrize(
    ("scores", "labels", "note"),
    [
        ([1.0] * 6, [1, 2, 3, 4, 5, 6], "the same score"),
        ([1, 2, 3, 4, 5, 6], [2.0] * 6, "the same label"),
        ([1, 2, math.nan, 4, 5, 6], [1, 2, 3, 4, 5, 6], "not finite"),
        ([1], [1], "fewer than 2"),
        ([], [], "fewer than 2"),
    ],
)
def test_what_is_not_defined_is_nan_with_a_reason(scores: list[float], labels: list[float], note: str) -> None:
    metrics = compare(scores, labels)
    assert all(math.isnan(value) for value in (metrics.srcc, metrics.krcc, metrics.plcc, metrics.rmse))
    assert note in metrics.note
    assert metrics.to_dict() == {}


def test_too_few_pictures_for_the_logistic() -> None:
    metrics = compare([1, 2, 3, 4], [1, 3, 2, 4])
    assert metrics.srcc == pytest.approx(0.8)
    assert math.isnan(metrics.plcc)
    assert "5 pictures" in metrics.note
    assert set(metrics.to_dict()) == {"srcc", "krcc"}


def test_rank_correlations_worked_by_hand() -> None:
    # Differences of ranks 1, 1, 0, 1, 1: 1 - 6 * 4 / (5 * 24). Of ten pairs two are turned around.
    metrics = compare([1, 2, 3, 4, 5], [2, 1, 3, 5, 4])
    assert metrics.srcc == pytest.approx(0.8)
    assert metrics.krcc == pytest.approx(0.6)


def test_ties_worked_by_hand() -> None:
    # Ranks 1.5, 1.5, 3.5, 3.5 against 1, 2, 3, 4. Of six pairs four agree, and two are tied in the scores.
    metrics = compare([0, 0, 1, 1], [1, 2, 3, 4])
    assert metrics.srcc == pytest.approx(4 / math.sqrt(4 * 5))
    assert metrics.krcc == pytest.approx(4 / math.sqrt(4 * 6))


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_metrics_are_scipy_s(digits: int) -> None:
    scores, labels = sample(0.6, 300)
    scores, labels = scores.round(digits), labels.round(digits)
    metrics = compare(scores, labels)
    assert metrics.srcc == pytest.approx(spearmanr(scores, labels).statistic)
    assert metrics.krcc == pytest.approx(kendalltau(scores, labels).statistic)

    def logistic(x: Floats, b1: float, b2: float, b3: float, b4: float) -> Floats:
        return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4)))

    start = [labels.max(), labels.min(), scores.mean(), 0.5]
    found, _ = curve_fit(logistic, scores, labels, p0=start, maxfev=100_000)
    mapped = logistic(scores, *found)
    assert metrics.mapping == "logistic"
    assert metrics.plcc == pytest.approx(pearsonr(mapped, labels).statistic, abs=1e-6)
    assert metrics.rmse == pytest.approx(math.sqrt(np.mean((mapped - labels) ** 2)), rel=1e-6)


def test_a_fit_that_does_not_converge_falls_back_to_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glia_train.metrics.MAX_EVALUATIONS", 2)
    scores, labels = sample()
    metrics = compare(scores, labels)
    assert metrics.mapping == "linear"
    assert metrics.note.startswith(
        "the logistic was not fitted: it did not converge in 2 evaluations; PLCC and RMSE are"
    )
    assert metrics.plcc == pytest.approx(pearsonr(scores, labels).statistic)
    line = np.polynomial.Polynomial.fit(scores, labels, 1)(scores)
    assert metrics.rmse == pytest.approx(math.sqrt(np.mean((line - labels) ** 2)))
    assert set(metrics.to_dict()) == {"srcc", "krcc", "plcc", "rmse"}


def test_the_correlation_of_a_falling_line_is_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glia_train.metrics.MAX_EVALUATIONS", 2)
    scores, labels = sample()
    metrics = compare(-scores, labels)
    assert metrics.mapping == "linear"
    assert metrics.plcc == pytest.approx(-pearsonr(scores, labels).statistic)


def test_a_fit_that_ends_in_a_constant_falls_back_to_a_line() -> None:
    # Each score has the same mean label, so that no curve does better than a constant.
    metrics = compare([2, 1, 0, 2, 2], [1, 1, 1, 0, 2])
    assert metrics.mapping == "linear"
    assert "it ended in a constant" in metrics.note
    assert metrics.plcc == pytest.approx(0, abs=1e-12)
    assert metrics.rmse == pytest.approx(math.sqrt(2 / 5))


def test_a_fit_is_never_worse_than_a_line() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1, 1e3):
        for _ in range(50):
            scores, labels = scale * rng.normal(size=12), rng.normal(size=12)
            rmse = compare(scores, labels).rmse
            assert rmse <= labels.std() * math.sqrt(1 - np.corrcoef(scores, labels)[0, 1] ** 2) + 1e-2


def test_a_fit_may_start_from_another() -> None:
    scores, labels = sample(0.8, 400)
    scores = np.sinh(2 * scores)
    start = fit_mapping(scores[:200], labels[:200])
    alone, started = compare(scores, labels), compare(scores, labels, start=start)
    assert start.kind == "logistic"
    assert started.rmse == pytest.approx(alone.rmse, rel=1e-3)
    assert started.plcc == pytest.approx(alone.plcc, abs=1e-3)


def test_a_line_to_start_from_stays_a_line() -> None:
    scores, labels = sample()
    metrics = compare(scores, labels, start=ScoreMapping("linear", (1.0, 0.0), "why"))
    assert (metrics.mapping, metrics.note) == ("linear", "why")
    assert metrics.plcc == pytest.approx(pearsonr(scores, labels).statistic)


def test_two_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="one length"):
        compare([1, 2, 3], [1, 2])
