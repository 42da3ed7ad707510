"""Folders, archives and tables of pictures that are names only, and what a listing makes of them."""

from __future__ import annotations

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


def tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return path


def table(path: Path, rows: int, column: str = "image", row_group: int = 2) -> Path:
    content = pa.table({column: pa.array([b"x"] * rows, pa.binary())})
    parquet.write_table(content, path, row_group_size=row_group)
    return path
