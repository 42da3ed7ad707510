"""Runs into a file: broken off anywhere, and gone on with."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import resource
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.runs import BAD, FORMATS, ROWS, Stop, after, frozen, names
from pyarrow import dataset, parquet

from glia_rt import Scorer
from glia_rt.errors import GliaError, MissingPackageError, SourceError, UsageError
from glia_rt.listing.frozen import FrozenListing
from glia_rt.listing.sources import Sources
from glia_rt.runs.run import Outcome, Progress, score_to_file, score_to_terminal


def test_all_kinds_of_sources_into_all_kinds_of_files(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes]
) -> None:
    assert sorted(undisturbed) == sorted(
        f"scores.{kind}{end}" for kind in FORMATS for end in ("", ".listing.jsonl.zst", ".meta.json")
    )
    rows = [json.loads(line) for line in undisturbed["scores.jsonl"].splitlines()]
    expected = list(scorer.score_files(listing))
    assert [(row["path"], row["status"], row["error"]) for row in rows] == [
        (result.path, result.status, result.error) for result in expected
    ]
    assert [row["score"] and np.float32(row["score"]) for row in rows] == [result.score for result in expected]
    metadata = json.loads(undisturbed["scores.parquet.meta.json"])
    assert (metadata["rows"], metadata["bad_images"]) == (ROWS, BAD)
    assert metadata["bundle_identity"] == scorer.bundle.identity
    assert metadata["listing"]["pieces"] == 10
    with parquet.ParquetFile(pa.BufferReader(undisturbed["scores.parquet"])) as file:
        assert json.loads(file.metadata.metadata[b"glia-rt"]) == metadata


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_run_that_breaks_off_anywhere_goes_on_to_the_same_file(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    output = tmp_path / f"scores.{kind}"
    starts: list[Progress] = []
    for rows in itertools.repeat(3, 6):
        with pytest.raises(Stop) as stopped:
            score_to_file(
                scorer,
                listing,
                output,
                resume=True,
                on_row=after(rows, Stop()),
                on_start=lambda _, at: starts.append(at),
            )
        assert not output.exists()
        assert stopped.value.__notes__ == [
            f"{3 * len(starts)} rows kept in {output}.parts: the same command with --resume goes on"
        ]
    assert score_to_file(scorer, listing, output, resume=True) == Outcome(ROWS, BAD)
    assert [start.rows for start in starts] == [0, 3, 6, 9, 12, 15]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: content for name, content in undisturbed.items() if name.startswith(output.name)
    }


def test_rows_that_are_not_in_a_part_yet_are_kept_by_an_exception(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_to_file(scorer, listing, output, on_row=after(7, KeyboardInterrupt()))
    assert names(tmp_path) == ["scores.jsonl.parts"]
    kept = (tmp_path / "scores.jsonl.parts" / "000000000000.jsonl").read_bytes()
    assert len(kept.splitlines()) == 7
    score_to_file(scorer, listing, output, resume=True)
    assert output.read_bytes() == undisturbed["scores.jsonl"]


def test_a_run_that_ends_before_its_first_row_leaves_nothing(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"list\.txt: this list cannot be read"):
        score_to_file(scorer, Sources(list_file=tmp_path / "list.txt"), tmp_path / "scores.csv")
    assert names(tmp_path) == []


def test_no_room_for_the_listing_of_a_run_onto_the_terminal(
    scorer: Scorer, listing: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        largest_file(0),
        pytest.raises(GliaError, match=r"cannot be written: File too large; make room, or set TMPDIR"),
    ):
        score_to_terminal(scorer, listing, lambda *_: None, on_start=lambda *_: None)
    assert names(tmp_path) == []


def test_an_archive_that_is_missing_is_a_row(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    sources = Sources([tmp_path / "a.tar", pictures, tmp_path / "a.parquet"])
    assert score_to_file(scorer, sources, tmp_path / "scores.csv") == Outcome(34, 2)


def test_a_thread_that_raises_ends_the_run_with_its_error(
    scorer: Scorer, listing: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count()
    read = scorer._read

    def failing(*args: Any) -> Any:
        if next(count) == 9:
            raise RuntimeError("a bug")
        return read(*args)

    monkeypatch.setattr(scorer, "_read", failing)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        score_to_file(scorer, listing, tmp_path / "scores.csv")
    assert "rows kept in" in caught.value.__notes__[0]


def test_arguments_that_do_not_go_together(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resume, overwrite and retry_errors: give one of them"):
        score_to_file(scorer, listing, tmp_path / "scores.csv", resume=True, overwrite=True)
    with pytest.raises(UsageError, match="there is no folder"):
        score_to_file(scorer, listing, tmp_path / "scores.csv", report=tmp_path / "no" / "r.html")


def test_nothing_to_score(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"no pictures in {tmp_path}/empty"):
        score_to_file(scorer, Sources([tmp_path / "empty"]), tmp_path / "scores.csv")
    assert names(tmp_path) == ["empty"]
    # The fifth of five machines, for four pictures, is to succeed.
    listing = frozen(Sources(sorted(pictures.iterdir())[:4]), tmp_path / "l.jsonl.zst")
    sources = dataclasses.replace(listing, shard=(5, 5))
    assert score_to_file(scorer, sources, tmp_path / "scores.csv") == Outcome(0, 0)
    assert (tmp_path / "scores.csv").read_bytes() == b"path,score,status,error,width,height\r\n"


def test_a_name_too_long_for_what_lies_beside_it(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written: File name too long; name another file"):
        score_to_file(scorer, listing, tmp_path / f"{'a' * 235}.csv", on_row=after(1, Stop()))
    assert names(tmp_path) == []


def test_a_run_on_standard_input_goes_on(
    scorer: Scorer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are in the listing, so that they need not come again."""
    output, report = tmp_path / "scores.csv", tmp_path / "r.html"
    paths = sorted(pictures.iterdir())
    lines = b"".join(os.fsencode(path) + b"\n" for path in paths)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines))))  # type: ignore[arg-type]
    with pytest.raises(Stop):
        score_to_file(scorer, Sources(["-"]), output, on_row=after(5, Stop()))
    assert score_to_file(scorer, Sources(["-"]), output, resume=True, report=report) == Outcome(len(paths), 0)
    score_to_file(scorer, Sources(paths), tmp_path / "named.csv")
    assert output.read_bytes() == (tmp_path / "named.csv").read_bytes()
    assert "32 pictures scored" in report.read_text()


def test_a_run_on_standard_input_keeps_its_names_from_the_start(
    scorer: Scorer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(pictures.iterdir())
    lines = b"".join(os.fsencode(path) + b"\n" for path in paths)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines))))  # type: ignore[arg-type]

    def stop(summary: object, progress: Progress) -> None:
        raise Stop

    with pytest.raises(Stop):
        score_to_file(scorer, Sources(["-"]), tmp_path / "scores.csv", on_start=stop)
    assert score_to_file(scorer, Sources(["-"]), tmp_path / "scores.csv", resume=True) == Outcome(len(paths), 0)


def test_standard_input_that_breaks_off_while_it_is_read_leaves_nothing(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went on would score what was read, and pass it for all."""
    lines = io.BufferedReader(io.BytesIO(b"a.jpg\nb\0c.jpg\n"))  # type: ignore[arg-type]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines))
    with pytest.raises(UsageError, match="there are NULs in it"):
        score_to_file(scorer, Sources(["-"]), tmp_path / "scores.csv")
    assert names(tmp_path) == []


def test_shards_without_pictures_are_not_passed_over_in_silence(scorer: Scorer, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "0.parquet")
    with pytest.raises(UsageError, match=r"no pictures in .*0\.parquet"):
        score_to_file(scorer, Sources([tmp_path / "0.parquet"]), tmp_path / "scores.csv")
    tarfile.open(tmp_path / "0.tar", "w").close()
    assert score_to_file(scorer, Sources([tmp_path / "0.tar"]), tmp_path / "scores.csv") == Outcome(1, 1)


def test_outputs_of_all_shards_are_one_table(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    shards = frozen(listing, tmp_path / "l.jsonl.zst")
    for i in (1, 2, 3):
        score_to_file(scorer, dataclasses.replace(shards, shard=(i, 3)), tmp_path / f"scores-{i}.parquet")
    table = dataset.dataset(sorted(glob(f"{tmp_path}/scores-*.parquet"))).to_table()
    whole = parquet.read_table(pa.BufferReader(undisturbed["scores.parquet"]))
    assert table.sort_by("path").equals(whole.sort_by("path"))
    listings = [json.loads(path.read_text())["listing"] for path in tmp_path.glob("*.meta.json")]
    assert len({one["sha256"] for one in listings}) == 3
    assert {one["of"] for one in listings} == {FrozenListing(tmp_path / "l.jsonl.zst").summary().sha256}


# A full disk


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow past `size` bytes: what a full disk looks like, without filling one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_disk_that_fills_keeps_what_was_scored(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    output = tmp_path / f"scores.{kind}"
    message = rf"scores\.{kind}.*: cannot be written: File too large; .*--resume"
    with largest_file(1450), pytest.raises(GliaError, match=message):
        score_to_file(scorer, listing, output)  # its only part, at the end
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, resume=True, on_row=after(19, Stop()))
    with largest_file(1500), pytest.raises(GliaError, match=message) as caught:
        score_to_file(scorer, listing, output, resume=True)  # the output, from its parts
    assert caught.value.__notes__[0].startswith(f"{ROWS} rows kept in")
    assert not output.exists()
    score_to_file(scorer, listing, output, resume=True)
    assert output.read_bytes() == undisturbed[output.name]


def test_a_disk_that_is_full_from_the_start(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    """Nothing began that --resume could go on with: least of all with what --overwrite was to replace."""
    output = tmp_path / "scores.csv"
    with largest_file(0), pytest.raises(GliaError, match=r"mend the cause, and give the same command again$"):
        score_to_file(scorer, listing, output, overwrite=True)
    assert score_to_file(scorer, listing, output) == Outcome(ROWS, BAD)


# The report


def test_a_report_is_written_beside(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    output, report = tmp_path / "scores.csv", tmp_path / "r.html"
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, report=report, on_row=after(9, Stop()))
    score_to_file(scorer, listing, output, resume=True, report=report)
    assert names(tmp_path) == ["r.html", "scores.csv", "scores.csv.listing.jsonl.zst", "scores.csv.meta.json"]
    assert "17 pictures scored by plain.glia" in report.read_text()


def test_a_report_that_cannot_be_written_holds_the_output_back(
    scorer: Scorer, listing: Sources, tmp_path: Path
) -> None:
    output, report = tmp_path / "scores.csv", tmp_path / "r.html"

    def in_the_way(*_: object) -> None:
        report.mkdir(exist_ok=True)

    with pytest.raises(GliaError, match=r"r\.html: the report cannot be written"):
        score_to_file(scorer, listing, output, report=report, on_row=in_the_way)
    assert not output.exists()
    report.rmdir()
    assert score_to_file(scorer, listing, output, report=report, resume=True, on_row=after(1, Stop())).rows == ROWS
    report.unlink()
    with pytest.raises(UsageError, match=r"scores\.csv is whole, and .*r\.html was not asked for when it was made"):
        score_to_file(scorer, listing, output, report=report, resume=True)


def test_what_the_report_needs_is_asked_for_before_the_first_picture(
    scorer: Scorer, listing: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "glia_rt.runs.page", None)
    with pytest.raises(MissingPackageError, match=r"pip install .*jinja2"):
        score_to_file(scorer, listing, tmp_path / "scores.csv", report=tmp_path / "r.html", on_row=after(1, Stop()))


def test_a_report_takes_no_ones_place(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("precious")
    (tmp_path / "folder.html").mkdir()
    for report, message in {
        "r.html": r"r\.html exists; name another file, or give --overwrite",
        "scores.csv": r"scores\.csv: the report is a page; name it \.html",
        "folder.html": r"folder\.html",
    }.items():
        with pytest.raises(UsageError, match=message):
            score_to_file(scorer, listing, tmp_path / "scores.csv", report=tmp_path / report)
    with pytest.raises(UsageError, match=r"folder\.html: a folder; name a file"):
        score_to_file(scorer, listing, tmp_path / "scores.csv", report=tmp_path / "folder.html", overwrite=True)
    assert (tmp_path / "r.html").read_text() == "precious"
    assert names(tmp_path) == ["folder.html", "r.html"]
