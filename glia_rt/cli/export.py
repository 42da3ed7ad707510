"""glia-rt export: checkpoint.pt -> NAME.glia."""

from __future__ import annotations

import shlex

import click

from glia_rt.cli.console import make_console, make_table, print_parity, say, tell
from glia_rt.cli.options import needs, overwrite_option
from glia_rt.errors import ParityError, UsageError


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="The bundle, NAME.glia; default: beside the checkpoint, or here for starter.",
)
@click.option(
    "--images",
    multiple=True,
    type=click.Path(),
    help="Pictures and folders to measure parity on too; may be given several times.",
)
@click.option("--backbone-weights", help="Where an adapter-only checkpoint's backbone is: hub, or a file.")
@overwrite_option
def export(
    checkpoint: str, output: str | None, images: tuple[str, ...], backbone_weights: str | None, overwrite: bool
) -> None:
    """Turn a checkpoint into a bundle: four ONNX graphs, each checked against PyTorch, and a selftest."""
    with needs("export"):
        from glia_export import export as exporting
    from glia_rt.listing.folders import find_images

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
    tell(f"wrote {done.path}; next:\n  glia-rt verify {path}\n  glia-rt score {path} PICTURE_OR_FOLDER")
