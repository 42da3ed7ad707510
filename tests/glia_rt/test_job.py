"""Runs into a file: broken off anywhere, gone on with, refused where they are not the same run."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import json
import os
import resource
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import dataset, parquet

from glia_rt import Result, Scorer, parts
from glia_rt.errors import GliaError, MissingPackageError, OutputExistsError, SourceError, UsageError
from glia_rt.job import Outcome, Progress, score_to_file
from glia_rt.parts import Parts
from glia_rt.sources import Position, Sources

FORMATS = ("csv", "jsonl", "parquet")


class Stop(Exception):
    """What ends a run in these tests."""


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Path) -> Iterator[Scorer]:
    with Scorer.open(tiny_bundle, "onnxruntime", batch_size=2) as scorer:
        yield scorer


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("glia-")] == []


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for every row."""
    monkeypatch.setattr(parts, "PART_SECONDS", 0.0)


@pytest.fixture(scope="module")
def listing(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """20 rows: six files, one of them bad, a shard of seven with a link, a Parquet file of seven rows with a null."""
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


ROWS, BAD = 20, 3


@pytest.fixture(scope="module")
def undisturbed(scorer: Scorer, listing: Sources, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for kind in FORMATS:
        assert score_to_file(scorer, listing, folder / f"scores.{kind}") == Outcome(ROWS, BAD)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def after(rows: int, error: BaseException) -> Callable[[Progress, Result], None]:
    """Raise once so many rows of this run are done."""
    count = itertools.count(1)

    def on_row(progress: Progress, result: Result) -> None:
        if next(count) == rows:
            raise error

    return on_row


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow past `size` bytes: what a full disk looks like, without filling one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_all_kinds_of_sources_into_all_kinds_of_files(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes]
) -> None:
    assert sorted(undisturbed) == sorted(f"scores.{kind}{end}" for kind in FORMATS for end in ("", ".meta.json"))
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
            f"{3 * len(starts)} rows are kept in {output}.parts: the same command with --resume goes on"
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
    (tmp_path / "list.txt").write_text("a.tar\n")
    sources = Sources(list_file=tmp_path / "list.txt")
    with pytest.raises(SourceError, match=r"a\.tar: cannot be read"):
        score_to_file(scorer, sources, tmp_path / "scores.csv")
    assert names(tmp_path) == ["list.txt"]


def test_a_source_that_goes_away_is_an_error_and_what_was_scored_is_kept(
    scorer: Scorer, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "album")
    gone = after(4, Stop())

    def on_row(progress: Progress, result: Result) -> None:
        try:
            gone(progress, result)
        except Stop:
            shutil.rmtree(tmp_path / "album")

    with pytest.raises(SourceError, match=r"album: pictures can no longer be read from here: No such file") as caught:
        score_to_file(scorer, Sources([tmp_path / "album"]), tmp_path / "scores.csv", on_row=on_row)
    assert "rows are kept in" in caught.value.__notes__[0]
    lines = (tmp_path / "scores.csv.parts" / "000000000000.jsonl").read_text().splitlines()
    assert len(lines) >= 4
    assert {json.loads(line)["status"] for line in lines} == {"ok"}


@pytest.mark.parametrize("named_by", ["folder", "pattern", "list"])
@pytest.mark.parametrize("how", ["moved", "emptied"])
def test_a_source_that_goes_away_however_it_was_named(
    scorer: Scorer, pictures: Path, tmp_path: Path, named_by: str, how: str
) -> None:
    """As a disk that is unmounted leaves its folder, with nothing in it."""
    album = tmp_path / "album"
    shutil.copytree(pictures, album)
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(album.iterdir())))
    sources = {
        "folder": Sources([album]),
        "pattern": Sources([tmp_path / "*/*"]),
        "list": Sources(list_file=tmp_path / "list.txt"),
    }[named_by]

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 4:
            album.rename(tmp_path / "elsewhere")
            if how == "emptied":
                album.mkdir()

    with pytest.raises(SourceError, match=r"album: (pictures can no longer be read|this folder cannot be listed)"):
        score_to_file(scorer, sources, tmp_path / "scores.csv", on_row=on_row)
    [part] = (tmp_path / "scores.csv.parts").glob("*.jsonl")
    assert {json.loads(line)["status"] for line in part.read_text().splitlines()} == {"ok"}


@pytest.mark.parametrize("named_by", ["paths", "list", "Parquet"])
def test_a_source_that_is_still_gone_when_a_run_goes_on(
    scorer: Scorer, pictures: Path, tmp_path: Path, named_by: str
) -> None:
    """Pictures that were not scored for it must not become rows that say that they are missing."""
    album = tmp_path / "album"
    shutil.copytree(pictures, album)
    paths = [str(path) for path in sorted(album.iterdir())]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    parquet.write_table(pa.table({"path": paths}), tmp_path / "list.parquet")
    sources = {
        "paths": Sources(paths),
        "list": Sources(list_file=tmp_path / "list.txt"),
        "Parquet": Sources([tmp_path / "list.parquet"]),
    }[named_by]
    output = tmp_path / "scores.csv"

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 4:
            album.rename(tmp_path / "elsewhere")

    with pytest.raises(SourceError, match=r"album: pictures can no longer be read"):
        score_to_file(scorer, sources, output, on_row=on_row)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"album: pictures can no longer be read"):
            score_to_file(scorer, sources, output, resume=True)
    (tmp_path / "elsewhere").rename(album)
    assert score_to_file(scorer, sources, output, resume=True) == Outcome(len(paths), 0)


def test_a_source_that_goes_away_beside_one_that_stays(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "a")
    shutil.copytree(pictures, tmp_path / "b")
    paths = [tmp_path / folder / path.name for path in sorted(pictures.iterdir()) for folder in "ab"]

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 4:
            (tmp_path / "b").rename(tmp_path / "elsewhere")

    with pytest.raises(SourceError, match=r"/b: pictures can no longer be read"):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", on_row=on_row)
    with pytest.raises(SourceError, match=r"/b: pictures can no longer be read"):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", resume=True)
    (tmp_path / "elsewhere").rename(tmp_path / "b")
    assert score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", resume=True) == Outcome(len(paths), 0)


@pytest.mark.usefixtures("often")
def test_a_source_that_is_still_gone_after_a_bad_picture(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """The last part says nothing of where pictures could be read from."""
    album = tmp_path / "album"
    shutil.copytree(pictures, album)
    paths = sorted(album.iterdir())
    paths[5].write_text("no picture")
    with pytest.raises(Stop):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", on_row=after(6, Stop()))
    album.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"album: pictures can no longer be read"):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", resume=True)


@pytest.mark.usefixtures("often")
def test_a_file_that_is_missing_is_a_row_after_a_shard_too(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """Rows of a shard are named as if it were a folder, which no run that goes on must take it for."""
    paths = sorted(pictures.iterdir())[:4]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in paths:
            tar.add(path, f"within/{path.name}")
    sources = Sources([tmp_path / "0.tar", tmp_path / "missing.jpg", *paths])
    with pytest.raises(Stop):
        score_to_file(scorer, sources, tmp_path / "scores.csv", on_row=after(4, Stop()))
    assert score_to_file(scorer, sources, tmp_path / "scores.csv", resume=True) == Outcome(9, 1)


def test_a_file_that_is_missing_is_a_row(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "album")
    paths = sorted((tmp_path / "album").iterdir())
    paths[7].unlink()
    assert score_to_file(scorer, Sources(paths), tmp_path / "scores.csv") == Outcome(len(paths), 1)


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
    assert "rows are kept in" in caught.value.__notes__[0]


# Refusals


def test_an_output_is_replaced_only_if_asked(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    output.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"scores\.csv exists.*--overwrite"):
        score_to_file(scorer, listing, output)
    with pytest.raises(OutputExistsError, match=r"scores\.csv exists, and is not of this run.*--overwrite"):
        score_to_file(scorer, listing, output, resume=True)
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, overwrite=True, on_row=after(3, Stop()))
    assert output.read_text() == "precious"
    assert score_to_file(scorer, listing, output, resume=True) == Outcome(ROWS, BAD)
    assert output.read_text() != "precious"


def test_a_broken_link_in_the_outputs_place_counts_as_an_output(
    scorer: Scorer, listing: Sources, tmp_path: Path
) -> None:
    (tmp_path / "scores.csv").symlink_to("unmounted.csv")
    with pytest.raises(OutputExistsError):
        score_to_file(scorer, listing, tmp_path / "scores.csv")


def test_rows_of_a_run_that_broke_off_are_dropped_only_if_asked(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "scores.csv"
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, on_row=after(3, Stop()))
    with pytest.raises(OutputExistsError, match=r"scores\.csv\.parts has the rows of a run that broke off: .*--resume"):
        score_to_file(scorer, listing, output)
    starts: list[Progress] = []
    score_to_file(scorer, listing, output, overwrite=True, on_start=lambda _, at: starts.append(at))
    assert starts == [Progress(0, 0)]
    assert output.read_bytes() == undisturbed["scores.csv"]


def test_resuming_what_is_done_does_nothing_and_says_what_is_there(
    scorer: Scorer, listing: Sources, tmp_path: Path
) -> None:
    output = tmp_path / "scores.csv"
    score_to_file(scorer, listing, output)
    before = output.stat()
    (tmp_path / "scores.csv.parts").mkdir()  # a crash after the output appeared
    assert score_to_file(scorer, listing, output, resume=True, on_row=after(1, Stop())) == Outcome(ROWS, BAD)
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names(tmp_path) == ["scores.csv", "scores.csv.meta.json"]


def test_rows_of_a_run_win_over_the_output_it_was_to_replace(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """Pictures are others under the same names: what was scored first must not pass for what --overwrite asked for."""
    album, output = tmp_path / "album", tmp_path / "scores.csv"
    shutil.copytree(pictures, album)
    score_to_file(scorer, Sources([album]), output)
    for path, other in itertools.pairwise(sorted(pictures.iterdir())):
        shutil.copy(other, album / path.name)
    with pytest.raises(Stop):
        score_to_file(scorer, Sources([album]), output, overwrite=True, on_row=after(5, Stop()))
    score_to_file(scorer, Sources([album]), output, resume=True)
    score_to_file(scorer, Sources([album]), tmp_path / "anew.csv")
    assert output.read_bytes() == (tmp_path / "anew.csv").read_bytes()


def test_an_overwrite_that_ends_before_its_first_row_is_not_forgotten(
    scorer: Scorer, pictures: Path, tmp_path: Path
) -> None:
    album, output = tmp_path / "album", tmp_path / "scores.csv"
    shutil.copytree(pictures, album)
    score_to_file(scorer, Sources([album]), output)
    for path, other in itertools.pairwise(sorted(pictures.iterdir())):
        shutil.copy(other, album / path.name)

    def stop(*_: Any) -> None:
        raise Stop

    with pytest.raises(Stop):
        score_to_file(scorer, Sources([album]), output, overwrite=True, on_start=stop)
    score_to_file(scorer, Sources([album]), output, resume=True)
    score_to_file(scorer, Sources([album]), tmp_path / "anew.csv")
    assert output.read_bytes() == (tmp_path / "anew.csv").read_bytes()


def killing(patch: pytest.MonkeyPatch, unlinks: int) -> None:
    """Let the process end, as far as it can tell, in the place of the unlink of this number."""
    count, unlink = itertools.count(), Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if next(count) == unlinks:
            raise Stop
        unlink(path, missing_ok)

    patch.setattr(Path, "unlink", killed)


@pytest.mark.parametrize("unlinks", [0, 1, 4])
def test_killed_while_parts_are_removed(
    scorer: Scorer,
    listing: Sources,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unlinks: int,
) -> None:
    output = tmp_path / "scores.csv"
    monkeypatch.setattr(parts, "PART_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        killing(patch, unlinks)
        with pytest.raises(Stop):
            score_to_file(scorer, listing, output)
    assert (tmp_path / "scores.csv.parts").exists()
    assert score_to_file(scorer, listing, output, resume=True, on_row=after(1, Stop())) == Outcome(ROWS, BAD)
    assert output.read_bytes() == undisturbed["scores.csv"]
    assert names(tmp_path) == ["scores.csv", "scores.csv.meta.json"]


@pytest.mark.parametrize("unlinks", [0, 1, 3])
def test_killed_while_the_rows_of_another_run_are_dropped(
    scorer: Scorer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlinks: int
) -> None:
    album, output = tmp_path / "album", tmp_path / "scores.csv"
    shutil.copytree(pictures, album)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "PART_SECONDS", 0.0)
        with pytest.raises(Stop):
            score_to_file(scorer, Sources([album]), output, on_row=after(5, Stop()))
    for path, other in itertools.pairwise(sorted(pictures.iterdir())):
        shutil.copy(other, album / path.name)
    with monkeypatch.context() as patch:
        killing(patch, unlinks)
        with pytest.raises(Stop):
            score_to_file(scorer, Sources([album]), output, overwrite=True)
    score_to_file(scorer, Sources([album]), output, resume=True)
    score_to_file(scorer, Sources([album]), tmp_path / "anew.csv")
    assert output.read_bytes() == (tmp_path / "anew.csv").read_bytes()


def test_another_run_is_not_gone_on_with(
    scorer: Scorer, tiny_bundle: Path, listing: Sources, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.csv"
    shutil.copytree(pictures, tmp_path / "album")
    sources = Sources([tmp_path / "album"])
    with pytest.raises(Stop):
        score_to_file(scorer, sources, output, on_row=after(3, Stop()))
    before = {path.name: path.read_bytes() for path in (tmp_path / "scores.csv.parts").iterdir()}

    message = r"rows of another run: batch_size was 2, is 3\. Go on as it began"
    with Scorer.open(tiny_bundle, "onnxruntime", batch_size=3) as other, pytest.raises(UsageError, match=message):
        score_to_file(other, sources, output, resume=True)
    with pytest.raises(UsageError, match=r"listing\.shard was \"1/1\", is \"1/2\""):
        score_to_file(scorer, Sources([tmp_path / "album"], shard=(1, 2)), output, resume=True)
    (tmp_path / "album" / "99.jpg").write_bytes(b"one more")
    with pytest.raises(UsageError, match=r"listing\.pieces was 32, is 33; listing\.sha256 was"):
        score_to_file(scorer, sources, output, resume=True)
    (tmp_path / "album" / "99.jpg").unlink()
    (tmp_path / "album" / "00.jpg").rename(tmp_path / "album" / "00b.jpg")
    with pytest.raises(UsageError, match=r"rows of another run: listing\.sha256 was"):
        score_to_file(scorer, sources, output, resume=True)

    assert {path.name: path.read_bytes() for path in (tmp_path / "scores.csv.parts").iterdir()} == before


def test_a_bundle_with_another_identity_is_another_run(
    scorer: Scorer, edited_bundle: Any, listing: Sources, tmp_path: Path
) -> None:
    output = tmp_path / "scores.csv"
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, on_row=after(3, Stop()))
    other = edited_bundle(lambda folder, manifest: manifest.update(note="exported again"))
    message = r"rows of another run: .*bundle_identity was"
    with Scorer.open(other, "onnxruntime", batch_size=2) as opened, pytest.raises(UsageError, match=message):
        score_to_file(opened, listing, output, resume=True)


@pytest.mark.parametrize("option", ["resume", "report"])
def test_standard_input_is_read_once(scorer: Scorer, tmp_path: Path, option: str) -> None:
    options: dict[str, Any] = {"resume": {"resume": True}, "report": {"report": tmp_path / "r.html"}}[option]
    with pytest.raises(
        UsageError, match=r"standard input, or a pipe, is read once: .*put the names into a --list file"
    ):
        score_to_file(scorer, Sources(["-"]), tmp_path / "scores.csv", **options)


def test_arguments_that_do_not_go_together(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resume and overwrite: give one of them"):
        score_to_file(scorer, listing, tmp_path / "scores.csv", resume=True, overwrite=True)
    with pytest.raises(UsageError, match="there is no folder"):
        score_to_file(scorer, listing, tmp_path / "scores.csv", report=tmp_path / "no" / "r.html")


def test_nothing_to_score(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"no pictures in {tmp_path}/empty"):
        score_to_file(scorer, Sources([tmp_path / "empty"]), tmp_path / "scores.csv")
    assert names(tmp_path) == ["empty"]
    # The fifth of five machines, for four pictures, is to succeed.
    sources = Sources(sorted(pictures.iterdir())[:4], shard=(5, 5))
    assert score_to_file(scorer, sources, tmp_path / "scores.csv") == Outcome(0, 0)
    assert (tmp_path / "scores.csv").read_bytes() == b"path,score,status,error,width,height\r\n"


def test_two_runs_onto_one_output(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"

    def second(progress: Progress, result: Result) -> None:
        for options in ({"resume": True}, {"overwrite": True}, *([] if output.exists() else [{}])):
            with pytest.raises(OutputExistsError, match="another run is writing it"):
                score_to_file(scorer, listing, output, **options)  # type: ignore[arg-type]

    assert score_to_file(scorer, listing, output, on_row=second) == Outcome(ROWS, BAD)
    assert score_to_file(scorer, listing, output, overwrite=True, on_row=second) == Outcome(ROWS, BAD)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_files_cannot_be_locked(
    scorer: Scorer, listing: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed on another machine leaves what no one can tell from a run that goes on."""

    def missing(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    output, lock = tmp_path / "scores.csv", tmp_path / "scores.csv.parts" / "lock"
    held = []
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, on_row=lambda *_: held.append(lock.read_text()) or after(1, Stop())(*_))
    lock.write_text(held[0].replace(socket.gethostname(), "another-machine"))
    with pytest.raises(OutputExistsError, match=r"another run is writing it; .*; if none is, delete .*parts/lock$"):
        score_to_file(scorer, listing, output, resume=True)
    lock.unlink()
    assert score_to_file(scorer, listing, output, resume=True) == Outcome(ROWS, BAD)


def test_an_output_that_appears_meanwhile_is_not_replaced(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "scores.csv"

    def on_row(progress: Progress, result: Result) -> None:
        output.write_text("precious")

    with pytest.raises(OutputExistsError, match=r"scores\.csv has appeared since this run began: move it") as caught:
        score_to_file(scorer, listing, output, on_row=on_row)
    assert "20 rows are kept" in caught.value.__notes__[0]
    with pytest.raises(OutputExistsError, match=r"scores\.csv exists, and is not of this run"):
        score_to_file(scorer, listing, output, resume=True)
    assert output.read_text() == "precious"
    output.unlink()
    assert score_to_file(scorer, listing, output, resume=True, on_row=after(1, Stop())) == Outcome(ROWS, BAD)
    assert output.read_bytes() == undisturbed["scores.csv"]


def test_a_folder_of_parts_that_no_run_wrote_is_left_alone(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    (tmp_path / "scores.csv.parts").mkdir()
    (tmp_path / "scores.csv.parts" / "thesis.txt").write_text("precious")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"scores\.csv\.parts holds files that no run wrote: move them"):
            score_to_file(scorer, listing, tmp_path / "scores.csv", **options)  # type: ignore[arg-type]
    assert (tmp_path / "scores.csv.parts" / "thesis.txt").read_text() == "precious"


def test_a_place_that_cannot_be_written(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    (tmp_path / "scores.csv.parts").write_text("a file in the way")
    with pytest.raises(UsageError, match=r"scores\.csv\.parts: cannot be written: File exists"):
        score_to_file(scorer, listing, tmp_path / "scores.csv")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "000000000002.jsonl").unlink(), r"000000000002\.jsonl is missing: start anew"),
        (lambda folder: (folder / "000000000002.jsonl").write_bytes(b"{"), r"000000000002\.jsonl is damaged"),
        (lambda folder: (folder / "000000000002.jsonl").write_bytes(b""), r"000000000002\.jsonl is damaged"),
        (lambda folder: (folder / "000000000002.jsonl").write_bytes(b'{"at": [0, 2]}\n'), r"02\.jsonl is damaged"),
        (lambda folder: (folder / "run.json").write_bytes(b"{"), r"run\.json is damaged .*: start anew"),
        (lambda folder: (folder / "run.json").write_bytes(b"[]"), r"run\.json is damaged: start anew"),
    ],
    ids=["missing", "damaged", "empty", "half a row", "run", "no run"],
)
@pytest.mark.usefixtures("often")
def test_parts_that_were_tampered_with_are_no_output(
    scorer: Scorer, listing: Sources, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    output = tmp_path / "scores.csv"
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, on_row=after(5, Stop()))
    damage(tmp_path / "scores.csv.parts")
    with pytest.raises(GliaError, match=message):
        score_to_file(scorer, listing, output, resume=True)
    assert not output.exists()


# A full disk


@pytest.mark.parametrize("kind", FORMATS)
def test_a_disk_that_fills_keeps_what_was_scored(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    output = tmp_path / f"scores.{kind}"
    message = rf"scores\.{kind}.*: cannot be written: File too large; .*--resume"
    with largest_file(1200), pytest.raises(GliaError, match=message):
        score_to_file(scorer, listing, output)  # its only part, at the end
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, resume=True, on_row=after(19, Stop()))
    with largest_file(1500), pytest.raises(GliaError, match=message) as caught:
        score_to_file(scorer, listing, output, resume=True)  # the output, from its parts
    assert caught.value.__notes__[0].startswith(f"{ROWS} rows are kept in")
    assert not output.exists()
    score_to_file(scorer, listing, output, resume=True)
    assert output.read_bytes() == undisturbed[output.name]


def test_a_disk_that_is_full_from_the_start(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    """Nothing began that --resume could go on with: least of all with what --overwrite was to replace."""
    output = tmp_path / "scores.csv"
    with largest_file(0), pytest.raises(GliaError, match=r"mend the cause, and give the same command again$"):
        score_to_file(scorer, listing, output, overwrite=True)
    assert score_to_file(scorer, listing, output) == Outcome(ROWS, BAD)


def test_parts_go_into_the_folder_as_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename is of a file that was forced to the disk, and is then forced itself."""
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    with Parts(tmp_path / "scores.csv", {"a": 1}, resume=False, overwrite=False) as run:
        run.write(Position(0, 0), Result("a.jpg", 1.0, "ok", None, 3, 4))
        run.commit()
        run.commit()
    # The folder itself; then run.json, and the part.
    assert calls == ["fsync", *["fsync", "replace", "fsync"] * 2]
    assert names(tmp_path / "scores.csv.parts") == ["000000000000.jsonl", "lock", "run.json"]


# The report


def test_a_report_is_written_beside(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    output, report = tmp_path / "scores.csv", tmp_path / "r.html"
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, report=report, on_row=after(9, Stop()))
    score_to_file(scorer, listing, output, resume=True, report=report)
    assert names(tmp_path) == ["r.html", "scores.csv", "scores.csv.meta.json"]
    assert "17 pictures scored by tiny.glia" in report.read_text()


def test_a_report_that_cannot_be_written_holds_the_output_back(
    scorer: Scorer, listing: Sources, tmp_path: Path
) -> None:
    output, report = tmp_path / "scores.csv", tmp_path / "r.html"
    (tmp_path / "r.html.partial").mkdir()
    with pytest.raises(GliaError, match=r"r\.html: the report cannot be written"):
        score_to_file(scorer, listing, output, report=report)
    assert not output.exists()
    (tmp_path / "r.html.partial").rmdir()
    assert score_to_file(scorer, listing, output, report=report, resume=True, on_row=after(1, Stop())).rows == ROWS
    report.unlink()
    with pytest.raises(UsageError, match=r"scores\.csv is whole, and .*r\.html was not asked for when it was made"):
        score_to_file(scorer, listing, output, report=report, resume=True)


@pytest.mark.parametrize("at", ["scores.csv", "scores.csv.meta.json"])
def test_killed_between_the_output_and_its_metadata(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: Any, at: str
) -> None:
    """Over the output of another run: at no moment may metadata vouch for rows that are not theirs."""
    output = tmp_path / "scores.csv"
    score_to_file(scorer, Sources(listing.paths[:1]), output)
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == at:
            raise Stop
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, overwrite=True)
    monkeypatch.setattr(os, "replace", replace)
    score_to_file(scorer, listing, output, resume=True)
    assert output.read_bytes() == undisturbed["scores.csv"]
    assert names(tmp_path) == ["scores.csv", "scores.csv.meta.json"]


def test_a_shard_that_goes_after_its_last_row_is_missed_by_the_report_alone(
    scorer: Scorer, pictures: Path, tmp_path: Path
) -> None:
    paths = sorted(pictures.iterdir())[:4]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == len(paths):
            (tmp_path / "0.tar").unlink()

    report = tmp_path / "r.html"
    sources = Sources([tmp_path / "0.tar"])
    outcome = score_to_file(scorer, sources, tmp_path / "scores.csv", report=report, on_row=on_row)
    assert outcome == Outcome(len(paths), 0)
    assert "gone since" in report.read_text()


def test_what_the_report_needs_is_asked_for_before_the_first_picture(
    scorer: Scorer, listing: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "glia_rt.report", None)
    with pytest.raises(MissingPackageError, match=r"glia-rt\[report\]"):
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


def test_a_name_too_long_for_what_lies_beside_it(scorer: Scorer, listing: Sources, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written: File name too long; name another file"):
        score_to_file(scorer, listing, tmp_path / f"{'a' * 235}.csv", on_row=after(1, Stop()))
    assert names(tmp_path) == []


def test_what_a_run_on_standard_input_leaves(
    scorer: Scorer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scores.csv"
    lines = b"".join(os.fsencode(path) + b"\n" for path in sorted(pictures.iterdir()))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(lines))))  # type: ignore[arg-type]
    with pytest.raises(Stop) as stopped:
        score_to_file(scorer, Sources(["-"]), output, on_row=after(5, Stop()))
    assert stopped.value.__notes__ == [f"5 rows are kept in {output}.parts: such a run cannot go on"]
    with pytest.raises(OutputExistsError, match=r"of a run that broke off: give --overwrite to drop it"):
        score_to_file(scorer, Sources(["-"]), output)


def test_shards_without_pictures_are_not_passed_over_in_silence(scorer: Scorer, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "0.parquet")
    with pytest.raises(UsageError, match=r"no pictures in .*0\.parquet"):
        score_to_file(scorer, Sources([tmp_path / "0.parquet"]), tmp_path / "scores.csv")
    tarfile.open(tmp_path / "0.tar", "w").close()
    assert score_to_file(scorer, Sources([tmp_path / "0.tar"]), tmp_path / "scores.csv") == Outcome(1, 1)


def test_outputs_of_all_shards_are_one_table(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for i in (1, 2, 3):
        score_to_file(scorer, dataclasses.replace(listing, shard=(i, 3)), tmp_path / f"scores-{i}.parquet")
    table = dataset.dataset(sorted(glob(f"{tmp_path}/scores-*.parquet"))).to_table()
    whole = parquet.read_table(pa.BufferReader(undisturbed["scores.parquet"]))
    assert table.sort_by("path").equals(whole.sort_by("path"))
    digests = [json.loads(path.read_text())["listing"]["sha256"] for path in tmp_path.glob("*.meta.json")]
    assert len(digests) == 3
    assert set(digests) == {json.loads(undisturbed["scores.csv.meta.json"])["listing"]["sha256"]}
