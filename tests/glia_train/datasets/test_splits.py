"""The split of a dataset into three parts."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from glia_rt.errors import UsageError
from glia_train.datasets.base import PARTS, Dataset, LabelledPicture, Part
from glia_train.datasets.splits import Split, split_dataset


def labelled(count: int, per_reference: int | None = None) -> list[LabelledPicture]:
    return [
        LabelledPicture(f"p{i:03}.png", Path(f"p{i:03}.png"), i, per_reference and f"r{i // per_reference:02}")
        for i in range(count)
    ]


def split(pictures: Iterable[LabelledPicture], seed: int = 3407) -> Split:
    return split_dataset(Dataset("labels.csv", tuple(pictures)), seed)


def official(part_of: Callable[[int], Part | None], count: int = 30) -> list[LabelledPicture]:
    return [replace(picture, part=part_of(i)) for i, picture in enumerate(labelled(count))]


def test_split_by_reference_keeps_contents_apart() -> None:
    found = split(labelled(100, per_reference=4))
    train, validation, test = ({picture.reference for picture in part} for part in found.parts.values())
    assert found.by == "reference"
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert (len(train), len(validation), len(test)) == (18, 2, 5)
    assert [len(part) for part in found.parts.values()] == [72, 8, 20]


def test_a_rescaled_split_has_the_same_parts_and_order() -> None:
    found = split(labelled(100, per_reference=4))
    rescaled = found.rescaled((0, 99), (0, 100))
    assert rescaled.by == found.by
    for part, pictures in found.parts.items():
        assert [one.name for one in rescaled.parts[part]] == [one.name for one in pictures]
        assert [one.score for one in rescaled.parts[part]] == pytest.approx([one.score / 0.99 for one in pictures])


def test_split_by_picture() -> None:
    pictures = labelled(42)
    found = split(pictures)
    assert found.by == "picture"
    assert [len(part) for part in found.parts.values()] == [31, 3, 8]  # 33.6 are trained and validated on, rounded
    assert sorted(found.train + found.validation + found.test, key=lambda p: p.name) == pictures
    assert all(list(part) == sorted(part, key=lambda p: p.name) for part in found.parts.values())


def test_split_by_group_keeps_near_duplicates_together() -> None:
    pictures = [replace(p, group=f"g{i // 3}" if i < 12 else None) for i, p in enumerate(labelled(40))]
    for seed in range(20):
        found = split(pictures, seed)
        assert found.by == "group"
        parts = [{picture.kept_together for picture in part} for part in found.parts.values()]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 4 + 28


def test_only_the_seed_decides_the_split() -> None:
    pictures = labelled(60, per_reference=3)
    shuffled = random.Random(1).sample(pictures, len(pictures))
    assert split(pictures, 1) == split(shuffled, 1)
    assert split(pictures, 1) != split(pictures, 2)
    moved = [replace(picture, path=Path("elsewhere") / picture.name, score=-picture.score) for picture in pictures]
    assert [[p.name for p in part] for part in split(moved, 1).parts.values()] == [
        [p.name for p in part] for part in split(pictures, 1).parts.values()
    ]


def test_an_official_split_is_taken() -> None:
    pictures = official(lambda i: PARTS[i % 3])
    assert split(pictures, 1) == split(pictures, 2)
    found = split(pictures)
    assert found.by == "official"
    assert {name: [p.part for p in part] for name, part in found.parts.items()} == {name: [name] * 10 for name in PARTS}


def test_the_validation_part_is_cut_from_the_training_part() -> None:
    pictures = [
        replace(picture, part="test" if i >= 20 else "train", group=f"g{i // 2}" if i < 20 else None)
        for i, picture in enumerate(labelled(30))
    ]
    found = split(pictures, 1)
    assert [len(part) for part in found.parts.values()] == [18, 2, 10]
    assert not {p.kept_together for p in found.train} & {p.kept_together for p in found.validation}
    assert list(found.test) == pictures[20:]
    assert split(pictures, 2).test == found.test
    assert split(pictures, 2).validation != found.validation


@pytest.mark.parametrize(
    ("part_of", "message"),
    [
        (lambda i: "train" if i else None, r"labels.csv: p000.png is in no part of the split, and others are"),
        (lambda _: "test", "labels.csv: no picture has the split train"),
        (lambda i: "validation" if i % 2 else "train", "labels.csv: no picture has the split test"),
        (lambda i: "test" if i else "train", "the training part of its split shows one content"),
    ],
)
def test_an_official_split_must_be_one(part_of: Callable[[int], Part | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split(official(part_of))


def test_leaking_pictures() -> None:
    parts: list[Part] = ["train", "test", "validation", "test", "test", "test"]
    groups = ["a", "a", "b", "b", "c", "c"]
    pictures = [
        replace(picture, part=part, group=group)
        for picture, part, group in zip(labelled(6), parts, groups, strict=True)
    ]
    assert Dataset("x", tuple(pictures)).leaking == {"p001.png", "p003.png"}
    assert Dataset("x", tuple(replace(p, part=None) for p in pictures)).leaking == set()


def test_split_is_written_as_a_table() -> None:
    pictures = labelled(10, per_reference=2)
    found = split(pictures, 0)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    for name, part in found.parts.items():
        assert {(r["path"], float(r["score"]), r["reference"]) for r in rows if r["split"] == name} == {
            (p.name, p.score, p.reference) for p in part
        }
    assert Split(tuple(labelled(1)), (), (), "picture").to_csv().splitlines()[1] == "p000.png,0,,train"


def test_too_few_to_split() -> None:
    with pytest.raises(UsageError, match="80/20 split by picture needs at least 5, the labels have 4"):
        split(labelled(4), 0)
    with pytest.raises(UsageError, match="by reference needs at least 5, the labels have 4; without the reference"):
        split(labelled(12, per_reference=3), 0)
    with pytest.raises(UsageError, match="by group needs at least 5, the labels have 2"):
        split([replace(p, group=f"g{i % 2}") for i, p in enumerate(labelled(12))], 0)
    with pytest.raises(UsageError, match=r"labels.csv: no rows"):
        split([], 0)
    assert [len(part) for part in split(labelled(5), 0).parts.values()] == [3, 1, 1]


def test_training_pictures_must_differ_in_score() -> None:
    pictures = labelled(6)
    others = {picture.name for picture in (*split(pictures, 0).validation, *split(pictures, 0).test)}
    flat = [LabelledPicture(p.name, p.path, float(p.name in others)) for p in pictures]
    with pytest.raises(UsageError, match="every training picture has the score 0"):
        split(flat, 0)
