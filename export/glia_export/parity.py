"""Parity of the exported graphs: their scores of photographs are compared with those of PyTorch FP32 on the CPU.

Scores are compared if the model has a score range. The score of a model that was never calibrated has no unit, so
its features are compared instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from glia_export import trace
from glia_rt.backends.quiet import import_engine
from glia_rt.bundle import GRAPHS
from glia_rt.contract import IMAGE, SCORE, Contract
from glia_rt.errors import MissingPackageError, ParityError
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.names import display_name
from glia_rt.pixels.views import make_inputs
from glia_rt.samples import stack
from glia_rt.verify import FEATURE_LIMITS, SCORE_LIMITS, Parity, compare_features, compare_scores
from glia_train.models.base import Model

SELFTEST: Final = Path(__file__).parent / "selftest"
BATCHES: Final = (1, 3, 8)
#: Largest difference between the inputs that an image graph makes and numpy's: grey levels, and the share of values
#: that may differ at all.
RULE_LIMITS: Final = (1, 1e-3)


@dataclass(frozen=True)
class Picture:
    """A photograph that parity is measured on: its pixels, uint8 (H, W, 3), and the model's inputs by name."""

    name: str
    pixels: Pixels
    inputs: Mapping[str, Pixels]


@dataclass(frozen=True)
class Answers:
    """The answers of a model or a graph: scores (N,) and features (N, D), float32.

    Attributes:
        scores: Scores, on the model's scale if it is calibrated.
        features: What the head reads. The width is 0 if features were not asked for.
        inputs: The inputs that the rules inside an image graph made, by name, if they were asked for.
    """

    scores: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    inputs: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)


def selftest_pictures() -> list[Path]:
    """Return the six photographs that every bundle carries."""
    return sorted(SELFTEST.glob("*.png"))


def read_pictures(images: Iterable[Any], contract: Contract) -> list[Picture]:
    """Return the selftest's six photographs, then the user's.

    Raises:
        BadImageError: One of `images` cannot be read.
    """
    own = selftest_pictures()
    pictures = []
    for path in (*own, *images):
        pixels = read_image(path)
        name = path.name if path in own else display_name(path)
        pictures.append(Picture(name, pixels, make_inputs(pixels, contract)))
    return pictures


def input_batches(pictures: Sequence[Picture], batch: int = 8) -> Iterable[list[Tensor]]:
    """Yield the inputs of all pictures in batches, uint8 (N, *shape) each, in the order of the contract."""
    for start in range(0, len(pictures), batch):
        stacked = stack([picture.inputs for picture in pictures[start : start + batch]])
        yield [torch.from_numpy(array) for array in stacked.values()]


def run_model(model: Model, pictures: Sequence[Picture]) -> Answers:
    """Return the answers of PyTorch on the CPU for pictures, in the model's own dtypes."""
    scores, features = [], []
    with torch.inference_mode():
        for inputs in input_batches(pictures):
            found = model.features(*inputs)
            features.append(found.float().numpy())
            scores.append(model.calibrated(model.raw_score(found)).numpy())
    return Answers(np.concatenate(scores), np.concatenate(features))


def compare(
    what: str,
    found: Answers,
    reference: Answers,
    pictures: Sequence[Picture],
    contract: Contract,
    limit: str,
) -> Parity:
    """Compare answers with those of PyTorch FP32; `limit` is a key of `glia_rt.verify.SCORE_LIMITS`."""
    names = [picture.name for picture in pictures]
    if contract.score.span is None:
        return compare_features(what, found.features, reference.features, names, limit=FEATURE_LIMITS[limit])
    span = contract.score.span
    return compare_scores(what, found.scores, reference.scores, names, span=span, limit=SCORE_LIMITS[limit])


def check_views(
    folder: Path,
    graph: onnx.ModelProto,
    precision: str,
    pictures: Sequence[Picture],
    reference: Answers,
    contract: Contract,
) -> list[Parity]:
    """Run a views graph in ONNX Runtime at several batch sizes, and compare its answers with the reference."""
    name = GRAPHS["views", precision]
    run = _session(folder / name, graph, contract)
    rows = []
    for batch in BATCHES:
        found = []
        for start in range(0, len(pictures), batch):
            chosen = [pictures[i % len(pictures)] for i in range(start, start + batch)]
            found.append(run(stack([picture.inputs for picture in chosen])))
        merged = Answers(
            np.concatenate([each.scores for each in found])[: len(pictures)],
            np.concatenate([each.features for each in found])[: len(pictures)],
        )
        what = f"{name}{_graph_only(precision)}, batch {batch}"
        rows.append(compare(what, merged, reference, pictures, contract, precision))
    return rows


def check_image(
    folder: Path,
    graph: onnx.ModelProto,
    precision: str,
    model: Model,
    pictures: Sequence[Picture],
    contract: Contract,
) -> list[Parity]:
    """Run an image graph in ONNX Runtime, and compare its answers with PyTorch's. Each batch has one picture size.

    With a score range, the scores are compared with PyTorch's on the inputs that numpy's rules make. Without one, two
    things are compared: the inputs that the traced rules make with those of numpy's rules, and the features with
    PyTorch's on the inputs of the traced rules. On other inputs, the error of the features would show how much a grey
    level moves an untrained model.

    Raises:
        ParityError: The inputs that the traced rules make are off.
    """
    name = GRAPHS["image", precision]
    run = _session(folder / name, graph, contract)
    rows = []
    for i, batch in enumerate(BATCHES):
        # Batch 1 runs all picture sizes. Each larger batch runs one size of the selftest, because a user's picture may
        # be huge.
        sizes = pictures if batch == 1 else [pictures[i]]
        chosen = [_shifted(picture, shift, contract) for picture in sizes for shift in range(batch)]
        found = []
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            found.append(run({IMAGE: np.stack([picture.pixels for picture in part])}))
        if contract.score.span is None:
            made = [{key: array[i] for key, array in f.inputs.items()} for f in found for i in range(len(f.scores))]
            _require_rules(name, made, chosen)
            chosen = [Picture(p.name, p.pixels, inputs) for p, inputs in zip(chosen, made, strict=True)]
        reference = run_model(model, chosen)
        merged = Answers(
            np.concatenate([each.scores for each in found]), np.concatenate([each.features for each in found])
        )
        limit = "image-fp32" if precision == "fp32" else precision
        what = f"{name}{_graph_only(precision)}, batch {batch}"
        rows.append(compare(what, merged, reference, chosen, contract, limit))
    return rows


def require_onnxruntime() -> None:
    """Check that ONNX Runtime, which checks the graphs, is installed. An export calls this before its work.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import_engine("onnxruntime")
    except ImportError as error:
        raise MissingPackageError("onnxruntime, which checks the graphs,", "export,cpu") from error


def _graph_only(precision: str) -> str:
    """Return the mark of rows that check the graph alone, which are those of FP16.

    ONNX Runtime's CPU path multiplies halves in wider arithmetic, so it checks an FP16 graph, not its numbers.
    """
    return " (graph only)" if precision == "fp16" else ""


def _shifted(picture: Picture, shift: int, contract: Contract) -> Picture:
    """Return another picture of the same size: the given picture, rolled."""
    if shift == 0:
        return picture
    pixels = np.roll(picture.pixels, (13 * shift, 29 * shift), axis=(0, 1))
    return Picture(f"{picture.name} rolled by {shift}", pixels, make_inputs(pixels, contract))


def _require_rules(name: str, made: Sequence[Mapping[str, Pixels]], pictures: Sequence[Picture]) -> None:
    levels, share = RULE_LIMITS
    for inputs, picture in zip(made, pictures, strict=True):
        for key, expected in picture.inputs.items():
            off = np.abs(inputs[key].astype(np.int16) - expected)
            if off.max() > levels or (off > 0).mean() > share:
                raise ParityError(
                    f"{name}: {key} of {picture.name} is off by {off.max()} grey levels, {(off > 0).mean():.2%} of the "
                    f"values differ; the limits are {levels} and {share:.1%}"
                )


def _session(
    path: Path, graph: onnx.ModelProto, contract: Contract
) -> Callable[[Mapping[str, npt.NDArray[np.uint8]]], Answers]:
    """Return the function that runs a graph.

    It runs the file itself if the scores have a unit. Otherwise it runs `graph`, which also gives the features.
    """
    ort = import_engine("onnxruntime")

    options = ort.SessionOptions()
    options.log_severity_level = 3
    source = path if contract.score.span is not None else graph.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    # The outputs of an image graph after the first two are the inputs that its rules make, in the contract's order.
    names = [one.name for one in contract.inputs]

    def run(feeds: Mapping[str, npt.NDArray[np.uint8]]) -> Answers:
        values = dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))
        made = [value.astype(np.uint8) for key, value in values.items() if key not in (SCORE, trace.FEATURES)]
        features = values.get(trace.FEATURES, np.zeros((len(values[SCORE]), 0), np.float32))
        return Answers(values[SCORE], features, dict(zip(names, made, strict=False)))

    return run
