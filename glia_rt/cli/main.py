"""The command line as a whole. Errors become one line on stderr and an exit status here, and only here.

Exit status: 0 done; 1 what is to be scored has gone, the machine fails, the disk is full, or unexpected; 2 usage, or
the output exists; 3 done, but some pictures are missing or cannot be read; 4 parity; 5 checkpoint, bundle or engine;
6 backend, or a package that is not installed; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TextIO

import click

from glia_rt.cli.build import build
from glia_rt.cli.compare import compare
from glia_rt.cli.console import State, drop, say, say_notes, say_traceback
from glia_rt.cli.data import data
from glia_rt.cli.demo import demo
from glia_rt.cli.doctor import doctor
from glia_rt.cli.evaluate import evaluate
from glia_rt.cli.export import export
from glia_rt.cli.info import info
from glia_rt.cli.list import list_pictures
from glia_rt.cli.options import add_global_options
from glia_rt.cli.score import score
from glia_rt.cli.streams import prepare
from glia_rt.cli.train import train
from glia_rt.cli.verify import verify
from glia_rt.errors import GliaError, UsageError
from glia_rt.pixels.decode import configure_pillow
from glia_rt.versions import __version__

INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is for what a shell runs in the background
            signal.signal(signal.SIGINT, _interrupt)
    prepare()
    state = State(debug=os.environ.get("GLIA_DEBUG", "") not in ("", "0"))
    try:
        # Not cli.main, which keeps interrupts and closed pipes to itself.
        with cli.make_context("glia-rt", list(sys.argv[1:] if args is None else args), obj=state) as context:
            status = cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue().rstrip("\n"))
        return UsageError.exit_status
    except GliaError as error:
        say_traceback(error, state)
        say(f"glia-rt: {error}")
        say_notes(error)
        return error.exit_status
    except KeyboardInterrupt as stopped:
        say_traceback(stopped, state)
        say(f"glia-rt: {str(stopped) or 'interrupted'}")
        say_notes(stopped)
        return INTERRUPTED
    except SystemExit as terminated:
        say_notes(terminated)
        raise
    except BrokenPipeError:
        drop(sys.stdout)  # its reader went away, as `| head` does
        return 0
    except OSError as error:
        if not _is_stuck(sys.stdout):
            raise
        drop(sys.stdout)
        say(f"glia-rt: standard output cannot be written: {error.strerror}")
        return GliaError.exit_status
    finally:
        state.close()
    return status if isinstance(status, int) else 0


def _is_stuck(stream: TextIO) -> bool:
    """Return whether nothing can be written to a stream."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def _interrupt(number: int, _frame: object) -> None:
    """Stop in good order on the first Ctrl-C, and at once on the second. Rows that are in parts are kept both times."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def _terminate(number: int, _frame: object) -> None:
    """End as by an exception, so that every output is left as it should be."""
    raise SystemExit(128 + number)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="glia-rt")
def cli() -> None:
    """Image quality scores at scale: train, export, build, verify, score.

    Where a command takes a bundle or a checkpoint, `starter` is the model that comes with glia-rt.
    """
    configure_pillow()


for command in (train, evaluate, compare, export, build, verify, score, list_pictures, data, info, doctor, demo):
    cli.add_command(add_global_options(command))
for command in data.commands.values():
    add_global_options(command)
add_global_options(cli)
