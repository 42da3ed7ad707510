"""The standard streams of a process: they may be closed, or not know all characters."""

from __future__ import annotations

import io
import os
import sys

from glia_rt.errors import GliaError


class _Closed(io.TextIOBase):
    """Standard output that the process was started without."""

    def write(self, text: str, /) -> int:
        raise GliaError("standard output is closed: send it to a file, or to /dev/null")


def prepare() -> None:
    """Make the standard streams fit for any text.

    A character that a stream's encoding lacks is written as an escape. Where standard output is closed, what is
    printed there raises GliaError. What is printed on a closed standard error is dropped.
    """
    # A file that is opened later must not get the number of a closed stream: libraries write to these numbers.
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    if sys.stdout is None:
        sys.stdout = _Closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def can_write_all(stream: object) -> bool:
    """Return whether a stream's encoding has all characters."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
