"""Loader that turns labelled pictures into batches of a model's inputs, in threads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glia_rt.contract import Contract
from glia_rt.errors import BadImageError
from glia_rt.pipeline import ordered_map
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_train.backbones import backbone_sha256
from glia_train.cache import FLIPS, Flips, FrozenCache
from glia_train.datasets.base import LabelledPicture
from glia_train.machine import Machine
from glia_train.models.base import Model
from glia_train.ranking import distorted_copy


class KeptPictures:
    """Decoded pictures in memory: the first ones that fit. Threads and loaders may share it.

    Attributes:
        pixels: The pictures, by index.
    """

    def __init__(self, limit: int = 0) -> None:
        """Keep up to `limit` bytes."""
        self.pixels: dict[int, Pixels] = {}
        self._limit = limit
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, picture: int, pixels: Pixels) -> None:
        """Keep a picture if it fits."""
        with self._lock:
            if picture not in self.pixels and self._bytes + pixels.nbytes <= self._limit:
                self.pixels[picture] = pixels
                self._bytes += pixels.nbytes


@dataclass(frozen=True)
class InputLoader:
    """Turns pictures, named by their indices, into batches of a model's inputs, in threads that work ahead.

    Threads suffice, because decoding and resizing release the GIL. Threads also start at once on every system.

    An index may be over the number of pictures: index i + k * len(pictures) is crop k of picture i, with random draws
    of its own.

    Attributes:
        pictures: The pictures that the indices name.
        contract: The inputs to make, and their rules.
        seed: Fixes every random draw, together with an epoch and an index, whatever the number of workers.
        workers: Number of threads that decode.
        kept: Decoded pictures, which are not decoded again.
        cache: What the model's frozen part makes of one of the inputs. It takes that input's place.
    """

    pictures: Sequence[LabelledPicture]
    contract: Contract
    seed: int
    workers: int
    kept: KeptPictures = field(default_factory=KeptPictures, repr=False, compare=False)
    cache: FrozenCache | None = None

    def check(self, indices: Sequence[int]) -> None:
        """Decode pictures once, in threads, so that a bad picture is found now and not hours into a run.

        Raises:
            BadImageError: Some pictures cannot be read. The message counts them and names the first.
        """

        def complaint(index: int) -> str | None:
            try:
                self._pixels(index)
            except BadImageError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(self.workers, "glia-read") as readers:
            found = ordered_map(readers, complaint, indices, ahead=2 * self.workers)
            bad = [reason for reason in found if reason]
        if bad:
            more = f", and {len(bad) - 1} more pictures cannot be read" if len(bad) > 1 else ""
            raise BadImageError(f"{bad[0]}{more}; mend what the labels name, or take it out of them")

    def batches(
        self, indices: Sequence[int], batch_size: int, epoch: int | None, *, pairs: int = 0
    ) -> Generator[tuple[list[Tensor], Tensor]]:
        """Yield inputs and labels in the order of `indices`.

        Closing the generator early ends its threads.

        Args:
            indices: Indices of pictures.
            batch_size: N of every batch. The last batch may be smaller.
            epoch: The epoch, as for `inputs`.
            pairs: Number of the first pictures of each batch of which a pair of distorted copies follows: the better
                ones behind the N pictures, and the worse ones behind these.

        Yields:
            The inputs in the contract's order, uint8 (N + 2 * pairs, *shape), and the labels, float32 (N,). With a
            cache, the cached input is what the frozen part of the model makes of it, float16 (N, ...).

        Raises:
            BadImageError: A picture cannot be read.
        """

        def jobs(batch: Sequence[int]) -> list[Callable[[], dict[str, Any]]]:
            rated = [functools.partial(self.inputs, index, epoch) for index in batch]
            copies = [(index, worse) for worse in (False, True) for index in batch[:pairs]]
            return rated + [functools.partial(self._copy, index, epoch, worse=worse) for index, worse in copies]

        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        queue = (job for batch in batches for job in jobs(batch))
        ahead = batch_size + 2 * pairs + self.workers
        with (
            ThreadPoolExecutor(self.workers, "glia-read") as readers,
            closing(ordered_map(readers, lambda job: job(), queue, ahead=ahead)) as made,
        ):
            for batch in batches:
                inputs = list(islice(made, len(batch) + 2 * min(pairs, len(batch))))
                labels = torch.tensor([self.pictures[self._picture(i)].score for i in batch], dtype=torch.float32)
                stacked = (np.stack([each[one.name] for each in inputs]) for one in self.contract.inputs)
                yield [torch.from_numpy(array) for array in stacked], labels

    def inputs(self, index: int, epoch: int | None) -> dict[str, Any]:
        """Return the inputs of one picture, by name: uint8, or what the cache has in place of one.

        Args:
            index: Index of the picture, or of a crop of it.
            epoch: The epoch while training, None for the deterministic inputs of scoring. While training, the picture
                is flipped horizontally and vertically with probability 1/2 each, all inputs are made of the flipped
                picture, and the rules draw what they leave to chance.

        Raises:
            BadImageError: The picture cannot be read.
        """
        crop, picture = divmod(index, len(self.pictures))
        if epoch is None:
            return self._made(picture, (False, False), None)
        draws = [self.seed, epoch, picture, *([crop] if crop else [])]
        rng = np.random.default_rng(draws)
        return self._made(picture, drawn_flips(rng), rng)

    def _copy(self, index: int, epoch: int | None, *, worse: bool) -> dict[str, Any]:
        """Return the inputs of a distorted copy of a picture, of which there are two: the better and the worse one.

        Both are flipped alike, and their rules draw alike.
        """
        crop, picture = divmod(index, len(self.pictures))
        draws = [self.seed, epoch or 0, picture, crop]
        distortion, views = np.random.default_rng([*draws, 1]), np.random.default_rng([*draws, 2])
        pixels = distorted_copy(self._pixels(picture), distortion, worse=worse)
        return make_inputs(flip(pixels, drawn_flips(views)), self.contract, views)

    def flipped(self, picture: int, flips: Flips, name: str) -> Pixels:
        """Return one input of a flipped picture, by the input's name; its rule must draw nothing.

        Raises:
            BadImageError: The picture cannot be read.
        """
        only = dataclasses.replace(self.contract, inputs=tuple(i for i in self.contract.inputs if i.name == name))
        return make_inputs(flip(self._pixels(picture), flips), only)[name]

    def _made(self, picture: int, flips: Flips, rng: np.random.Generator | None) -> dict[str, Any]:
        # The picture is flipped before its inputs are made. Cells start at the top left, so a flipped mosaic would be
        # one that no flipped picture gives.
        made = {} if self._contract is None else make_inputs(flip(self._pixels(picture), flips), self._contract, rng)
        return made if self.cache is None else made | {self.cache.input: self.cache.read(picture, flips)}

    @functools.cached_property
    def _contract(self) -> Contract | None:
        """The contract without the cached input; None if nothing is left."""
        if self.cache is None:
            return self.contract
        inputs = tuple(one for one in self.contract.inputs if one.name != self.cache.input)
        return dataclasses.replace(self.contract, inputs=inputs) if inputs else None

    def _picture(self, index: int) -> int:
        return index % len(self.pictures)

    def _pixels(self, picture: int) -> Pixels:
        if (kept := self.kept.pixels.get(picture)) is not None:
            return kept
        pixels = read_image(self.pictures[picture].source())
        self.kept.keep(picture, pixels)
        return pixels


def drawn_flips(rng: np.random.Generator) -> Flips:
    """Draw whether a picture is turned upside down and whether it is mirrored, each with probability 1/2."""
    rows, columns = rng.random(2) < 0.5
    return bool(rows), bool(columns)


def flip(pixels: Pixels, flips: Flips) -> Pixels:
    """Return a view of a picture (H, W, 3) turned upside down, mirrored, or both, as `flips` says."""
    rows, columns = flips
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def open_cache(loader: InputLoader, model: Model, machine: Machine, folder: Path, *, flipped: int) -> FrozenCache:
    """Open the cache of what the frozen part of a model makes of the pictures of a loader.

    Args:
        loader: The loader, whose pictures are files.
        model: A model with a `precomputed_input`, on the device of `machine`.
        machine: Where and how to compute.
        folder: The folder of the cache.
        flipped: Number of pictures, from the first one, that are trained on, and so are flipped.

    Raises:
        UsageError: The disk has no room, or the folder cannot be made.
    """
    name = str(model.precomputed_input())
    view = torch.tensor(loader.flipped(0, FLIPS[0], name)).unsqueeze(0)
    with torch.inference_mode():
        shape = model.precompute(view.to(machine.device)).shape[1:]
    pictures = [[one.name, *_stamp(one.path)] for one in loader.pictures if one.path is not None]
    facts = {
        "pictures": hashlib.sha256(json.dumps(pictures).encode()).hexdigest(),
        "contract": loader.contract.to_dict()["inputs"],
        "backbones": {key: backbone_sha256(backbone) for key, backbone in model.frozen_backbones().items()},
        "pixels": [model.mean.tolist(), model.std.tolist()],
        "precision": machine.precision,
        "device": machine.name,
    }
    return FrozenCache(folder, facts, name, shape, len(loader.pictures), flipped=flipped)


def _stamp(file: Path) -> tuple[int, int]:
    """Return size and time of the last change of a file."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns
