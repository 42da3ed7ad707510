"""Labels of a user's own in a CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glia_rt.errors import UsageError
from glia_train.datasets.base import Dataset, LabelledPicture, missing_pictures, require_pictures
from glia_train.datasets.csv import Columns, read_labels
from glia_train.datasets.table import read_dataset


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (300, 260)) -> list[str]:
    rng = np.random.default_rng(0)
    names = [f"p{i}.png" for i in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return names


def write_labels(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def read_whole(labels: Path) -> Dataset:
    """Read labels as a run does, which needs the pictures too."""
    dataset = read_dataset(labels)
    require_pictures(dataset)
    return dataset


def test_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    make_pictures(tmp_path, 1)
    Image.new("RGB", (9, 9)).save(tmp_path / "sub" / "ü, v.png")
    elsewhere = tmp_path / "p0.png"
    labels = write_labels(tmp_path, f'path,score\n"sub/ü, v.png",1.5\n\n{elsewhere},-2e1\n')
    dataset = read_whole(labels)
    assert dataset.pictures == (
        LabelledPicture("sub/ü, v.png", tmp_path / "sub" / "ü, v.png", 1.5),
        LabelledPicture(str(elsewhere), elsewhere, -20.0),
    )
    assert (dataset.name, dataset.score_range) == (str(labels), None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_bom_line_ends_and_column_order(tmp_path: Path, encoding: str, newline: str) -> None:
    make_pictures(tmp_path, 2)
    rows = ["reference,path,score", "a,p0.png,1", "b,p1.png,2"]
    labels = write_labels(tmp_path, newline.join(rows), encoding)
    read = read_whole(labels).pictures
    assert [(p.name, p.score, p.reference) for p in read] == [("p0.png", 1, "a"), ("p1.png", 2, "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column path and no column score"),
        (
            "path,mos\np0.png,1\n",
            "line 1: no column score; the first line names the columns: path,score, and reference",
        ),
        ("path,mos\np0.png,1\n", "--score-column and --group-column name others; the line has 'path', 'mos'"),
        ("p0.png,1\np1.png,2\n", "line 1: no column path"),
        ("path;score\np0.png;1\n", "line 1: no column path and no column score; .* the line has 'path;score'"),
        ("path,score,score\np0.png,1,1\n", "line 1: a column is there twice: score"),
        ("path,Score,SCORE\np0.png,1,1\n", "line 1: a column is there twice: score"),
        ("path,score\n", "no rows"),
        ("path,score\np0.png,good\n", "line 2: the score must be a finite number, not 'good'"),
        ("path,score\np0.png,1\np1.png,nan\n", "line 3: the score must be a finite number, not 'nan'"),
        ("path,score\np0.png,inf\n", "line 2: the score must be a finite number"),
        ("path,score\np0.png,\n", "line 2: the score must be a finite number, not ''"),
        ("path,score\np0.png\n", "line 2: 1 fields where the header has 2"),
        ("path,score\np0.png,1,a\n", "line 2: 3 fields where the header has 2"),
        ("path,score\n,1\n", "line 2: the path is empty"),
        ("path,score,reference\np0.png,1,a\np1.png,2,\n", "line 3: the reference is empty"),
        (
            "path,score,split\np0.png,1,train\np1.png,2,held out\n",
            "line 3: the split must be one of train, .*'held out'",
        ),
        (
            "path,score,split\np0.png,1,train\np1.png,2,\n",
            "line 3: the split must be one of train, validation, test, not",
        ),
        ("path,score\np0.png,1\n\np1.png,2\nx/../p0.png,3\n", r"line 5: x/../p0.png is in line 2 already"),
        ("path,score\np0.png,1\np0.png,1\n", "line 3: p0.png is in line 2 already"),
        ("path,score\np0.png,1\nx.png,2\ny.png,3\n", r"2 of 3 pictures are not there, first .*x.png"),
        ("path,score\np0.png,1\n.,2\n", "1 of 2 pictures are not there"),
        ("path,score\np0.png,3\np1.png,3\n", "every score is 3"),
        ('path,score\n"p0.png,1\n', "not CSV"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, text: str, message: str) -> None:
    make_pictures(tmp_path, 2)
    with pytest.raises(UsageError, match=f"labels.csv.*{message}"):
        read_whole(write_labels(tmp_path, text))


def test_labels_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_labels(tmp_path)
    with pytest.raises(UsageError, match="not UTF-8"):
        read_labels(write_labels(tmp_path, "path,score\nä.png,1\n", "latin-1"))


def test_other_columns_are_left_alone(tmp_path: Path) -> None:
    text = "path,score,note,,note,\np0.png,1,x,y,z,\n,,,,,\n"  # and so is a line of empty cells, as spreadsheets leave
    [picture] = read_labels(write_labels(tmp_path, text)).pictures
    assert (picture.name, picture.score, picture.reference, picture.part) == ("p0.png", 1.0, None, None)


def test_every_column_that_is_read(tmp_path: Path) -> None:
    text = (
        "Reference,file,MOS,Split,subset,distortion,twin\n"
        "r1,a.png,1,TRAIN,s1,blur,t\n"
        "r1,b.png,2, Val ,s1,,\n"
        "r2,c.png,3,testing,,noise,\n"
    )
    read = read_labels(write_labels(tmp_path, text), Columns("file", "mos", "twin")).pictures
    assert [p.part for p in read] == ["train", "validation", "test"]
    assert [p.subset for p in read] == ["s1", "s1", None]
    assert [p.distortion for p in read] == ["blur", None, "noise"]
    assert [p.reference for p in read] == ["r1", "r1", "r2"]
    assert [p.score for p in read] == [1, 2, 3]


def test_the_exact_name_of_a_column_wins(tmp_path: Path) -> None:
    [picture] = read_labels(write_labels(tmp_path, "path,Score,score\np0.png,1,2\n")).pictures
    assert picture.score == 2


def test_a_group_may_be_empty_and_holds_whole_references(tmp_path: Path) -> None:
    text = "path,score,g\na,1,\nb,2,x\nc,3,x\nd,4,\n"
    read = read_labels(write_labels(tmp_path, text), Columns(group="g")).pictures
    assert [p.kept_together for p in read] == ["a", "x", "x", "d"]
    # r1 and r2 share the group x, and r3 stands alone.
    text = "path,score,reference,g\na,1,r1,\nb,2,r1,x\nc,3,r2,x\nd,4,r2,\ne,5,r3,\n"
    read = read_labels(write_labels(tmp_path, text), Columns(group="g")).pictures
    assert [p.kept_together for p in read] == ["x", "x", "x", "x", "r3"]
    # Groups that share a reference are one.
    text = "path,score,reference,g\na,1,r1,x\nb,2,r1,y\nc,3,r2,y\nd,4,r2,z\ne,5,r3,w\n"
    read = read_labels(write_labels(tmp_path, text), Columns(group="g")).pictures
    assert [p.kept_together for p in read] == ["x", "x", "x", "x", "w"]
    # A group may be named after the picture that the others are like.
    text = "path,score,g\na.png,1,\nb.png,2,a.png\n"
    read = read_labels(write_labels(tmp_path, text), Columns(group="g")).pictures
    assert len({p.kept_together for p in read}) == 1


def test_thousands_of_columns_and_long_cells(tmp_path: Path) -> None:
    wide = ["path", "score", *(f"c{i}" for i in range(20_000))]
    labels = write_labels(tmp_path, ",".join(wide) + "\n" + ",".join(["p0.png", "1", *["x"] * 20_000]) + "\n")
    assert [p.name for p in read_labels(labels).pictures] == ["p0.png"]
    with pytest.raises(UsageError, match="no column mos") as caught:
        read_labels(labels, Columns(score="mos"))
    assert len(str(caught.value)) < 600
    with pytest.raises(UsageError, match="must be a finite number, not 'xxx") as caught:
        read_labels(write_labels(tmp_path, f"path,score\np0.png,{'x' * 100_000}\n"))
    assert len(str(caught.value)) < 400
    # A column beside the two may hold pages of text.
    read = read_labels(write_labels(tmp_path, f"path,score,notes\np0.png,1,{'x' * 1_000_000}\n"))
    assert [p.name for p in read.pictures] == ["p0.png"]


def test_names_that_no_file_can_have_are_missing(tmp_path: Path) -> None:
    names = ["x" * 5000, "a\0b", "../nowhere.png", "p0.png/x.png"]
    make_pictures(tmp_path, 1)
    read = read_labels(write_labels(tmp_path, "path,score\n" + "".join(f"{name},1\n" for name in names)))
    assert [p.name for p in missing_pictures(read.pictures)] == names


def test_paths_may_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    make_pictures(tmp_path, 2)
    labels = write_labels(tmp_path / "labels", "path,score\n../p0.png,1\n../p1.png,2\n")
    assert [p.path for p in read_whole(labels).pictures] == [tmp_path / "labels" / ".." / f"p{i}.png" for i in (0, 1)]


def test_the_table_of_datasets(tmp_path: Path) -> None:
    labels = write_labels(tmp_path, "path,score\na.png,1\n")
    assert read_dataset(labels) == read_labels(labels)
    with pytest.raises(UsageError, match=r"there is no dataset 'koniq'; there are biq2021, kadid10k, and labels of"):
        read_dataset("koniq")
    with pytest.raises(UsageError, match=r"--root goes with biq2021, kadid10k"):
        read_dataset(labels, tmp_path)
    with pytest.raises(UsageError, match="biq2021 needs --root: the folder that it was unpacked to"):
        read_dataset("biq2021")
    with pytest.raises(UsageError, match="has columns of its own: drop --path-column"):
        read_dataset("biq2021", tmp_path, Columns(score="mos"))
    with pytest.raises(UsageError, match=r"a folder without \.parquet files; give a CSV, or a name"):
        read_dataset(tmp_path)
