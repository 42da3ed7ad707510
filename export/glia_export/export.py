"""checkpoint.pt -> NAME.glia/: trace, check every graph by running it, and only then let the bundle appear."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from PIL import Image
from torch import Tensor

import glia_rt
from glia_export import graphs, half
from glia_rt.bicubic import Pixels
from glia_rt.bundle import GRAPHS, SUFFIX, file_sha256, new_bundle, write_manifest
from glia_rt.contract import FRAGMENTS, GLOBAL_VIEW, IMAGE, SCORE, Contract
from glia_rt.errors import MissingPackageError, ParityError
from glia_rt.images import display_name, read_image
from glia_rt.sampler import Views, make_views
from glia_rt.verify import FEATURE_LIMITS, SCORE_LIMITS, Parity, compare_features, compare_scores, require
from glia_train.checkpoint import Checkpoint
from glia_train.model import GLIANet

SELFTEST: Final = Path(__file__).parent / "selftest"
BATCHES: Final = (1, 3, 8)
#: The sampler inside an image graph against Pillow: grey levels, and the share of values that may differ at all.
SAMPLER_LIMITS: Final = (1, 1e-3)


@dataclass(frozen=True)
class Picture:
    """A photograph that parity is measured on."""

    name: str
    pixels: Pixels
    views: Views


@dataclass(frozen=True)
class Reference:
    """PyTorch FP32's answers: scores (N,) and cls features (N, D), float32."""

    scores: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Exported:
    """What an export did: the bundle, its parity table, and seconds by stage."""

    path: Path
    parity: Sequence[Parity]
    seconds: dict[str, float]
    sizes: dict[str, int]


def export(
    checkpoint_path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    images: Iterable[str | os.PathLike[str]] = (),
    backbone_weights: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a bundle.

    Args:
        checkpoint_path: What `glia-rt train` wrote.
        output: The bundle, NAME.glia; by default the checkpoint's name with that ending, beside it.
        images: Photographs to measure parity on besides the selftest's.
        backbone_weights: For an adapter-only checkpoint, "hub" or a file.
        overwrite: Replace the bundle if it exists.
        report: Told of each stage as it begins.

    Raises:
        ParityError: A graph's scores are over the limit; no bundle is left.
        BundleError: The checkpoint cannot be used.
        OutputExistsError: The bundle exists and overwrite is False.
        BadImageError: One of `images` cannot be read.
        MissingPackageError: No ONNX Runtime to check the graphs with.
    """
    _require_onnxruntime()
    checkpoint_path = Path(checkpoint_path)
    output = Path(output) if output is not None else checkpoint_path.with_suffix(SUFFIX)
    seconds: dict[str, float] = {}
    stage = _Stages(report, seconds)
    with new_bundle(output, overwrite=overwrite) as folder:
        stage("read the checkpoint")
        checkpoint = Checkpoint.load(checkpoint_path)
        contract = checkpoint.contract
        model = graphs.export_form(checkpoint.build_model(backbone_weights))
        pictures = read_pictures(images, contract)
        stage("score with PyTorch FP32, the reference")
        reference = run_model(model, pictures)
        activations = half.largest_activations(model, view_batches(pictures))
        keep = half.float32_blocks(activations)
        half_model = half.half_copy(model, keep)
        stage("score with PyTorch FP16")
        parity = [
            _compare("PyTorch FP16 on the CPU", run_model(half_model, pictures), reference, pictures, contract, "fp16")
        ]
        require(parity)  # here already: no graph could mend it, and tracing takes long
        opsets: dict[str, int] = {}
        stage("trace the sampler")
        sampler = graphs.trace_sampler(contract)
        for precision, traced in (("fp32", model), ("fp16", half_model)):
            stage(f"trace {precision}")
            opsets[precision] = graphs.opset_for(traced)
            views_graph = graphs.trace_views(traced, contract)
            image_graph = graphs.join(sampler, views_graph)
            files = {"views": views_graph, "image": image_graph}
            for kind, graph in files.items():
                stage(f"write {(name := GRAPHS[kind, precision])}")  # type: ignore[index]
                onnx.save(graphs.finish(graph, contract), folder / name)
                onnx.checker.check_model(folder / name)
            stage(f"check {GRAPHS['views', precision]}")
            parity += _check_views(folder, views_graph, precision, pictures, reference, contract)
            stage(f"check {GRAPHS['image', precision]}")
            parity += _check_image(folder, image_graph, precision, model, pictures, contract)
        require(parity)
        stage("write the selftest and the manifest")
        _write_selftest(folder / "selftest", pictures, reference, contract)
        write_manifest(folder, _manifest(checkpoint, checkpoint_path, opsets, parity, activations, keep))
        sizes = {name: (folder / name).stat().st_size for name in GRAPHS.values()}
    stage.done()
    return Exported(output, parity, seconds, sizes)


def read_pictures(images: Iterable[str | os.PathLike[str]], contract: Contract) -> list[Picture]:
    """The selftest's six photographs, then the user's."""
    selftest = _selftest_pictures()
    pictures = []
    for path in (*selftest, *images):
        pixels = read_image(path)
        name = path.name if path in selftest else display_name(path)
        pictures.append(Picture(name, pixels, make_views(pixels, contract)))
    return pictures


def _selftest_pictures() -> list[Path]:
    return sorted(SELFTEST.glob("*.png"))


def view_batches(pictures: Sequence[Picture], batch: int = 8) -> Iterable[tuple[Tensor, Tensor]]:
    """Views of all pictures in batches, uint8 (N, 224, 224, 3) each."""
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        yield (
            torch.from_numpy(np.stack([p.views.global_view for p in part])),
            torch.from_numpy(np.stack([p.views.fragments for p in part])),
        )


def run_model(model: GLIANet, pictures: Sequence[Picture]) -> Reference:
    """Score pictures with PyTorch on the CPU, in the model's own types."""
    scores, features = [], []
    with torch.inference_mode():
        for global_view, fragments in view_batches(pictures):
            feature = model.features(global_view, fragments)
            features.append(feature.float().numpy())
            scores.append(model.score(feature).numpy())
    return Reference(np.concatenate(scores), np.concatenate(features))


def _compare(
    what: str,
    found: Reference,
    reference: Reference,
    pictures: Sequence[Picture],
    contract: Contract,
    limit: str,
) -> Parity:
    names = [picture.name for picture in pictures]
    if contract.score_span is None:
        return compare_features(what, found.features, reference.features, names, limit=FEATURE_LIMITS[limit])
    span = contract.score_span
    return compare_scores(what, found.scores, reference.scores, names, span=span, limit=SCORE_LIMITS[limit])


def _check_views(
    folder: Path,
    graph: onnx.ModelProto,
    precision: str,
    pictures: Sequence[Picture],
    reference: Reference,
    contract: Contract,
) -> list[Parity]:
    """Run a views graph in ONNX Runtime at several batch sizes."""
    name = GRAPHS["views", precision]
    session = _session(folder / name, graph, contract)
    rows = []
    for batch in BATCHES:
        found = []
        for start in range(0, len(pictures), batch):
            chosen = [pictures[i % len(pictures)] for i in range(start, start + batch)]
            feeds = {
                GLOBAL_VIEW: np.stack([p.views.global_view for p in chosen]),
                FRAGMENTS: np.stack([p.views.fragments for p in chosen]),
            }
            found.append(session(feeds))
        merged = Reference(
            *(np.concatenate([getattr(f, k) for f in found])[: len(pictures)] for k in ("scores", "features"))
        )
        rows.append(
            _compare(f"{name}{_graph_only(precision)}, batch {batch}", merged, reference, pictures, contract, precision)
        )
    return rows


def _check_image(
    folder: Path,
    graph: onnx.ModelProto,
    precision: str,
    model: GLIANet,
    pictures: Sequence[Picture],
    contract: Contract,
) -> list[Parity]:
    """Run an image graph in ONNX Runtime, one picture size a batch.

    With a score range, scores are held against PyTorch behind Pillow's sampler. Without one, the sampler's views are
    held against Pillow's, and the cls feature against PyTorch's on those same views: a feature error would otherwise
    say how much a grey level moves an untrained model.
    """
    name = GRAPHS["image", precision]
    session = _session(folder / name, graph, contract)
    rows = []
    for i, batch in enumerate(BATCHES):
        # Batch 1 over all sizes; the larger batches over one size each, of the selftest, since a user's may be huge.
        sizes = pictures if batch == 1 else [pictures[i]]
        chosen = [_shifted(picture, shift, contract) for picture in sizes for shift in range(batch)]
        found = []
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            found.append(session({IMAGE: np.stack([p.pixels for p in part])}))
        if contract.score_span is None:
            sampled = [Views(*v) for f in found for v in zip(f.global_view, f.fragments, strict=True)]
            _require_sampler(name, sampled, chosen)
            chosen = [Picture(p.name, p.pixels, v) for p, v in zip(chosen, sampled, strict=True)]
        reference = run_model(model, chosen)
        merged = Reference(*(np.concatenate([getattr(f, k) for f in found]) for k in ("scores", "features")))
        limit = "image-fp32" if precision == "fp32" else precision
        rows.append(
            _compare(f"{name}{_graph_only(precision)}, batch {batch}", merged, reference, chosen, contract, limit)
        )
    return rows


def _graph_only(precision: str) -> str:
    """ONNX Runtime's CPU path multiplies halves in wider arithmetic, so it checks an FP16 graph, not its numbers."""
    return " (graph only)" if precision == "fp16" else ""


def _shifted(picture: Picture, shift: int, contract: Contract) -> Picture:
    """Another picture of the same size: this one, rolled."""
    if shift == 0:
        return picture
    pixels = np.roll(picture.pixels, (13 * shift, 29 * shift), axis=(0, 1))
    return Picture(f"{picture.name} rolled by {shift}", pixels, make_views(pixels, contract))


def _require_sampler(name: str, sampled: Sequence[Views], pictures: Sequence[Picture]) -> None:
    levels, share = SAMPLER_LIMITS
    for views, picture in zip(sampled, pictures, strict=True):
        for view in Views._fields:
            off = np.abs(getattr(views, view).astype(np.int16) - getattr(picture.views, view))
            if off.max() > levels or (off > 0).mean() > share:
                raise ParityError(
                    f"{name}: the sampler's {view} of {picture.name} is off by {off.max()} grey levels, "
                    f"{(off > 0).mean():.2%} of the values differ; the limits are {levels} and {share:.1%}"
                )


@dataclass(frozen=True)
class _Found(Reference):
    """A graph's answers; an untrained model's image graph gives its sampled views too."""

    global_view: npt.NDArray[np.uint8] | None = None
    fragments: npt.NDArray[np.uint8] | None = None


def _session(
    path: Path, graph: onnx.ModelProto, contract: Contract
) -> Callable[[dict[str, npt.NDArray[np.uint8]]], Any]:
    """A function that runs a graph: the file itself where scores have a unit, else a copy that also gives features."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    source = path if contract.score_span is not None else graph.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, npt.NDArray[np.uint8]]) -> _Found:
        values = dict(zip(outputs, session.run(outputs, feeds), strict=True))
        views = [v.astype(np.uint8) for k, v in values.items() if k not in (SCORE, graphs.FEATURE)]
        features = values.get(graphs.FEATURE, np.zeros((len(values[SCORE]), 0), np.float32))
        return _Found(values[SCORE], features, *views)

    return run


def _require_onnxruntime() -> None:
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("onnxruntime, which checks the graphs,", "export,cpu") from error


def _write_selftest(folder: Path, pictures: Sequence[Picture], reference: Reference, contract: Contract) -> None:
    folder.mkdir()
    rows = []
    # The user's own pictures come after these. Parity was measured on them, but they stay out.
    for source, picture, score in zip(_selftest_pictures(), pictures, reference.scores, strict=False):
        (folder / picture.name).write_bytes(source.read_bytes())
        row: dict[str, Any] = {"picture": picture.name, SCORE: float(score)}
        for view in Views._fields:
            row[view] = f"{source.stem}.{view}.png"
            Image.fromarray(getattr(picture.views, view)).save(folder / row[view])
        rows.append(row)
    about = (
        "picture -> global_view and fragments (uint8 RGB, exact up to one grey level for another resize) -> score "
        "(PyTorch FP32). Hold a port against these."
    )
    (folder / "scores.json").write_text(
        json.dumps({"about": about, "contract": contract.to_dict(), "pictures": rows}, indent=2)
    )
    (folder / "SOURCES.md").write_bytes((SELFTEST / "SOURCES.md").read_bytes())


def _manifest(
    checkpoint: Checkpoint,
    path: Path,
    opsets: Mapping[str, int],
    parity: Sequence[Parity],
    activations: dict[str, float],
    keep: Sequence[str],
) -> dict[str, Any]:
    import onnxruntime
    import timm

    files = {
        name: {"input": kind, "precision": precision, "opset": opsets[precision]}
        for (kind, precision), name in GRAPHS.items()
    }
    return {
        "model": {"family": "glianet", "config": checkpoint.config.to_dict()},
        "contract": checkpoint.contract.to_dict(),
        "checkpoint": {
            "sha256": file_sha256(path),
            "backbone_source": checkpoint.backbone_source,
            "backbone_sha256": checkpoint.backbone_sha256,
            "trained_on": dict(checkpoint.trained_on),
            "metrics": dict(checkpoint.metrics),
        },
        "files": files,
        "fp16": {"largest_activations": activations, "kept_in_float32": list(keep)},
        "parity": [row.to_dict() for row in parity],
        "tools": {
            "glia-rt": glia_rt.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }


class _Stages:
    """Names the stages to the user and takes their times."""

    def __init__(self, report: Callable[[str], None], seconds: dict[str, float]) -> None:
        self.report, self.seconds = report, seconds
        self.name: str | None = None
        self.began = 0.0

    def __call__(self, name: str) -> None:
        self.done()
        self.report(name)
        self.name, self.began = name, time.perf_counter()

    def done(self) -> None:
        """End the stage under way."""
        if self.name is not None:
            self.seconds[self.name] = time.perf_counter() - self.began
        self.name = None
