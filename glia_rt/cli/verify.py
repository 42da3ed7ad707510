"""glia-rt verify: a bundle's selftest, run here."""

from __future__ import annotations

import click

from glia_rt.cli.console import make_console, print_parity, say_backend
from glia_rt.cli.options import EngineOptions, engine_options
from glia_rt.steps import step


@click.command()
@click.argument("bundle", type=click.Path())
@engine_options
def verify(bundle: str, engine: EngineOptions) -> None:
    """Run a bundle's selftest here: are inputs and scores those of the export?"""
    from glia_rt.verify import require, selftest

    with engine.open(bundle) as scorer:
        say_backend(scorer)
        with step("run the selftest"):
            rows = selftest(scorer)
    print_parity(make_console(), rows)
    require(rows)
