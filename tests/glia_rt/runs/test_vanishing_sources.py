"""Sources that go away while they are scored: an error, with what was scored kept, and no rows for good."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.runs import Stop, after, frozen
from pyarrow import parquet

from glia_rt import Result, Scorer
from glia_rt.errors import SourceError
from glia_rt.listing.sources import Sources
from glia_rt.runs.run import Outcome, Progress, score_to_file


def test_a_source_that_goes_away_is_an_error_and_what_was_scored_is_kept(
    scorer: Scorer, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "album")
    gone = after(4, Stop())

    def on_row(progress: Progress, result: Result) -> None:
        try:
            gone(progress, result)
        except Stop:
            # At once: in a folder that is being emptied a missing file is a row.
            shutil.rmtree((tmp_path / "album").rename(tmp_path / "gone"))

    with pytest.raises(SourceError, match=r"album: pictures can no longer be read from here: No such file") as caught:
        score_to_file(scorer, Sources([tmp_path / "album"]), tmp_path / "scores.csv", on_row=on_row)
    assert "rows kept in" in caught.value.__notes__[0]
    lines = (tmp_path / "scores.csv.parts" / "000000000000.jsonl").read_text().splitlines()
    assert len(lines) >= 4
    assert {json.loads(line)["status"] for line in lines} == {"ok"}
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "gone for good").touch()
    found = score_to_file(scorer, Sources([tmp_path / "album"]), tmp_path / "scores.csv", resume=True)
    assert found == Outcome(32, 32 - len(lines))


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
        "pattern": Sources([album / "*"]),
        "list": Sources(list_file=tmp_path / "list.txt"),
    }[named_by]

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 4:
            album.rename(tmp_path / "elsewhere")
            if how == "emptied":
                album.mkdir()

    with pytest.raises(SourceError, match=r"album: pictures can no longer be read"):
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


@pytest.mark.parametrize("named_by", ["folder", "pattern"])
@pytest.mark.parametrize("how", ["deleted", "emptied"])
@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.usefixtures("often")
def test_a_subfolder_that_goes_for_good(
    scorer: Scorer, pictures: Path, tmp_path: Path, named_by: str, how: str, is_killed: bool
) -> None:
    """The folder that was searched stands, so that its pictures are rows, and so are others that are missing."""
    root, output = tmp_path / "root", tmp_path / "scores.jsonl"
    shutil.copytree(pictures, root / "a")
    shutil.copytree(pictures, root / "b")
    sources = Sources([root if named_by == "folder" else tmp_path / "root/*/*.jpg"])

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 3:
            shutil.rmtree(root / "a")
            if how == "emptied":
                (root / "a").mkdir()
            (root / "b" / "31.jpg").unlink()
            if is_killed:
                raise Stop

    if is_killed:
        with pytest.raises(Stop):
            score_to_file(scorer, sources, output, on_row=on_row)
        outcome = score_to_file(scorer, sources, output, resume=True)
    else:
        outcome = score_to_file(scorer, sources, output, on_row=on_row)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["path"] for row in rows] == [f"{root}/{name}/{i:02}.jpg" for name in "ab" for i in range(32)]
    assert {row["status"] for row in rows[:3]} | {row["status"] for row in rows[32:63]} == {"ok"}
    missing = [row for row in rows if row["error"] == "No such file or directory"]
    assert (outcome.rows, outcome.bad) == (64, len(missing))
    assert rows[31] in missing, "the last of the subfolder"
    assert rows[63] in missing


def test_a_subfolder_of_archives_that_goes_for_good(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "shards" / name).mkdir(parents=True)
        for i in range(2):
            with tarfile.open(tmp_path / "shards" / name / f"{i}.tar", "w") as tar:
                for path in sorted(pictures.iterdir())[:8]:
                    tar.add(path, path.name)
    sources = Sources([tmp_path / "shards/**"])
    with pytest.raises(Stop):
        score_to_file(scorer, sources, tmp_path / "scores.csv", on_row=after(3, Stop()))
    shutil.rmtree(tmp_path / "shards/a")
    assert score_to_file(scorer, sources, tmp_path / "scores.csv", resume=True) == Outcome(3 + 2 + 16, 2)


def test_a_missing_file_beside_a_folder_that_goes(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """Each file that is named has its own folder to tell, if others lie there."""
    for name in ("a", "b"):
        shutil.copytree(pictures, tmp_path / name)
    paths = [*sorted((tmp_path / "a").iterdir())[:4], tmp_path / "b/gone.jpg", *sorted((tmp_path / "b").iterdir())]
    with pytest.raises(Stop):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", on_row=after(4, Stop()))
    shutil.rmtree(tmp_path / "a")
    assert score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", resume=True) == Outcome(37, 1)


def test_a_disk_of_many_folders_that_goes(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """None of the folders that come was read from, and none is there."""
    paths = [tmp_path / "disk" / f"{i:02}" / "a.jpg" for i in range(32)]
    for path in paths:
        path.parent.mkdir(parents=True)
        shutil.copy(pictures / "00.jpg", path)
    with pytest.raises(Stop):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", on_row=after(4, Stop()))
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"disk/\d\d: pictures can no longer be read"):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", resume=True)
    (tmp_path / "elsewhere").rename(tmp_path / "disk")
    assert score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", resume=True) == Outcome(32, 0)


def test_a_searched_folder_on_another_disk_than_before(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """As if a disk is unmounted that had covered a folder with something in it."""
    album = tmp_path / "album"
    (tmp_path / "covered").mkdir()
    (tmp_path / "covered" / "readme.txt").touch()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        assert os.stat(disk).st_dev != os.stat(tmp_path).st_dev
        shutil.copytree(pictures, f"{disk}/album")
        album.symlink_to(f"{disk}/album")

        def on_row(progress: Progress, result: Result) -> None:
            if progress.rows == 4:
                album.unlink()
                album.symlink_to("covered")

        with pytest.raises(SourceError, match="album: pictures can no longer be read from here: another disk is there"):
            score_to_file(scorer, Sources([album]), tmp_path / "scores.csv", on_row=on_row)
        album.unlink()
        album.symlink_to(f"{disk}/album")
        assert score_to_file(scorer, Sources([album]), tmp_path / "scores.csv", resume=True) == Outcome(32, 0)


@pytest.mark.usefixtures("often")
def test_a_disk_below_the_searched_folder_that_goes(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """It is told from a subfolder that goes, in a run that goes on too."""
    shutil.copytree(pictures, tmp_path / "top/b")
    sources, output = Sources([tmp_path / "top/*/*.jpg"]), tmp_path / "scores.csv"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        shutil.copytree(pictures, f"{disk}/album")
        (tmp_path / "top/a").symlink_to(f"{disk}/album")
        with pytest.raises(Stop):
            score_to_file(scorer, sources, output, on_row=after(4, Stop()))
        os.rename(f"{disk}/album", f"{disk}/elsewhere")
        os.mkdir(f"{disk}/album")
        for _ in range(2):
            with pytest.raises(SourceError, match="top/a: pictures can no longer be read from here: everything"):
                score_to_file(scorer, sources, output, resume=True)
        os.rmdir(f"{disk}/album")
        os.rename(f"{disk}/elsewhere", f"{disk}/album")
        assert score_to_file(scorer, sources, output, resume=True) == Outcome(64, 0)


def test_a_listing_of_a_pattern_whose_folder_has_gone(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "album")
    listing = frozen(Sources([tmp_path / "album/*.jpg"]), tmp_path / "l.jsonl.zst")
    (tmp_path / "album").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="album: pictures can no longer be read from here: No such file"):
        score_to_file(scorer, listing, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_a_missing_file_in_a_folder_whose_name_is_not_utf_8(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """Rows have such a name with its bytes spelled out, and a run that goes on must not look for that."""
    album = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(pictures, album)
    paths = sorted(album.iterdir())
    with pytest.raises(Stop):
        score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", on_row=after(5, Stop()))
    paths[5].unlink()
    assert score_to_file(scorer, Sources(paths), tmp_path / "scores.csv", resume=True) == Outcome(len(paths), 1)


def test_a_parquet_file_that_goes_between_two_row_groups(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    encoded = pa.array([path.read_bytes() for path in sorted(pictures.iterdir())], pa.binary())
    parquet.write_table(pa.table({"image": encoded}), tmp_path / "t.parquet", row_group_size=4)

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 1:
            (tmp_path / "t.parquet").rename(tmp_path / "elsewhere")

    outcome = score_to_file(
        scorer, Sources([tmp_path / "t.parquet"], column="image"), tmp_path / "scores.jsonl", on_row=on_row
    )
    *scored, last = (json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines())
    assert outcome == Outcome(len(scored) + 1, 1)
    assert (last["path"], last["error"]) == (str(tmp_path / "t.parquet"), "no longer there")
    assert len(scored) % 4 == 0
    assert 0 < len(scored) < 32


def test_archives_in_a_folder_that_goes(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(3):
        with tarfile.open(shards / f"{i}.tar", "w") as tar:
            for path in sorted(pictures.iterdir())[:8]:
                tar.add(path, path.name)
    sources = Sources([shards / "*.tar"])

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 1:
            shards.rename(tmp_path / "elsewhere")

    with pytest.raises(SourceError, match="shards: pictures can no longer be read from here"):
        score_to_file(scorer, sources, tmp_path / "scores.csv", on_row=on_row)
    (tmp_path / "elsewhere").rename(shards)
    assert score_to_file(scorer, sources, tmp_path / "scores.csv", resume=True) == Outcome(24, 0)


@pytest.mark.parametrize("source", ["0.tar", "list.txt"])
def test_a_file_that_is_deleted_while_it_is_read(scorer: Scorer, pictures: Path, tmp_path: Path, source: str) -> None:
    """It stays until it is closed."""
    paths = sorted(pictures.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    archive, names = tmp_path / "0.tar", tmp_path / "list.txt"
    sources = Sources([archive]) if source == "0.tar" else Sources(list_file=names)

    def on_row(progress: Progress, result: Result) -> None:
        (tmp_path / source).unlink(missing_ok=True)

    assert score_to_file(scorer, sources, tmp_path / "scores.csv", on_row=on_row) == Outcome(32, 0)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_folder_that_changes_while_it_is_scored(
    scorer: Scorer, pictures: Path, tmp_path: Path, is_killed: bool
) -> None:
    """One file that was not reached yet is deleted, and one appears: the rows are those of what was there at first."""
    album, output = tmp_path / "album", tmp_path / "scores.jsonl"
    shutil.copytree(pictures, album)
    score_to_file(scorer, Sources([album]), tmp_path / "undisturbed.jsonl")

    def on_row(progress: Progress, result: Result) -> None:
        if progress.rows == 3:
            (album / "30.jpg").unlink()
            shutil.copy(pictures / "00.jpg", album / "29b.jpg")
            if is_killed:
                raise Stop

    if is_killed:
        with pytest.raises(Stop):
            score_to_file(scorer, Sources([album]), output, on_row=on_row)
        assert score_to_file(scorer, Sources([album]), output, resume=True) == Outcome(32, 1, new=1)
    else:
        assert score_to_file(scorer, Sources([album]), output, on_row=on_row) == Outcome(32, 1, new=1)
    found, expected = (path.read_text().splitlines() for path in (output, tmp_path / "undisturbed.jsonl"))
    assert found[:30] + found[31:] == expected[:30] + expected[31:]
    assert json.loads(found[30])["path"] == str(album / "30.jpg")
    assert json.loads(found[30])["error"] == "No such file or directory"
    metadata = json.loads((tmp_path / "scores.jsonl.meta.json").read_text())["listing"]
    assert metadata["pieces"] == 32
    assert score_to_file(scorer, Sources([album]), output, resume=True) == Outcome(32, 1)


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
def test_a_file_that_is_missing_is_a_row_after_an_archive_too(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """Rows of an archive are named as if it were a folder, which no run that goes on must take it for."""
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


def test_an_archive_that_goes_after_its_last_row_is_missed_by_the_report_alone(
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
