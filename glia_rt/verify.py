"""Parity: is what runs here still the model that was exported? Scores are compared with a reference, in score units.

A parity limit is a share of the score range. A model that was never calibrated has no score range. Such a model is held
by the relative L2 error of the features that its head reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from glia_rt.contract import SCORE
from glia_rt.errors import BundleError, ParityError
from glia_rt.machine import cpu_count
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.samples import stack

if TYPE_CHECKING:
    from glia_rt.bundle import Bundle
    from glia_rt.scorer import Scorer

#: The largest |score - reference| allowed, as a share of the score range.
SCORE_LIMITS: Final = {"fp32": 1e-5, "image-fp32": 1e-3, "fp16": 5e-3, "bf16": 1e-2}
#: The largest ||features - reference|| / ||reference|| allowed of an uncalibrated model.
FEATURE_LIMITS: Final = {"fp32": 1e-5, "image-fp32": 1e-5, "fp16": 3e-3}
#: Grey levels that an input may be off by, because another version of Pillow may round otherwise.
VIEW_LIMIT: Final = 1.0
#: The measures of `Parity` in words.
UNITS: Final = {
    "score": "of the score range",
    "feature": "relative L2 error of the features",
    "grey levels": "grey levels",
}


@dataclass(frozen=True)
class Parity:
    """One comparison with the reference.

    Attributes:
        what: What was compared, for example "scorer.onnx, batch 8".
        measure: A key of `UNITS`.
        worst: The largest error, in that measure.
        limit: The largest error allowed.
        picture: The picture of the largest error.
        pictures: How many pictures were compared.
    """

    what: str
    measure: str
    worst: float
    limit: float
    picture: str
    pictures: int

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN never is."""
        return self.worst <= self.limit

    @property
    def unit(self) -> str:
        """The unit of `worst` and `limit`, in words."""
        return UNITS[self.measure]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON types."""
        return asdict(self) | {"passed": self.passed}


def compare_scores(
    what: str,
    scores: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    pictures: Sequence[str],
    *,
    span: float,
    limit: float,
) -> Parity:
    """Hold scores (N,) against reference scores (N,); `span` is the width of the score range."""
    errors = np.abs(scores.astype(np.float64) - reference) / span
    return _worst(what, "score", errors, limit, pictures)


def compare_features(
    what: str,
    features: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    pictures: Sequence[str],
    *,
    limit: float,
) -> Parity:
    """Hold features (N, ...) against reference features of the same shape."""
    reference = reference.astype(np.float64)
    difference, length = (array.reshape(len(array), -1) for array in (features - reference, reference))
    errors = np.linalg.norm(difference, axis=1) / np.linalg.norm(length, axis=1)
    return _worst(what, "feature", errors, limit, pictures)


def _worst(what: str, measure: str, errors: npt.NDArray[np.float64], limit: float, pictures: Sequence[str]) -> Parity:
    errors = np.where(np.isfinite(errors), errors, np.inf)
    at = int(np.argmax(errors))
    return Parity(what, measure, float(errors[at]), limit, pictures[at], len(errors))


def require(rows: Sequence[Parity]) -> None:
    """Raise ParityError for the comparison that is furthest over its limit, if any is."""
    failed = [row for row in rows if not row.passed]
    if failed:
        row = max(failed, key=lambda row: row.worst / row.limit)
        off = f"off by {row.worst:.2g} {row.unit}, the limit is {row.limit:.2g}"
        raise ParityError(f"{row.what}: {off}; worst picture: {row.picture}", rows)


def selftest(scorer: Scorer) -> list[Parity]:
    """Run a bundle's selftest: are the inputs and the scores made here those of the export?

    Returns:
        Two comparisons: one of the inputs, in grey levels, and one of the scores with PyTorch FP32's. A model that was
        never calibrated has the first alone, because its scores have no unit.

    Raises:
        BundleError: The selftest's files are damaged.
    """
    bundle, contract = scorer.bundle, scorer.contract
    rows = bundle.selftest()
    pictures = [row["picture"] for row in rows]
    paths = [bundle.checked_file(f"selftest/{name}") for name in pictures]
    golden = [
        {one.name: _stored_input(bundle, row["inputs"][one.name], one.shape) for one in contract.inputs} for row in rows
    ]
    with ThreadPoolExecutor(cpu_count()) as pool:
        made = list(pool.map(lambda path: make_inputs(read_image(path), contract), paths))
    off = [
        max(int(np.abs(inputs[name].astype(np.int16) - expected[name]).max()) for name in expected)
        for inputs, expected in zip(made, golden, strict=True)
    ]
    found = [_worst("selftest views", "grey levels", np.asarray(off, np.float64), VIEW_LIMIT, pictures)]
    if contract.score.span is not None:
        name, precision = scorer.backend.name, scorer.backend.precision
        if scorer.input == "image":
            scores, limit = scorer.score_batch(paths), SCORE_LIMITS.get(f"image-{precision}", SCORE_LIMITS[precision])
        else:
            # From the export's inputs: how another Pillow rounds shows above, and is not the engine's error.
            scores = scorer.score_views(**stack(golden))
            limit = SCORE_LIMITS[precision]
        golden_scores = np.asarray([row[SCORE] for row in rows], np.float32)
        what = f"selftest scores, {name} {precision}"
        found.append(compare_scores(what, scores, golden_scores, pictures, span=contract.score.span, limit=limit))
    return found


def _stored_input(bundle: Bundle, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return an input that the export stored as a picture, in which all dimensions but the last two are one."""
    stored = read_image(bundle.checked_file(f"selftest/{name}"))
    if stored.size != math.prod(shape):
        raise BundleError(f"{bundle.path}: selftest/{name} is not of the contract's shape; export the checkpoint again")
    return stored.reshape(shape)
