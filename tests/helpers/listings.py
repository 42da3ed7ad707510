"""Folders, archives and tables of pictures that are names only, and what a listing makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import parquet

from glia_rt.listing.sources import Sources


def make(folder: Path, *names: str) -> None:
    """Empty files: finding pictures goes by name alone."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def pieces(sources: Sources) -> list[str]:
    return [f"{type(piece).__name__} {piece.path}" for piece in sources.pieces()]


def listed(sources: Sources) -> list[str]:
    return [picture.name for picture in sources.pictures()]


def glia_rt_with_rights(*args: str | Path) -> tuple[int, list[str]]:
    """Run `glia-rt ARGS...` as a user to whom folders can be closed, which they cannot to root.

    Returns:
        The exit status, and the lines on standard error.
    """
    program = "import sys; from glia_rt.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, args)]
    if os.geteuid() == 0:
        drop = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr.splitlines()


def tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return path


def table(path: Path, rows: int, column: str = "image", row_group: int = 2) -> Path:
    content = pa.table({column: pa.array([b"x"] * rows, pa.binary())})
    parquet.write_table(content, path, row_group_size=row_group)
    return path
