"""The command `glia-rt`. Errors become one line on stderr and an exit status here, and only here.

Exit status: 0 done; 1 what is to be scored has gone, the disk is full, or unexpected; 2 usage, or the output exists;
3 done, but some pictures could not be scored; 4 parity; 5 checkpoint, bundle or engine; 6 backend, or a package that is
not installed; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glia_rt import __version__
from glia_rt.backends import AUTO, BACKENDS
from glia_rt.console import (
    drop,
    format_row,
    make_console,
    make_table,
    print_engine,
    print_parity,
    say,
    say_backend,
    say_notes,
    show_progress,
)
from glia_rt.engine import TARGETS
from glia_rt.errors import BundleError, GliaError, MissingPackageError, ParityError, UsageError
from glia_rt.images import DEFAULT_MAX_PIXELS, configure_pillow
from glia_rt.sources import DEFAULT_COLUMN

if TYPE_CHECKING:
    from glia_rt.job import Outcome
    from glia_rt.results import Result
    from glia_rt.scorer import Scorer
    from glia_rt.sources import Position, Sources

SOME_BAD = 3
INTERRUPTED = 130

backend_option = click.option(
    "--backend", type=click.Choice([AUTO, *BACKENDS]), default=AUTO, show_default=True, help="The engine."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="What to compute in; default: the fastest.",
)
input_option = click.option(
    "--input", type=click.Choice(["views", "image"]), default="views", show_default=True,
    help="Who samples: the host, or the graph, with pictures of one size a batch.",
)  # fmt: skip
device_option = click.option("--device", type=click.IntRange(min=0), help="Which GPU; default: the first.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is for what a shell runs in the background
            signal.signal(signal.SIGINT, _interrupt)
    try:
        # Not cli.main, which keeps interrupts and closed pipes to itself.
        with cli.make_context("glia-rt", list(sys.argv[1:] if args is None else args)) as context:
            status = cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return UsageError.exit_status
    except GliaError as error:
        say(f"glia-rt: {error}")
        say_notes(error)
        return error.exit_status
    except KeyboardInterrupt as stopped:
        say(f"glia-rt: {str(stopped) or 'interrupted'}")
        say_notes(stopped)
        return INTERRUPTED
    except SystemExit as terminated:
        say_notes(terminated)
        raise
    except BrokenPipeError:
        drop(sys.stdout)  # its reader went away, as `| head` does
        return 0
    return status if isinstance(status, int) else 0


def _interrupt(number: int, _frame: object) -> None:
    """Stop in good order on the first Ctrl-C; on the second at once, which loses nothing that is in parts."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def _terminate(number: int, _frame: object) -> None:
    """End as by an exception, so that every output is left as it should be."""
    raise SystemExit(128 + number)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="glia-rt")
def cli() -> None:
    """Image quality scores by GLIANet: train, export, build, verify, score."""
    configure_pillow()


@cli.command()
@click.argument("bundle", type=click.Path())
@click.argument("paths", nargs=-1, type=click.Path(readable=False), metavar="[PATH]...")
@click.option("--list", "list_file", type=click.Path(), help="Score what a file names: a path a line, or a .csv.")
@click.option("--column", default=DEFAULT_COLUMN, show_default=True,
              help="Of Parquet, the pictures or their paths; of a .csv, the paths.")  # fmt: skip
@click.option("-0", "--null", is_flag=True, help="Names on standard input and in a list end in NUL.")
@click.option("--shard", metavar="I/N", default="1/1", help="Every N-th piece of the listing, from the I-th.")
@click.option("-o", "--output", type=click.Path(), help="A .csv, .jsonl or .parquet file; default: the terminal.")
@click.option("--resume", is_flag=True, help="Go on with a run that broke off, if there is one.")
@overwrite_option
@click.option("--report", type=click.Path(), help="Also write an HTML page about the scores.")
@click.option("--json", "as_json", is_flag=True, help="Without -o: JSON lines instead of a table.")
@backend_option
@precision_option
@input_option
@click.option("--device", metavar="LIST", help="Which GPUs, as 0 or 0,1; default: the first.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Pictures a run; default: 4 on a CPU, 32 on a GPU.")
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default: one a core.")
@click.option("--max-pixels", type=click.IntRange(min=1), default=DEFAULT_MAX_PIXELS, show_default=True,
              help="Largest picture that is decoded, width times height.")  # fmt: skip
def score(
    bundle: str,
    paths: tuple[str, ...],
    list_file: str | None,
    column: str,
    null: bool,
    shard: str,
    output: str | None,
    resume: bool,
    overwrite: bool,
    report: str | None,
    as_json: bool,
    backend: str,
    precision: str | None,
    input: Any,
    device: str | None,
    batch_size: int | None,
    workers: int | None,
    max_pixels: int,
) -> int:
    """Score pictures: files, folders, tar shards, Parquet, patterns in quotes, or - for names on standard input.

    One row a picture, in order: path, score, status, error, width, height. A picture that cannot be read is a row
    too; the exit status is then 3.
    """
    from glia_rt import job
    from glia_rt.results import count_rows
    from glia_rt.scorer import Scorer
    from glia_rt.sources import Sources

    if not paths and list_file is None:
        raise UsageError("nothing to score: give PATHs, or --list")
    if output and as_json:
        raise UsageError("--json is for the terminal; for a file name it .jsonl")
    if not output and (resume or overwrite or report):
        raise UsageError("--resume, --overwrite and --report are for a file: give -o too")
    sources = Sources(paths, list_file, column, parse_shard(shard), null)
    if output:  # before the engine is opened, which takes seconds
        job.require_output(sources, output, resume=resume, overwrite=overwrite, report=report)
    configure_pillow(max_pixels)
    with Scorer.open(
        bundle,
        backend,
        input,
        precision=precision,
        batch_size=batch_size,
        device=parse_devices(device),
        max_pixels=max_pixels,
    ) as scorer:
        say_backend(scorer)
        if output:
            with show_progress(hidden=False) as (on_start, on_row):
                outcome = job.score_to_file(
                    scorer,
                    sources,
                    output,
                    workers=workers,
                    resume=resume,
                    overwrite=overwrite,
                    report=report,
                    on_start=on_start,
                    on_row=on_row,
                )
            say(f"{count_rows(outcome.rows)} in {output}" + (f"; {report} shows them" if report else ""))
        else:
            outcome = _score_to_terminal(scorer, sources, workers=workers, as_json=as_json)
    if outcome.has_changed:
        say(f"{sources} has changed meanwhile: the rows are of what was found when its turn came")
    if outcome.bad:
        say(f"{outcome.bad} of {outcome.rows} pictures could not be read: see the status and error columns")
        return SOME_BAD
    return 0


@cli.command()
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The bundle, NAME.glia; default: beside the checkpoint.")
@click.option("--images", multiple=True, type=click.Path(), help="Measure parity on these pictures and folders too.")
@click.option("--backbone-weights", help="For an adapter-only checkpoint: hub, or a file.")
@overwrite_option
def export(
    checkpoint: str, output: str | None, images: tuple[str, ...], backbone_weights: str | None, overwrite: bool
) -> None:
    """Turn a checkpoint into a bundle: four ONNX graphs, each checked against PyTorch, and a selftest."""
    with _needs("export"):
        from glia_export import export as exporting
    from glia_rt.folders import find_images

    pictures = list(find_images(images))
    if images and not pictures:
        raise UsageError(f"--images: no pictures in {', '.join(images)}")
    try:
        done = exporting.export(
            checkpoint,
            output,
            images=pictures,
            backbone_weights=backbone_weights,
            overwrite=overwrite,
            report=lambda stage: say(f"{stage} ..."),
        )
    except ParityError as error:
        if error.rows:
            print_parity(make_console(stderr=True), error.rows)
        raise
    console = make_console()
    console.print(make_table(["stage", "seconds"], [[name, f"{s:.1f}"] for name, s in done.seconds.items()]))
    console.print(make_table(["file", "MB"], [[name, f"{size / 1e6:.1f}"] for name, size in done.sizes.items()]))
    print_parity(console, done.parity)
    path = shlex.quote(str(done.path))
    click.echo(f"wrote {done.path}; next:\n  glia-rt verify {path}\n  glia-rt score {path} PICTURE_OR_FOLDER")


@cli.command()
@click.argument("bundle", type=click.Path())
@click.option("--target", type=click.Choice(list(TARGETS)), help="tensorrt-rtx builds anywhere, tensorrt on its GPU.")
@click.option("--batch", default="1:32:64", show_default=True, metavar="MIN:OPT:MAX",
              help="Batches it takes, fastest at OPT.")  # fmt: skip
@click.option("--input", type=click.Choice(["views", "image"]), default="views", show_default=True,
              help="Which graph: both views, or a picture with the sampler inside.")  # fmt: skip
@click.option("--size", metavar="MIN:OPT:MAX", help="Picture sizes for --input image, each HxW.")
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True,
              help="Which of the bundle's files.")  # fmt: skip
@click.option("--capability", metavar="LIST",
              help="GPUs for tensorrt-rtx, as 7.5,8.9; default: 8.0 and later.")  # fmt: skip
@click.option("--triton", type=click.Path(), help="Also write a Triton model repository; without --target, of ONNX.")
@overwrite_option
def build(
    bundle: str,
    target: str | None,
    batch: str,
    input: Any,
    size: str | None,
    precision: str,
    capability: str | None,
    triton: str | None,
    overwrite: bool,
) -> None:
    """Build a TensorRT engine of a bundle, or a model for Triton, or both."""
    from glia_engines.triton import NO_RTX, checked_target, write_repository
    from glia_rt.bundle import Bundle

    if target is None and triton is None:
        raise UsageError(
            f"give --target {' or '.join(TARGETS)} for an engine, or --triton DIR for Triton's ONNX Runtime"
        )
    if triton is not None and target is not None and TARGETS[target].portable:
        raise UsageError(NO_RTX)
    batches = parse_batch(batch)
    if target is None and (size or capability):
        raise UsageError("--size and --capability are for an engine: give --target too")
    if triton is not None and batches[0] > 1:
        raise UsageError(f"--batch {batch}: Triton sends batches from 1 up, so MIN must be 1")
    if triton is not None:
        checked_target(triton, Bundle.open(bundle), overwrite=overwrite)
    engine = None
    if target is not None:
        with _needs(TARGETS[target].extra):
            from glia_engines import build as building
        done = building.build(
            bundle,
            target,
            batch=batches,
            input=input,
            sizes=parse_sizes(size) if size else None,
            precision=precision,
            capabilities=capability.split(",") if capability else (),
            overwrite=overwrite,
            report=lambda stage: say(f"{stage} ..."),
        )
        engine = done.path
        print_engine(make_console(), done.record)
        where = f"--backend {target}" + (f" --precision {precision}" if precision != "fp16" else "")
        where += " --input image" if input == "image" else ""
        click.echo(f"wrote {done.path}; next, on the GPU:\n  glia-rt verify {shlex.quote(bundle)} {where}")
    if triton is not None:
        opened = Bundle.open(bundle)
        model = write_repository(
            triton, opened, input=input, precision=precision, engine=engine, max_batch=batches[2], overwrite=overwrite
        )
        click.echo(f"wrote {model}; next:\n  tritonserver --model-repository {shlex.quote(triton)}")


@cli.command()
@click.argument("bundle", type=click.Path())
@backend_option
@precision_option
@input_option
@device_option
def verify(bundle: str, backend: str, precision: str | None, input: Any, device: int | None) -> None:
    """Run a bundle's selftest here: are views and scores those of the export?"""
    from glia_rt.scorer import Scorer
    from glia_rt.verify import require, selftest

    with Scorer.open(bundle, backend, input, precision=precision, device=device) as scorer:
        say_backend(scorer)
        rows = selftest(scorer)
    print_parity(make_console(), rows)
    require(rows)


@cli.command()
@click.argument("path", type=click.Path())
def info(path: str) -> None:
    """Say what a bundle or a checkpoint is."""
    import json

    if not Path(path).exists():
        raise BundleError(f"{path}: no such bundle or checkpoint")
    if Path(path).is_dir():
        from glia_rt.bundle import Bundle
        from glia_rt.engine import engines

        bundle = Bundle.open(path)
        record: dict[str, Any] = {"bundle": str(path), "identity": bundle.identity, **bundle.manifest}
        record["engines"] = [dataclasses.asdict(engine) for engine in engines(bundle)]
    else:
        with _needs("train"):
            from glia_train.checkpoint import Checkpoint
        record = {"checkpoint": str(path), **Checkpoint.load(path).describe()}
    click.echo(json.dumps(record, indent=2))


@cli.command()
def doctor() -> None:
    """Say which backends work on this machine, and what the others need."""
    from glia_rt.doctor import examine

    findings = examine()
    console = make_console()
    if isinstance(findings.gpus, str):
        console.print(f"GPU: {findings.gpus}", highlight=False)
    else:
        console.print(make_table(["GPU", "name", "capability", "CUDA of the driver"], findings.gpus))
    console.print(make_table(["backend", "works", "precision", "why not, or what to know"], findings.backends))
    console.print(make_table(["package", "version"], findings.packages))
    for warning in findings.warnings:
        say(f"warning: {warning}")


@cli.command()
@click.option("--data", required=True, type=click.Path(), help="Labels: a CSV of path,score[,reference].")
@click.option("--out", required=True, type=click.Path(), help="The run's folder.")
@click.option("--backbone-weights", required=True, help="hub (downloads), random, or a file of weights.")
@click.option("--backbone", help="A timm ViT; default: ViT-B/16.")
@click.option("--tune-backbone", is_flag=True, help="Train the backbone too.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Passes over the data.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Pictures a step.")
@click.option("--lr", type=float, default=3e-4, show_default=True, help="First learning rate.")
@click.option("--weight-decay", type=float, default=1e-2, show_default=True, help="Of AdamW.")
@click.option("--loss", type=click.Choice(["mse-rho", "plcc"]), default="mse-rho", show_default=True,
              help="LoDa's code, or 1 less the correlation.")  # fmt: skip
@click.option("--seed", type=int, default=3407, show_default=True, help="Of the split, the weights, the order.")
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default: one a core.")
@click.option("--score-range", type=(float, float), help="The labels' scale; default: least and greatest label.")
@click.option("--adapter-only", is_flag=True, help="Leave the frozen backbone out of the checkpoint.")
@overwrite_option
def train(
    data: str,
    out: str,
    backbone_weights: str,
    backbone: str | None,
    tune_backbone: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train a GLIANet on pictures with scores, and hold out a fifth to measure it."""
    with _needs("train"):
        from glia_train.model import DEFAULT_BACKBONE, ModelConfig
        from glia_train.training import TrainOptions
        from glia_train.training import train as run
    config = ModelConfig(backbone=backbone or DEFAULT_BACKBONE, tune_backbone=tune_backbone)
    result = run(
        data,
        out,
        config,
        TrainOptions(**options),
        backbone_weights,
        overwrite=overwrite,
        console=make_console(stderr=True),
    )
    command = ["glia-rt", "export", str(result.checkpoint)]
    if options["adapter_only"]:
        command += ["--backbone-weights", backbone_weights]
    click.echo(f"wrote {result.checkpoint}; next:\n  {shlex.join(command)}")


@cli.command()
@click.option("--out", type=click.Path(), default="demo-output", show_default=True, help="Everything goes there.")
@click.option("--minutes", type=float, default=6.0, show_default=True, help="How long all of it may take.")
@overwrite_option
def demo(out: str, minutes: float, overwrite: bool) -> None:
    """Run the whole chain once on photographs: distort, train, export, verify, score, report."""
    with _needs("demo"):
        from glia_export import demo as demonstration
    demonstration.run(Path(out), minutes=minutes, overwrite=overwrite, console=make_console(stderr=True))


def parse_batch(text: str) -> tuple[int, int, int]:
    """MIN:OPT:MAX -> three numbers."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--batch {text} is not MIN:OPT:MAX, as 1:32:64")
    least, usual, greatest = map(int, parts)
    return least, usual, greatest


def parse_sizes(text: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """MINHxMINW:OPTHxOPTW:MAXHxMAXW -> three pairs of height and width."""
    sides = [part.split("x") for part in text.split(":")]
    if len(sides) != 3 or not all(len(pair) == 2 and all(side.isdecimal() for side in pair) for pair in sides):
        raise UsageError(f"--size {text} is not MINHxMINW:OPTHxOPTW:MAXHxMAXW, as 224x224:768x1024:3000x4000")
    least, usual, greatest = ((int(height), int(width)) for height, width in sides)
    return least, usual, greatest


def parse_shard(text: str) -> tuple[int, int]:
    """I/N -> two numbers."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal()):
        raise UsageError(f"--shard {text} is not I/N, as 1/4")
    return int(i), int(n)


def parse_devices(text: str | None) -> list[int] | None:
    """0,1 -> numbers of GPUs; None for none named."""
    if text is None:
        return None
    if not all(part.isdecimal() for part in text.split(",")):
        raise UsageError(f"--device {text} is not a list of numbers, as 0 or 0,1")
    return [int(part) for part in text.split(",")]


def _score_to_terminal(scorer: Scorer, sources: Sources, *, workers: int | None, as_json: bool) -> Outcome:
    from glia_rt import job
    from glia_rt.sinks import json_line

    summary = job.summarize(sources)
    if not as_json:
        _print(f"{'score':>10}  {'size':>11}  path")
    rows = bad = 0
    # Rows on a terminal are progress enough, and a bar would run into them.
    with show_progress(hidden=sys.stdout.isatty()) as (on_start, show):
        on_start(summary, job.Progress(0, 0))

        def on_row(_: Position, progress: job.Progress, result: Result) -> None:
            nonlocal rows, bad
            _print(json_line(result) if as_json else format_row(result))
            rows, bad = progress.rows, bad + (result.status != "ok")
            show(progress, result)

        walked = job.score_each(scorer, sources, on_row, expected=summary, workers=workers)
    return job.Outcome(rows, bad, job.has_changed(summary, walked))


def _print(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(sys.stdout)
        raise GliaError(f"standard output cannot be written: {error.strerror}") from error


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Turn a failed import of another package into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "a package", extra) from error
