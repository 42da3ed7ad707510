"""The check of a dataset on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from glia_rt.errors import UsageError
from glia_train.datasets.base import Dataset, LabelledPicture
from glia_train.datasets.check import BINS, check_dataset
from glia_train.datasets.csv import Columns, read_labels

SIZES = [(30, 20), (40, 20), (20, 40), (30, 20), (64, 64)]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Five pictures, of which one is damaged, and two names of files that are not there."""
    for i, size in enumerate(SIZES):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes()[:50])
    rows = [
        "path,score,reference,split,subset,distortion,twin",
        "0.png,1,a,train,s,blur,",
        "1.png,2,a,train,s,blur,t",
        "2.png,3,b,test,s,noise,t",
        "3.png,4,b,test,r,noise,",
        "4.png,5,c,validation,r,,",
        "5.png,6,d,train,,,",
        "6.png,7,e,train,,,",
        "sub/7.png,11,f,train,,,",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return tmp_path / "labels.csv"


def test_all_that_is_said(labels: Path) -> None:
    done: list[None] = []
    found = check_dataset(read_labels(labels, Columns(group="twin")), 2, lambda: done.append(None))
    assert len(done) == found.pictures == 8
    assert (found.dataset, found.score_range) == (str(labels), None)
    assert (found.scores.pictures, found.scores.least, found.scores.mean, found.scores.greatest) == (8, 1, 4.875, 11)
    assert found.histogram.edges == tuple(float(i) for i in range(1, 12))
    assert found.histogram.counts == (1, 1, 1, 1, 1, 1, 1, 0, 0, 1)
    assert {name: part.pictures for name, part in found.parts.items()} == {"train": 5, "validation": 1, "test": 2}
    assert list(found.parts) == ["train", "validation", "test"]
    assert {name: (s.pictures, s.mean) for name, s in found.subsets.items()} == {"r": (2, 4.5), "s": (3, 2)}
    assert {name: s.pictures for name, s in found.distortions.items()} == {"blur": 2, "noise": 2}
    assert found.references == 6
    assert (found.groups, found.grouped) == (1, 4)  # the group t holds the references a and b
    assert found.leaking == 2
    assert found.sizes is not None
    assert (found.sizes.least, found.sizes.median, found.sizes.greatest) == ((30, 20), (20, 40), (64, 64))
    assert found.sizes.distinct == 4
    assert [(lost.name, lost.reason) for lost in found.missing] == [
        ("6.png", f"{labels.parent}/6.png: no such file"),
        ("sub/7.png", f"{labels.parent}/sub/7.png: no such file"),
    ]
    [unreadable] = found.unreadable
    assert unreadable.name == "5.png"
    assert unreadable.reason.startswith(f"{labels.parent}/5.png: ")
    assert not found.is_whole
    record = json.loads(json.dumps(found.to_dict()))
    assert record["missing"][0] == {"name": "6.png", "reason": f"{labels.parent}/6.png: no such file"}
    assert record["sizes"]["greatest"] == [64, 64]
    assert record["is_whole"] is False


def test_the_number_of_threads_changes_nothing(labels: Path) -> None:
    dataset = read_labels(labels)
    assert check_dataset(dataset, 1) == check_dataset(dataset, 4)


def test_a_declared_range_is_that_of_the_histogram(labels: Path) -> None:
    rows = read_labels(labels).pictures[:5]
    found = check_dataset(Dataset("x", rows, (0.0, 10.0)), 1)
    assert found.is_whole
    assert found.histogram.edges == tuple(float(i) for i in range(11))
    assert found.histogram.counts == (0, 1, 1, 1, 1, 1, 0, 0, 0, 0)


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    found = check_dataset(Dataset("x", (LabelledPicture("a.png", tmp_path / "a.png", 1.0),)), 1)
    assert found.sizes is None
    assert found.histogram.counts[BINS // 2] == 1
    with pytest.raises(UsageError, match="x: no rows"):
        check_dataset(Dataset("x", ()), 1)


@pytest.mark.parametrize("scores", [(1.0, np.nextafter(1.0, 2.0)), (-1.7e308, 1.7e308), (5e-324, 0.0)])
def test_scores_that_make_no_ten_bars(tmp_path: Path, scores: tuple[float, float]) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    rows = tuple(LabelledPicture(str(i), tmp_path / "a.png", float(score)) for i, score in enumerate(scores))
    found = check_dataset(Dataset("x", rows), 1)
    assert sum(found.histogram.counts) == 2
    assert len(found.histogram.edges) == len(found.histogram.counts) + 1


def test_pictures_in_an_archive(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    cells = [(tmp_path / "a.png").read_bytes(), b"no picture", None]
    table = pa.table({"image": pa.array(cells, pa.binary()), "score": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    from glia_train.datasets.table import read_dataset

    found = check_dataset(read_dataset(tmp_path / "a.parquet"), 2)
    assert found.sizes is not None
    assert found.sizes.distinct == 1
    assert found.missing == ()
    assert [(lost.name, lost.reason) for lost in found.unreadable] == [
        ("a.parquet/1", "a.parquet/1: not a picture Pillow can read"),
        ("a.parquet/2", "a.parquet/2: the row has no picture"),
    ]
