"""Loader that turns labelled pictures into batches of a model's inputs, in threads."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from glia_rt.contract import Contract
from glia_rt.errors import BadImageError
from glia_rt.pipeline import ordered_map, stack
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_train.datasets.base import LabelledPicture


def check_pictures(pictures: Iterable[LabelledPicture], workers: int) -> None:
    """Decode every picture once, in threads, so that a bad picture is found now and not hours into a run.

    Raises:
        BadImageError: Some pictures cannot be read. The message counts them and names the first.
    """

    def complaint(picture: LabelledPicture) -> str | None:
        try:
            read_image(picture.path)
        except BadImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers, "glia-read") as readers:
        bad = [reason for reason in ordered_map(readers, complaint, pictures, ahead=2 * workers) if reason]
    if bad:
        more = f", and {len(bad) - 1} more pictures cannot be read" if len(bad) > 1 else ""
        raise BadImageError(f"{bad[0]}{more}; mend what the labels name, or take it out of them")


@dataclass(frozen=True)
class InputLoader:
    """Turns pictures, named by their indices, into batches of a model's inputs, in threads that work ahead.

    Threads suffice, because decoding and resizing release the GIL. Threads also start at once on every system.

    Attributes:
        pictures: The pictures that the indices name.
        contract: The inputs to make, and their rules.
        seed: Fixes every random draw, together with an epoch and an index, whatever the number of workers.
        workers: Number of threads that decode.
    """

    pictures: Sequence[LabelledPicture]
    contract: Contract
    seed: int
    workers: int

    def batches(
        self, indices: Sequence[int], batch_size: int, epoch: int | None
    ) -> Generator[tuple[list[Tensor], Tensor]]:
        """Yield inputs and labels in the order of `indices`.

        Closing the generator early ends its threads.

        Args:
            indices: Indices of pictures.
            batch_size: N of every batch. The last batch may be smaller.
            epoch: The epoch, as for `inputs`.

        Yields:
            The inputs in the contract's order, uint8 (N, *shape), and the labels, float32 (N,).

        Raises:
            BadImageError: A picture cannot be read.
        """
        read = functools.partial(self.inputs, epoch=epoch)
        with (
            ThreadPoolExecutor(self.workers, "glia-read") as readers,
            closing(ordered_map(readers, read, indices, ahead=batch_size + self.workers)) as made,
        ):
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                inputs = stack(list(islice(made, len(batch))))
                labels = torch.tensor([self.pictures[i].score for i in batch], dtype=torch.float32)
                yield [torch.from_numpy(inputs[one.name]) for one in self.contract.inputs], labels

    def inputs(self, index: int, epoch: int | None) -> dict[str, Pixels]:
        """Return the inputs of one picture, by name.

        Args:
            index: Index of the picture.
            epoch: The epoch while training, None for the deterministic inputs of scoring. While training, the picture
                is flipped horizontally and vertically with probability 1/2 each, all inputs are made of the flipped
                picture, and the rules draw what they leave to chance.

        Raises:
            BadImageError: The picture cannot be read.
        """
        image = read_image(self.pictures[index].path)
        if epoch is None:
            return make_inputs(image, self.contract)
        rng = np.random.default_rng([self.seed, epoch, index])
        # The picture is flipped before its inputs are made. Cells start at the top left, so a flipped mosaic would be
        # one that no flipped picture gives.
        flip_rows, flip_columns = rng.random(2) < 0.5
        return make_inputs(image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1], self.contract, rng)
