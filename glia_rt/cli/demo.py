"""glia-rt demo: the whole chain once."""

from __future__ import annotations

from pathlib import Path

import click

from glia_rt.cli.console import make_console
from glia_rt.cli.options import needs, overwrite_option


@click.command()
@click.option(
    "--out", type=click.Path(), default="demo-output", show_default=True, help="The folder that everything goes to."
)
@click.option("--minutes", type=float, default=6.0, show_default=True, help="Minutes that all of it may take.")
@overwrite_option
def demo(out: str, minutes: float, overwrite: bool) -> None:
    """Run the whole chain once on photographs: distort, train, export, verify, score, report."""
    with needs("demo"):
        from glia_export.demo import run as demonstration
    demonstration.run(Path(out), minutes=minutes, overwrite=overwrite, console=make_console(stderr=True))
