"""Labels files, the split, and the views that training and evaluation see."""

from __future__ import annotations

import csv
import io
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.contracts import CONTRACT
from PIL import Image

from glia_rt.errors import BadImageError, UsageError
from glia_rt.pixels.views import make_inputs
from glia_train.datasets.base import LabelledPicture
from glia_train.datasets.csv import read_labels
from glia_train.datasets.splits import Split, split_pictures
from glia_train.loader import InputLoader


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


def test_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    make_pictures(tmp_path, 1)
    Image.new("RGB", (9, 9)).save(tmp_path / "sub" / "ü, v.png")
    elsewhere = tmp_path / "p0.png"
    labels = write_labels(tmp_path, f'path,score\n"sub/ü, v.png",1.5\n\n{elsewhere},-2e1\n')
    assert read_labels(labels) == [
        LabelledPicture("sub/ü, v.png", tmp_path / "sub" / "ü, v.png", 1.5),
        LabelledPicture(str(elsewhere), elsewhere, -20.0),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_bom_line_ends_and_column_order(tmp_path: Path, encoding: str, newline: str) -> None:
    make_pictures(tmp_path, 2)
    rows = ["reference,path,score", "a,p0.png,1", "b,p1.png,2"]
    labels = write_labels(tmp_path, newline.join(rows), encoding)
    assert [(p.name, p.score, p.reference) for p in read_labels(labels)] == [("p0.png", 1, "a"), ("p1.png", 2, "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column path and no column score"),
        ("path,mos\np0.png,1\n", "line 1: no column score; the first line names the columns: path,score,reference"),
        ("p0.png,1\np1.png,2\n", "line 1: no column path"),
        ("path,score,ref\np0.png,1,a\n", "line 1: unknown column 'ref'; the first line names .*path,score,reference"),
        ("path,score,score\np0.png,1,1\n", "line 1: a column is there twice"),
        ("path,score\n", "no rows"),
        ("path,score\np0.png,good\n", "line 2: the score must be a finite number, not 'good'"),
        ("path,score\np0.png,1\np1.png,nan\n", "line 3: the score must be a finite number, not 'nan'"),
        ("path,score\np0.png,inf\n", "line 2: the score must be a finite number"),
        ("path,score\np0.png,\n", "line 2: the score must be a finite number, not ''"),
        ("path,score\np0.png\n", "line 2: 1 fields where the header has 2"),
        ("path,score\np0.png,1,a\n", "line 2: 3 fields where the header has 2"),
        ("path,score\n,1\n", "line 2: the path is empty"),
        ("path,score,reference\np0.png,1,a\np1.png,2,\n", "line 3: the reference is empty"),
        ("path,score\np0.png,1\n\np1.png,2\nx/../p0.png,3\n", r"line 5: x/../p0.png is in line 2 already"),
        ("path,score\np0.png,1\nx.png,2\ny.png,3\n", r"2 of 3 pictures are not there, first line 3: .*x.png"),
        ("path,score\np0.png,1\n.,2\n", "1 of 2 pictures are not there"),
        ("path,score\np0.png,3\np1.png,3\n", "every score is 3"),
        ('path,score\n"p0.png,1\n', "not CSV"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, text: str, message: str) -> None:
    make_pictures(tmp_path, 2)
    with pytest.raises(UsageError, match=f"labels.csv.*{message}"):
        read_labels(write_labels(tmp_path, text))


def test_labels_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_labels(tmp_path)
    with pytest.raises(UsageError, match="not UTF-8"):
        read_labels(write_labels(tmp_path, "path,score\nä.png,1\n", "latin-1"))


def labelled(count: int, per_reference: int | None = None) -> list[LabelledPicture]:
    return [
        LabelledPicture(f"p{i:03}.png", Path(f"p{i:03}.png"), i, per_reference and f"r{i // per_reference:02}")
        for i in range(count)
    ]


def test_split_by_reference_keeps_contents_apart() -> None:
    split = split_pictures(labelled(100, per_reference=4), seed=3407)
    train, test = ({picture.reference for picture in part} for part in (split.train, split.test))
    assert split.by == "reference"
    assert not train & test
    assert (len(train), len(test), len(split.train), len(split.test)) == (20, 5, 80, 20)


def test_split_by_picture() -> None:
    pictures = labelled(42)
    split = split_pictures(pictures, seed=3407)
    assert split.by == "picture"
    assert (len(split.train), len(split.test)) == (34, 8)  # 33.6, rounded
    assert sorted(split.train + split.test, key=lambda p: p.name) == pictures


def test_only_the_seed_decides_the_split() -> None:
    pictures = labelled(60, per_reference=3)
    shuffled = random.Random(1).sample(pictures, len(pictures))
    assert split_pictures(pictures, 1) == split_pictures(shuffled, 1)
    assert split_pictures(pictures, 1) != split_pictures(pictures, 2)


def test_split_is_written_as_a_table() -> None:
    pictures = labelled(10, per_reference=2)
    split = split_pictures(pictures, 0)
    rows = list(csv.DictReader(io.StringIO(split.to_csv())))
    assert {(r["path"], float(r["score"]), r["reference"]) for r in rows if r["split"] == "train"} == {
        (p.name, p.score, p.reference) for p in split.train
    }
    assert {r["path"] for r in rows if r["split"] == "test"} == {p.name for p in split.test}
    assert Split(tuple(labelled(1)), (), "picture").to_csv().splitlines()[1] == "p000.png,0,,train"


def test_too_few_to_split() -> None:
    with pytest.raises(UsageError, match="80/20 split by picture needs at least 5, the labels have 4"):
        split_pictures(labelled(4), 0)
    with pytest.raises(UsageError, match="by reference needs at least 5, the labels have 4; without the reference"):
        split_pictures(labelled(12, per_reference=3), 0)
    assert len(split_pictures(labelled(5), 0).test) == 1


def test_training_pictures_must_differ_in_score() -> None:
    pictures = labelled(5)
    held_out = split_pictures(pictures, 0).test[0]
    flat = [LabelledPicture(p.name, p.path, float(p == held_out)) for p in pictures]
    with pytest.raises(UsageError, match="every training picture has the score 0"):
        split_pictures(flat, 0)


@pytest.fixture
def pictures(tmp_path: Path) -> list[LabelledPicture]:
    names = make_pictures(tmp_path, 6)
    return [LabelledPicture(name, tmp_path / name, float(i)) for i, name in enumerate(names)]


def loader(pictures: list[LabelledPicture], seed: int = 0, workers: int = 2) -> InputLoader:
    return InputLoader(pictures, CONTRACT, seed, workers)


def read(picture: LabelledPicture) -> np.ndarray:
    return np.asarray(Image.open(picture.path))


def test_evaluation_sees_the_views_of_scoring(pictures: list[LabelledPicture]) -> None:
    batches = list(loader(pictures).batches([3, 0, 5], 2, epoch=None))
    assert [len(labels) for _, labels in batches] == [2, 1]
    global_views, fragments = (torch.cat(parts) for parts in zip(*(inputs for inputs, _ in batches), strict=True))
    labels = torch.cat([labels for _, labels in batches])
    assert (global_views.dtype, fragments.dtype, labels.dtype) == (torch.uint8, torch.uint8, torch.float32)
    assert labels.tolist() == [3, 0, 5]
    for place, index in enumerate([3, 0, 5]):
        expected = make_inputs(read(pictures[index]), CONTRACT)
        np.testing.assert_array_equal(global_views[place], expected["global_view"])
        np.testing.assert_array_equal(fragments[place], expected["fragments"])


def find_flip(picture: LabelledPicture, global_view: np.ndarray) -> tuple[int, int]:
    """Which flip of the picture gives this global view."""
    image = read(picture)
    found = [
        (down, across)
        for down in (1, -1)
        for across in (1, -1)
        if np.array_equal(make_inputs(image[::down, ::across], CONTRACT)["global_view"], global_view)
    ]
    assert len(found) == 1
    return found[0]


def test_training_flips_the_picture_and_moves_the_fragments(pictures: list[LabelledPicture]) -> None:
    seen = set()
    for epoch in range(4):
        for i, picture in enumerate(pictures):
            global_view, fragments = loader(pictures, seed=7).inputs(i, epoch).values()
            down, across = find_flip(picture, global_view)
            seen.add((down, across))
            flipped = read(picture)[::down, ::across]
            # Every fragment lies in its own cell of the flipped picture: the same flip for both views.
            high, wide = flipped.shape[0] // 7, flipped.shape[1] // 7
            moved = 0
            for row in range(7):
                for column in range(7):
                    cell = flipped[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                    fragment = fragments[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
                    windows = np.lib.stride_tricks.sliding_window_view(cell, (32, 32), axis=(0, 1))
                    places = np.argwhere((windows == fragment.transpose(2, 0, 1)).all(axis=(2, 3, 4)))
                    assert len(places) == 1
                    moved += bool(places.any())
            assert moved > 25
    assert seen == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_flips_are_even(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10] * 3, [80] * 3], [[150] * 3, [250] * 3]], np.uint8)).save(tmp_path / "x.png")
    picture = LabelledPicture("x.png", tmp_path / "x.png", 0.0)
    draws = []
    for epoch in range(400):
        view = loader([picture]).inputs(0, epoch)["global_view"]
        draws.append((view[0, 0, 0] > view[-1, 0, 0], view[0, 0, 0] > view[0, -1, 0]))
    down, across = np.mean(draws, axis=0)
    both = np.mean([a and b for a, b in draws])
    assert abs(down - 0.5) < 0.1
    assert abs(across - 0.5) < 0.1
    assert abs(both - 0.25) < 0.1


def test_draws_depend_on_seed_epoch_and_index_and_not_on_workers(pictures: list[LabelledPicture]) -> None:
    def load(seed: int, epoch: int, workers: int = 1) -> torch.Tensor:
        batches = loader(pictures, seed, workers).batches(range(6), 4, epoch)
        return torch.cat([fragments for (_, fragments), _ in batches])

    first = load(1, 1)
    assert torch.equal(load(1, 1), first)
    assert torch.equal(load(1, 1, workers=3), first)
    assert not torch.equal(load(1, 2), first)
    assert not torch.equal(load(2, 1), first)
    twice = loader([pictures[0]] * 2)
    assert not np.array_equal(twice.inputs(0, 1)["fragments"], twice.inputs(1, 1)["fragments"])


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    bad = LabelledPicture("bad.png", tmp_path / "bad.png", 0.0)
    with pytest.raises(BadImageError, match=r"bad\.png: not a picture"):
        list(loader([bad]).batches([0], 1, epoch=1))


def test_closing_early_ends_the_threads(pictures: list[LabelledPicture]) -> None:
    before = threading.active_count()
    batches = loader(pictures * 50, workers=3).batches(range(300), 4, epoch=1)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
