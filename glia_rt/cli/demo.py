"""glia-rt demo: what the starter says of distorted photographs, and the whole chain once."""

from __future__ import annotations

from pathlib import Path

import click

from glia_rt.cli.console import make_console
from glia_rt.cli.options import needs, overwrite_option


@click.command()
@click.option(
    "--out", type=click.Path(), default="demo-output", show_default=True, help="The folder that everything goes to."
)
@overwrite_option
def demo(out: str, overwrite: bool) -> None:
    """Score photographs and distorted copies with the starter, fine-tune it, export, verify, build, report."""
    with needs("demo"):
        from glia_export.demo import run as demonstration

        demonstration.run(Path(out), overwrite=overwrite, console=make_console(stderr=True))
