from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glia_rt import Scorer
from glia_rt.backends.choose import CPU_BACKENDS, default_precision
from glia_rt.errors import BundleError, ParityError
from glia_rt.verify import (
    FEATURE_LIMITS,
    SCORE_LIMITS,
    VIEW_LIMIT,
    Parity,
    compare_features,
    compare_scores,
    require,
    selftest,
)

EditedBundle = Callable[[Callable[[Path, dict[str, Any]], None]], Path]
NAMES = ["a.png", "b.png", "c.png"]


def array(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


# Comparing


def test_scores_are_compared_as_a_share_of_the_range() -> None:
    row = compare_scores("engine", array(1, 2.5, 3), array(1, 2, 3.25), NAMES, span=4, limit=0.125)
    assert row == Parity("engine", "score", 0.125, 0.125, "b.png", 3)
    assert row.passed, "a limit may be reached"
    assert not compare_scores("engine", array(1, 2.5, 3), array(1, 2, 3), NAMES, span=4, limit=0.124).passed


def test_scores_below_the_reference_count_too() -> None:
    row = compare_scores("engine", array(1, 2, 3), array(1, 2, 7), NAMES, span=4, limit=0.5)
    assert (row.worst, row.picture, row.passed) == (1.0, "c.png", False)


def test_features_are_compared_by_the_relative_length_of_their_difference() -> None:
    reference = np.array([[3, 4], [0, 10], [1, 0]], np.float32)
    features = np.array([[3, 4], [0, 11], [1, 0.05]], np.float32)
    row = compare_features("graph", features, reference, NAMES, limit=0.2)
    assert (row.measure, row.picture, row.passed) == ("feature", "b.png", True)
    assert row.worst == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(wrong: float) -> None:
    row = compare_scores("engine", array(9, wrong, 3), array(1, 2, 3), NAMES, span=1, limit=np.inf / 2)
    assert (row.picture, row.worst) == ("b.png", np.inf)
    features = np.array([[1, 1], [1, wrong], [1, 1]], np.float32)
    other = compare_features("engine", features, np.ones((3, 2), np.float32), NAMES, limit=1e9)
    assert (other.picture, other.passed) == ("b.png", False)
    assert not compare_scores("engine", array(9, wrong, 3), array(1, 2, 3), NAMES, span=1, limit=1e9).passed


def test_a_row_as_json_types() -> None:
    assert Parity("engine", "score", 0.25, 0.5, "a.png", 3).to_dict() == {
        "what": "engine",
        "measure": "score",
        "worst": 0.25,
        "limit": 0.5,
        "picture": "a.png",
        "pictures": 3,
        "passed": True,
    }


def test_require_passes_what_passed() -> None:
    require([])
    require([Parity("engine", "score", 1e-6, 1e-5, "a.png", 3)])


def test_require_names_the_comparison_that_is_furthest_over_its_limit() -> None:
    rows = [
        Parity("good", "score", 0.0, 1e-5, "a.png", 6),
        Parity("far in figures", "feature", 0.5, 0.25, "b.png", 6),
        Parity("far over", "score", 1e-3, 1e-5, "c.png", 6),
    ]
    with pytest.raises(ParityError) as caught:
        require(rows)
    assert str(caught.value) == ("far over: off by 0.001 of the score range, the limit is 1e-05; worst picture: c.png")
    assert caught.value.exit_status == 4
    with pytest.raises(ParityError, match=r"off by 0\.5 relative L2 error of the features, the limit is 0\.25"):
        require(rows[:2])


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_require_refuses_what_is_not_finite(worst: float) -> None:
    with pytest.raises(ParityError, match=f"off by {worst} of the score range"):
        require([Parity("engine", "score", worst, 1e-5, "a.png", 3)])


def test_limits() -> None:
    assert SCORE_LIMITS == {"fp32": 1e-5, "image-fp32": 1e-3, "fp16": 5e-3, "bf16": 1e-2}
    assert FEATURE_LIMITS.keys() == SCORE_LIMITS.keys() - {"bf16"}  # no graph is checked in bf16


# The selftest


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_the_selftest_passes_on_what_was_exported(tiny_bundle: Path, name: str) -> None:
    for precision in {"fp32", default_precision(name)}:
        with Scorer.open(tiny_bundle, name, precision=precision) as scorer:
            views, scores = selftest(scorer)
        assert (views.what, views.measure, views.limit, views.pictures) == (
            "selftest views",
            "grey levels",
            VIEW_LIMIT,
            6,
        )
        assert (scores.what, scores.measure) == (f"selftest scores, {name} {precision}", "score")
        assert (scores.limit, scores.pictures) == (SCORE_LIMITS[precision], 6)
        require([views, scores])


def test_the_selftest_holds_a_graph_that_samples_to_the_limit_of_sampling(tiny_bundle: Path) -> None:
    with Scorer.open(tiny_bundle, "onnxruntime", "image") as scorer:
        rows = selftest(scorer)
    assert rows[1].limit == SCORE_LIMITS["image-fp32"]
    require(rows)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_the_selftest_fails_on_other_weights(shifted_bundle: Callable[[float], Path], name: str) -> None:
    bundle = shifted_bundle(1e-3)  # 2.5e-4 of the range
    with Scorer.open(bundle, name, precision="fp32") as scorer:
        rows = selftest(scorer)
    assert [row.passed for row in rows] == [True, False]
    assert rows[1].worst == pytest.approx(2.5e-4, rel=0.05)
    with pytest.raises(ParityError, match=rf"selftest scores, {name} fp32: off by 0\.00025 of the score range"):
        require(rows)


def test_the_selftest_fails_where_views_are_made_otherwise(edited_bundle: EditedBundle) -> None:
    def edit(folder: Path, _manifest: dict[str, Any]) -> None:
        for name, change in [("cat.global_view.png", 1), ("rocket.fragments.png", 2)]:
            path = folder / "selftest" / name
            pixels = np.array(Image.open(path))
            pixels[5, 7, 1] += change if pixels[5, 7, 1] < 128 else -change
            Image.fromarray(pixels).save(path)

    with Scorer.open(edited_bundle(edit)) as scorer:
        rows = selftest(scorer)
    assert (rows[0].worst, rows[0].picture, rows[0].passed) == (2.0, "rocket.png", False)


def test_scores_are_made_from_the_views_of_the_export(edited_bundle: EditedBundle) -> None:
    """Another Pillow may round a view otherwise: that is no error of the engine."""

    def edit(folder: Path, _manifest: dict[str, Any]) -> None:
        Image.open(folder / "selftest/retina.png").rotate(90).save(folder / "selftest/cat.png")

    with Scorer.open(edited_bundle(edit)) as scorer:
        rows = selftest(scorer)
    assert [row.passed for row in rows] == [False, True]


def test_a_model_without_a_score_range_is_held_by_its_views_alone(edited_bundle: EditedBundle) -> None:
    def edit(_folder: Path, manifest: dict[str, Any]) -> None:
        manifest["contract"]["score"]["range"] = None

    with Scorer.open(edited_bundle(edit)) as scorer:
        [row] = selftest(scorer)
    assert (row.what, row.passed) == ("selftest views", True)


@pytest.mark.parametrize("name", ["scores.json", "cat.png", "cat.global_view.png", "cat.fragments.png"])
def test_a_damaged_selftest_is_no_parity_failure(tiny_bundle: Path, edited_bundle: EditedBundle, name: str) -> None:
    bundle = edited_bundle(lambda folder, manifest: None)
    content = bytearray((bundle / "selftest" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "selftest" / name).write_bytes(content)
    with Scorer.open(bundle) as scorer, pytest.raises(BundleError, match=rf"{name} is not the file that was exported"):
        selftest(scorer)
