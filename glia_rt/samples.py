"""A picture on its way to the engine: read as a sample, or known to have no score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from glia_rt.budget import NoRoomError, Reserve
from glia_rt.errors import BadImageError, MachineError
from glia_rt.listing.missing import Trail
from glia_rt.listing.pieces import Picture
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS, read_image
from glia_rt.results import Result

Inputs: TypeAlias = Mapping[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A decoded picture on its way to the engine.

    Attributes:
        path: The picture's name in the results.
        width: In pixels.
        height: In pixels.
        inputs: By input name: views, uint8 (S, S, 3), or the picture itself, uint8 (H, W, 3).
    """

    path: str
    width: int
    height: int
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class Known:
    """A result for which nothing was read. It says nothing of the machine."""

    result: Result


#: What reading a picture gives.
Found: TypeAlias = Sample | Result | Known


def read_sample(
    picture: Picture,
    reserve: Reserve,
    *,
    trail: Trail,
    make: Callable[[Pixels], Inputs],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Found:
    """Decode a picture and make the model's inputs of it, as `score_stream` reads pictures.

    Args:
        picture: The encoded picture.
        reserve: As for `read_image`.
        trail: The folders that pictures were read from. Where such a folder has gone, the whole source has gone.
        make: Makes the inputs of the pixels.
        max_pixels: As for `read_image`.

    Returns:
        The inputs; or a row of status "bad_image", if the picture cannot be read; or a row that is known without
        reading it.

    Raises:
        SourceError: The source has gone.
        MachineError: The machine failed.
    """
    if picture.row is not None:
        return Known(picture.row)
    if picture.failed is not None:
        raise MachineError(picture.failed, picture.name)
    if picture.source is None:
        if picture.folder is not None:
            trail.require(picture.folder)
        return Known(Result(picture.name, None, "bad_image", picture.refused, None, None))
    try:
        pixels = read_image(picture.source, max_pixels=max_pixels, reserve=reserve)
        inputs = make(pixels)
    except BadImageError as error:
        if isinstance(picture.source, str) and getattr(error.__cause__, "errno", None) is not None:
            trail.check(picture.source, picture.folder)
        return Result(picture.name, None, "bad_image", error.reason, None, None)
    except (MachineError, MemoryError) as error:
        reason = getattr(error, "reason", "out of memory")
        if isinstance(error.__cause__, NoRoomError):  # a second try would not help, and the next picture may fit
            return Known(Result(picture.name, None, "machine_error", reason, None, None))
        raise MachineError(reason, picture.name) from error
    if isinstance(picture.source, str):
        trail.add(picture.source, picture.folder)
    height, width, _ = pixels.shape
    return Sample(picture.name, width, height, inputs)


def stack(samples: Sequence[Inputs], batch_size: int | None = None) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the inputs of a batch from those of single pictures, padded to `batch_size`, if given, with black ones."""
    batch = {}
    for name, first in samples[0].items():
        batch[name] = np.empty((batch_size or len(samples), *first.shape), np.uint8)
        for i, sample in enumerate(samples):
            batch[name][i] = sample[name]
        batch[name][len(samples) :] = 0
    return batch
