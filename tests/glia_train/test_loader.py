"""The inputs that training and evaluation see."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.contracts import CONTRACT
from PIL import Image

from glia_rt.errors import BadImageError
from glia_rt.pixels.views import make_inputs
from glia_train.datasets.base import LabelledPicture
from glia_train.loader import InputLoader


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (300, 260)) -> list[str]:
    rng = np.random.default_rng(0)
    names = [f"p{i}.png" for i in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return names


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
