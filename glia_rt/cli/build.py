"""glia-rt build: bundle -> a TensorRT engine, or a model for Triton."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from glia_rt.backends.cuda.engine import TARGETS
from glia_rt.cli.console import make_console, print_engine, say, tell
from glia_rt.cli.options import grouped, needs, overwrite_option, parse_batch, parse_sizes
from glia_rt.contract import GraphKind
from glia_rt.errors import UsageError


@dataclass(frozen=True)
class BuildOptions:
    """What the engine, or the model for Triton, takes."""

    batch: str
    input: GraphKind
    size: str | None
    precision: str | None
    capability: str | None
    device: int | None


build_options = grouped(
    "graph",
    BuildOptions,
    click.option("--batch", default="1:32:64", show_default=True, metavar="MIN:OPT:MAX",
                 help="The batches that the engine takes; it is fastest at OPT."),
    click.option("--input", type=click.Choice(["views", "image"]), default="views", show_default=True,
                 help="What the engine takes: the model's inputs, or pictures."),
    click.option("--size", metavar="MIN:OPT:MAX", help="The picture sizes that it takes, each HxW; for --input image."),
    click.option("--precision", type=click.Choice(["fp16", "fp32"]),
                 help="Which of the bundle's files to build from; default: fp16, or fp32 if there is no FP16 file."),
    click.option("--capability", metavar="LIST",
                 help="Compute capabilities for tensorrt-rtx, for example 7.5,8.9; default: 8.0 and later."),
    click.option("--device", type=click.IntRange(min=0), metavar="N",
                 help="The GPU to build on, for tensorrt; default: the first one."),
)  # fmt: skip


@click.command()
@click.argument("bundle", type=click.Path())
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    help="The TensorRT to build for. tensorrt-rtx builds anywhere, tensorrt on its GPU.",
)
@build_options
@click.option("--triton", type=click.Path(), help="Also write a Triton model repository; without --target, of ONNX.")
@overwrite_option
def build(bundle: str, target: str | None, graph: BuildOptions, triton: str | None, overwrite: bool) -> None:
    """Build a TensorRT engine of a bundle, or a model for Triton, or both."""
    from glia_engines.triton import NO_RTX, checked_target, write_repository
    from glia_rt.bundle import Bundle

    if target is None and triton is None:
        raise UsageError(
            f"give --target {' or '.join(TARGETS)} for an engine, or --triton DIR for Triton's ONNX Runtime"
        )
    if triton is not None and target is not None and TARGETS[target].portable:
        raise UsageError(NO_RTX)
    batches = parse_batch(graph.batch)
    if target is None and (graph.size or graph.capability or graph.device is not None):
        raise UsageError("--size, --capability and --device are for an engine: give --target too")
    if triton is not None and batches[0] > 1:
        raise UsageError(f"--batch {graph.batch}: Triton sends batches from 1 up, so MIN must be 1")
    if triton is not None:
        checked_target(triton, Bundle.open(bundle), overwrite=overwrite)
    engine = None if target is None else _build_engine(bundle, target, graph, batches, overwrite=overwrite)
    if triton is not None:
        model = write_repository(
            triton,
            Bundle.open(bundle),
            input=graph.input,
            precision=graph.precision,
            engine=engine,
            max_batch=batches[2],
            overwrite=overwrite,
        )
        tell(f"wrote {model}; next:\n  tritonserver --model-repository {shlex.quote(triton)}")


def _build_engine(
    bundle: str, target: str, graph: BuildOptions, batches: tuple[int, int, int], *, overwrite: bool
) -> Path:
    from glia_rt.bundle import WHOLE_STARTER, Bundle

    with needs(TARGETS[target].extra):
        from glia_engines import build as building
    done = building.build(
        bundle,
        target,
        batch=batches,
        input=graph.input,
        sizes=parse_sizes(graph.size) if graph.size else None,
        precision=graph.precision,
        capabilities=graph.capability.split(",") if graph.capability else (),
        device=graph.device,
        overwrite=overwrite,
        report=lambda stage: say(f"{stage} ..."),
    )
    print_engine(make_console(), done.record)
    opened = Bundle.open(bundle)
    if graph.precision is None and done.record.precision == "fp32":
        say(f"{bundle} has no FP16 file, so this is FP32" + (f": {WHOLE_STARTER}" if opened.shipped else ""))
    where = f"--backend {target}"
    if done.record.precision != opened.gpu_precision(graph.input):
        where += f" --precision {done.record.precision}"
    where += " --input image" if graph.input == "image" else ""
    tell(f"wrote {done.path}; next, on the GPU:\n  glia-rt verify {shlex.quote(bundle)} {where}")
    return done.path
