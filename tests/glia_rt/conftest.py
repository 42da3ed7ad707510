"""Fixtures of the runtime's tests.

- `scorer`: the plain bundle on ONNX Runtime, two pictures a batch. Some modules have their own.
- `listing`: 20 rows of files, a tar and a Parquet file, three of them bad.
- `undisturbed`: what scoring it into each kind of file writes.
- `often`: a part for every row.
"""

from __future__ import annotations

import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.runs import BAD, FORMATS, ROWS
from pyarrow import parquet

from glia_rt import Scorer
from glia_rt.listing.sources import Sources
from glia_rt.runs import journal as parts
from glia_rt.runs.run import Outcome, score_to_file


@pytest.fixture(scope="session")
def scorer(plain_bundle: Path) -> Iterator[Scorer]:
    with Scorer.open(plain_bundle, "onnxruntime", batch_size=2) as scorer:
        yield scorer


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("glia-")] == []


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for every row."""
    monkeypatch.setattr(parts, "PART_SECONDS", 0.0)


@pytest.fixture(scope="session")
def listing(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """20 rows: six files, one of them bad, a tar archive of seven with a link, a Parquet file of seven with a null."""
    folder = tmp_path_factory.mktemp("listing")
    files = sorted(pictures.iterdir())
    (folder / "album").mkdir()
    for path in files[:5]:
        shutil.copy(path, folder / "album")
    (folder / "album" / "03b.jpg").write_text("hello")
    with tarfile.open(folder / "0.tar", "w") as tar:
        for path in files[5:11]:
            tar.add(path, path.name)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "05.jpg"
        tar.addfile(link)
    column = pa.array([*(path.read_bytes() for path in files[11:17]), None], pa.binary())
    parquet.write_table(pa.table({"image": column}), folder / "t.parquet", row_group_size=3)
    return Sources([folder / "album", folder / "0.tar", folder / "t.parquet"], column="image")


@pytest.fixture(scope="session")
def undisturbed(scorer: Scorer, listing: Sources, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for kind in FORMATS:
        assert score_to_file(scorer, listing, folder / f"scores.{kind}") == Outcome(ROWS, BAD)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
