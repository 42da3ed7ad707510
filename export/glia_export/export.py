"""Export of checkpoint.pt to the bundle NAME.glia/.

The export traces the model and checks every graph by running it. The bundle appears only after all checks have passed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from PIL import Image

from glia_export import half, trace
from glia_export.forms.table import export_form
from glia_export.parity import (
    SELFTEST,
    Answers,
    Picture,
    check_image,
    check_views,
    compare,
    input_batches,
    read_pictures,
    require_onnxruntime,
    run_model,
    selftest_pictures,
)
from glia_rt import files
from glia_rt.bundle import GRAPHS, SUFFIX, new_bundle, write_manifest
from glia_rt.contract import SCORE, Contract, GraphKind
from glia_rt.starter.paths import CARD, CHECKPOINT, resolve_checkpoint
from glia_rt.steps import Stages
from glia_rt.verify import Parity, require
from glia_rt.versions import installed_versions
from glia_train.checkpoint import Checkpoint


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        path: The bundle.
        parity: The bundle's parity table.
        seconds: Time by stage.
        sizes: Bytes of each graph's file, by its name.
    """

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
    """Write the bundle of a checkpoint.

    Args:
        checkpoint_path: A checkpoint that `glia-rt train` wrote, or "starter" for the model that glia-rt ships.
        output: The path of the bundle, NAME.glia. By default the bundle has the checkpoint's name with that ending, and
            lies beside it. That of the starter is starter.glia in the working folder.
        images: Photographs to measure parity on, besides the selftest's.
        backbone_weights: Source of the backbone's weights for an adapter-only checkpoint: "hub" or a file.
        overwrite: Replace the bundle if it exists.
        report: Called with the name of each stage as the stage begins.

    Raises:
        ParityError: The error of a graph is over its limit. No bundle is left.
        BundleError: The checkpoint cannot be used.
        OutputExistsError: The bundle exists, and `overwrite` is False.
        BadImageError: One of `images` cannot be read.
        MissingPackageError: ONNX Runtime, which checks the graphs, is not installed.
    """
    require_onnxruntime()
    output = Path(output) if output is not None else Path(checkpoint_path).with_suffix(SUFFIX)
    checkpoint_path = resolve_checkpoint(checkpoint_path)
    stage = Stages(report)
    with new_bundle(output, overwrite=overwrite) as folder:
        stage("read the checkpoint")
        checkpoint = Checkpoint.load(checkpoint_path)
        contract = checkpoint.contract
        model = export_form(checkpoint.build_model(backbone_weights))
        pictures = read_pictures(images, contract)
        stage("score with PyTorch FP32, the reference")
        reference = run_model(model, pictures)
        activations = half.largest_activations(model, input_batches(pictures))
        keep = half.float32_stages(activations)
        half_model = half.half_copy(model, keep)
        stage("score with PyTorch FP16")
        parity = [
            compare("PyTorch FP16 on the CPU", run_model(half_model, pictures), reference, pictures, contract, "fp16")
        ]
        require(parity)  # before tracing, which takes long: no graph can mend this
        opsets: dict[str, int] = {}
        stage("trace the rules")
        rules = trace.trace_rules(contract)
        for precision, traced in (("fp32", model), ("fp16", half_model)):
            stage(f"trace {precision}")
            opsets[precision] = trace.opset_for(traced)
            views_graph = trace.trace_views(traced, contract)
            image_graph = trace.join(rules, views_graph)
            graphs: dict[GraphKind, onnx.ModelProto] = {"views": views_graph, "image": image_graph}
            for kind, graph in graphs.items():
                stage(f"write {(name := GRAPHS[kind, precision])}")
                onnx.save(trace.finish(graph, contract), folder / name)
                onnx.checker.check_model(folder / name)
            stage(f"check {GRAPHS['views', precision]}")
            parity += check_views(folder, views_graph, precision, pictures, reference, contract)
            stage(f"check {GRAPHS['image', precision]}")
            parity += check_image(folder, image_graph, precision, model, pictures, contract)
        require(parity)
        stage("write the selftest and the manifest")
        _write_selftest(folder / "selftest", pictures, reference, contract)
        write_manifest(folder, _manifest(checkpoint, checkpoint_path, opsets, parity, activations, keep))
        sizes = {name: (folder / name).stat().st_size for name in GRAPHS.values()}
    stage.done()
    return Exported(output, parity, stage.seconds, sizes)


def _write_selftest(folder: Path, pictures: Sequence[Picture], reference: Answers, contract: Contract) -> None:
    folder.mkdir()
    rows = []
    # The user's own pictures come after the selftest's. Parity was measured on them, but the bundle leaves them out.
    for source, picture, score in zip(selftest_pictures(), pictures, reference.scores, strict=False):
        (folder / picture.name).write_bytes(source.read_bytes())
        inputs = {name: f"{source.stem}.{name}.png" for name in picture.inputs}
        for name, array in picture.inputs.items():
            # Several crops of one input stand below one another in the PNG.
            Image.fromarray(array.reshape(-1, *array.shape[-2:])).save(folder / inputs[name])
        rows.append({"picture": picture.name, "inputs": inputs, SCORE: float(score)})
    about = (
        "picture -> inputs (uint8 RGB, exact up to one grey level for another resize) -> score (PyTorch FP32). "
        "Hold a port against these."
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
    activations: Mapping[str, float],
    keep: Sequence[str],
) -> dict[str, Any]:
    entries = {
        name: {"input": kind, "precision": precision, "opset": opsets[precision]}
        for (kind, precision), name in GRAPHS.items()
    }
    record = {
        "model": {"family": checkpoint.family.family, "config": dataclasses.asdict(checkpoint.config)},
        "contract": checkpoint.contract.to_dict(),
        "checkpoint": {
            "sha256": files.sha256(path),
            "backbones": {name: dict(facts) for name, facts in checkpoint.backbones.items()},
            "trained_on": dict(checkpoint.trained_on),
            "metrics": dict(checkpoint.metrics),
        },
        "files": entries,
        "fp16": {"largest_activations": dict(activations), "kept_in_float32": list(keep)},
        "parity": [row.to_dict() for row in parity],
        "tools": installed_versions("torch", "timm", "onnx", "onnxruntime"),
    }
    # The shipped checkpoint is the measured one to the byte, so its card is in a file of its own.
    card = json.loads(CARD.read_text(encoding="utf-8")) if path == CHECKPOINT else dict(checkpoint.card)
    return record | ({"card": card} if card else {})
