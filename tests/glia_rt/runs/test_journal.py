"""What a run leaves beside its output: kept, refused where it is not of the same run, dropped if asked."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import BAD, ROWS, Stop, after, frozen, names

from glia_rt import Result, Scorer
from glia_rt.errors import GliaError, OutputExistsError, UsageError
from glia_rt.listing.pieces import Position
from glia_rt.listing.sources import Sources
from glia_rt.runs import journal as parts
from glia_rt.runs.journal import Parts
from glia_rt.runs.run import Outcome, Progress, score_to_file


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


def test_an_output_is_on_the_disk_before_its_parts_go(
    scorer: Scorer, listing: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink

    def named(path: Any) -> str:
        return re.sub(r"\.partial-[0-9a-f]{8}", ".partial", os.path.relpath(path, tmp_path))

    def synced(descriptor: int) -> None:
        calls.append(("fsync", named(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def replaced(source: Any, target: Any) -> None:
        calls.append(("replace", named(source), named(target)))
        replace(source, target)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        calls.append(("unlink", named(path)))
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    score_to_file(scorer, listing, tmp_path / "scores.csv")
    merged = calls.index(("fsync", "scores.csv.parts/merged"))
    assert calls[merged:-3] == [
        ("fsync", "scores.csv.parts/merged"),
        # First this, so that killed in between the run takes the output for its own.
        ("fsync", "scores.csv.parts/.run.json.partial/new"),
        ("replace", "scores.csv.parts/.run.json.partial/new", "scores.csv.parts/run.json"),
        ("fsync", "scores.csv.parts"),
        ("replace", "scores.csv.parts/merged", "scores.csv"),
        ("fsync", "."),
        ("fsync", ".scores.csv.listing.jsonl.zst.partial/new"),
        ("replace", ".scores.csv.listing.jsonl.zst.partial/new", "scores.csv.listing.jsonl.zst"),
        ("fsync", "."),
        ("fsync", ".scores.csv.meta.json.partial/new"),
        ("replace", ".scores.csv.meta.json.partial/new", "scores.csv.meta.json"),
        ("fsync", "."),
        ("unlink", "scores.csv.parts/run.json"),
    ]


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


def test_an_output_through_a_link_is_written_where_that_points_to(
    scorer: Scorer, listing: Sources, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "big").mkdir()
    for name in ("scores.csv", "report.html"):
        (tmp_path / "big" / name).write_text("old")
        (tmp_path / name).symlink_to(f"big/{name}")
    score_to_file(scorer, listing, tmp_path / "scores.csv", overwrite=True, report=tmp_path / "report.html")
    assert all((tmp_path / name).is_symlink() for name in ("scores.csv", "report.html"))
    assert (tmp_path / "big" / "scores.csv").read_bytes() == undisturbed["scores.csv"]
    assert "<html" in (tmp_path / "big" / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"big", "scores.csv", "report.html"}


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
    assert names(tmp_path) == ["scores.csv", "scores.csv.listing.jsonl.zst", "scores.csv.meta.json"]


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


def test_another_run_is_not_gone_on_with(
    scorer: Scorer, plain_bundle: Path, listing: Sources, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.csv"
    shutil.copytree(pictures, tmp_path / "album")
    sources = Sources([tmp_path / "album"])
    with pytest.raises(Stop):
        score_to_file(scorer, sources, output, on_row=after(3, Stop()))
    before = {path.name: path.read_bytes() for path in (tmp_path / "scores.csv.parts").iterdir()}

    message = r"rows of another run: batch_size was 2, is 3\. Go on as it began"
    with Scorer.open(plain_bundle, "onnxruntime", batch_size=3) as other, pytest.raises(UsageError, match=message):
        score_to_file(other, sources, output, resume=True)
    with pytest.raises(UsageError, match=r"listing\.sources was .*; the paths, the list or -0 were others\. Go on"):
        score_to_file(scorer, Sources([tmp_path / "album" / "00.jpg"]), output, resume=True)
    shards = frozen(sources, tmp_path / "l.jsonl.zst")
    with pytest.raises(UsageError, match=r"listing\.shard was \"1/1\", is \"1/2\""):
        score_to_file(scorer, dataclasses.replace(shards, shard=(1, 2)), output, resume=True)

    assert {path.name: path.read_bytes() for path in (tmp_path / "scores.csv.parts").iterdir()} == before


def test_a_bundle_with_another_identity_is_another_run(
    scorer: Scorer, edited_bundle: Any, listing: Sources, tmp_path: Path
) -> None:
    output = tmp_path / "scores.csv"
    with pytest.raises(Stop):
        score_to_file(scorer, listing, output, on_row=after(3, Stop()))
    other = edited_bundle(lambda folder, manifest: manifest.update(card={"text": "exported again"}))
    message = r"rows of another run: .*bundle_identity was"
    with Scorer.open(other, "onnxruntime", batch_size=2) as opened, pytest.raises(UsageError, match=message):
        score_to_file(opened, listing, output, resume=True)


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
    assert "20 rows kept" in caught.value.__notes__[0]
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
    assert names(tmp_path) == ["scores.csv", "scores.csv.listing.jsonl.zst", "scores.csv.meta.json"]


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
    assert names(tmp_path) == ["scores.csv", "scores.csv.listing.jsonl.zst", "scores.csv.meta.json"]
