"""glia-rt doctor: what works on this machine."""

from __future__ import annotations

import click

from glia_rt.cli.console import make_console, make_table, say
from glia_rt.steps import step


@click.command()
def doctor() -> None:
    """Say which backends work on this machine, and what the others need."""
    from glia_rt.doctor import examine

    with step("look at GPUs, backends and packages"):
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
