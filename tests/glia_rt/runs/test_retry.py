"""Rows that are errors, scored again into a new whole output."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.runs import BAD, FORMATS, ROWS, Stop, after, names
from pyarrow import parquet

from glia_rt import Scorer
from glia_rt.errors import UsageError
from glia_rt.listing.sources import Sources
from glia_rt.runs.outputs import read_rows
from glia_rt.runs.run import Outcome, score_to_file


@pytest.fixture
def album(pictures: Path, tmp_path: Path) -> Path:
    """32 pictures, of which two cannot be read, and a tar archive of four more."""
    album = tmp_path / "album"
    shutil.copytree(pictures, album)
    for name in ("07.jpg", "21.jpg"):
        (album / name).write_text("not yet")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(pictures.iterdir())[:4]:
            tar.add(path, path.name)
    return album


@pytest.fixture
def sources(album: Path) -> Sources:
    return Sources([album, album.parent / "0.tar"])


@pytest.mark.parametrize("kind", FORMATS)
def test_an_output_read_again_is_what_was_written(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    (tmp_path / f"scores.{kind}").write_bytes(undisturbed[f"scores.{kind}"])
    assert list(read_rows(tmp_path / f"scores.{kind}")) == list(scorer.score_files(listing))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_output_is_named(undisturbed: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    output = tmp_path / f"scores.{kind}"
    whole = undisturbed[output.name]
    for damaged in (whole.replace(b"ok", b'"o"k'), whole[:-20], b"path,score" + whole):
        output.write_bytes(damaged)
        with pytest.raises(UsageError, match="not an output of glia-rt, or damaged"):
            list(read_rows(output))


@pytest.mark.parametrize("kind", FORMATS)
def test_errors_are_scored_again_and_nothing_else(
    scorer: Scorer, sources: Sources, album: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    output = tmp_path / f"scores.{kind}"
    assert score_to_file(scorer, sources, output) == Outcome(36, 2)
    for name in ("07.jpg", "21.jpg"):
        shutil.copy(pictures / name, album / name)
    (tmp_path / "anew").mkdir()
    score_to_file(scorer, sources, tmp_path / "anew" / output.name)
    (album / "08.jpg").unlink()  # its row is there already
    assert score_to_file(scorer, sources, output, retry_errors=True) == Outcome(36, 0)
    for name in names(tmp_path / "anew"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()
    assert not (tmp_path / f"{output.name}.parts").exists()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("rows", [1, 9, 35])
def test_a_retry_that_breaks_off_goes_on(
    scorer: Scorer, sources: Sources, album: Path, pictures: Path, tmp_path: Path, rows: int
) -> None:
    output = tmp_path / "scores.csv"
    score_to_file(scorer, sources, output)
    before = output.read_bytes()
    shutil.copy(pictures / "07.jpg", album / "07.jpg")
    with pytest.raises(Stop):
        score_to_file(scorer, sources, output, retry_errors=True, on_row=after(rows, Stop()))
    assert output.read_bytes() == before
    assert score_to_file(scorer, sources, output, retry_errors=True) == Outcome(36, 1)
    score_to_file(scorer, sources, tmp_path / "anew.csv")
    assert output.read_bytes() == (tmp_path / "anew.csv").read_bytes()
    assert score_to_file(scorer, sources, output, retry_errors=True) == Outcome(36, 1), "and once more"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("name", ["0.tar", "0.parquet"])
def test_an_archive_that_was_away_is_read_whole(scorer: Scorer, pictures: Path, tmp_path: Path, name: str) -> None:
    """It has one row while it is away, and six later; the Parquet file is three pieces."""
    paths = sorted(pictures.iterdir())[:6]
    archive, away, output = tmp_path / name, tmp_path / "away", tmp_path / "scores.csv"
    if name.endswith(".tar"):
        with tarfile.open(archive, "w") as tar:
            for path in paths:
                tar.add(path, path.name)
    else:
        table = pa.table({"image": [path.read_bytes() for path in paths]})
        parquet.write_table(table, archive, row_group_size=2)
    sources = Sources([pictures / "31.jpg", archive, pictures / "30.jpg"], column="image")
    assert score_to_file(scorer, sources, output, on_start=lambda *_: archive.rename(away)) == Outcome(3, 1)
    assert score_to_file(scorer, sources, output, retry_errors=True) == Outcome(3, 1), "still away"
    away.rename(archive)
    with pytest.raises(Stop) as stopped:
        score_to_file(scorer, sources, output, retry_errors=True, on_row=after(4, Stop()))
    assert stopped.value.__notes__[0].endswith("the same command with --retry-errors goes on")
    assert score_to_file(scorer, sources, output, retry_errors=True) == Outcome(8, 0)
    score_to_file(scorer, sources, tmp_path / "anew.csv")
    assert output.read_bytes() == (tmp_path / "anew.csv").read_bytes()


def test_an_archive_that_has_changed_keeps_its_rows(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(pictures / "00.jpg", "00.jpg")
        tar.add(__file__, "01.jpg")
    output, sources = tmp_path / "scores.jsonl", Sources([tmp_path / "0.tar"])
    assert score_to_file(scorer, sources, output) == Outcome(2, 1)
    before = output.read_bytes()
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(pictures / "00.jpg", "00.jpg")
    assert score_to_file(scorer, sources, output, retry_errors=True) == Outcome(2, 1)
    assert output.read_bytes() == before


def test_nothing_to_retry(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    output, sources = tmp_path / "scores.csv", Sources([pictures])
    score_to_file(scorer, sources, output)
    before = output.stat()
    assert score_to_file(scorer, sources, output, retry_errors=True, on_row=after(1, Stop())) == Outcome(32, 0)
    assert output.stat().st_ino == before.st_ino


def test_what_cannot_be_retried(scorer: Scorer, listing: Sources, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"

    def retry(sources: Sources = listing, **options: Any) -> Outcome:
        return score_to_file(scorer, sources, output, retry_errors=True, **options)

    with pytest.raises(UsageError, match=r"scores\.csv is not there yet"):
        retry()
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, on_row=after(3, Stop()))
    with pytest.raises(UsageError, match=r"scores\.csv is not there yet: .*give --resume"):
        retry()
    assert score_to_file(scorer, listing, output, resume=True) == Outcome(ROWS, BAD)
    with pytest.raises(UsageError, match="resume, overwrite and retry_errors: give one of them"):
        retry(resume=True)
    for others in ([pictures], [*listing.paths, pictures / "00.jpg"]):
        with pytest.raises(UsageError, match=r"scores\.csv is not of this run"):
            retry(Sources(others, column="image"))
    (tmp_path / "scores.csv.listing.jsonl.zst").unlink()
    with pytest.raises(UsageError, match=r"scores\.csv\.listing\.jsonl\.zst is missing"):
        retry()
