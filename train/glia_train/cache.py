"""What the frozen part of a model makes of the pictures, kept on disk, because it is the same in every epoch.

A picture has four versions: flipped up and down or not, and left and right or not. An input whose rule draws nothing at
random has no others. So four arrays serve all epochs. They are made before the first step, in a fixed order and in
batches of a fixed size. A run that is resumed, or has another batch size, reads the same values to the bit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

from glia_rt import files
from glia_rt.errors import UsageError
from glia_rt.pipeline import ordered_map
from glia_rt.pixels.bicubic import Pixels
from glia_train.machine import Machine
from glia_train.models.base import Model

Halves = npt.NDArray[np.float16]
Flips = tuple[bool, bool]
#: The four ways in which a picture may be flipped: up and down, left and right. The first one leaves it as it is.
FLIPS: Final[tuple[Flips, ...]] = ((False, False), (False, True), (True, False), (True, True))
_BATCH: Final = 32
#: Batches after which the count of finished ones is written, so that a run that is killed goes on there.
_BATCHES_AT_ONCE: Final = 16
#: Share of the memory that is free which decoded pictures may take.
MEMORY_SHARE: Final = 0.25


class FrozenCache:
    """Arrays that the frozen part of a model makes of one input, for every picture and flip.

    Attributes:
        input: Name of the input that the arrays take the place of.
        nbytes: Size on disk.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], name: str, shape: Sequence[int], pictures: int, *,
                 flipped: int) -> None:  # fmt: skip
        """Open the arrays of a model and a dataset, or reserve the space for them.

        Args:
            folder: The folder that they lie in, which is made if it does not exist.
            facts: All that the arrays depend on, as JSON types. Other facts have other files.
            name: Name of the input.
            shape: Shape of one array.
            pictures: Number of pictures.
            flipped: Number of pictures, from the first one, that have four arrays. The others have one.

        Raises:
            UsageError: The disk has no room for them, or the folder cannot be made.
        """
        self.input = name
        self._flipped = flipped
        slots = len(FLIPS) * flipped + pictures - flipped
        self.nbytes = 2 * slots * math.prod(shape)
        key = json.dumps({**facts, "shape": list(shape), "slots": slots}, sort_keys=True)
        stem = f"frozen-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self._count_file = folder / f"{stem}.json"
        file = folder / f"{stem}.f16"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Other runs may share the folder. One of them makes the file, and one of them fills it.
            self._lock = FileLock(folder / f"{stem}.lock")
            with self._lock:
                if not file.exists() or file.stat().st_size != self.nbytes:
                    self._count_file.unlink(missing_ok=True)
                    with file.open("wb") as opened:
                        # A hole in a full disk would end the process.
                        os.posix_fallocate(opened.fileno(), 0, self.nbytes)
        except OSError as error:
            with_room = f"{self.nbytes / 1e9:.1f} GB are needed" if error.errno == errno.ENOSPC else error.strerror
            for left in (file, folder / f"{stem}.lock"):
                with contextlib.suppress(OSError):
                    left.unlink()
            raise UsageError(
                f"{folder}: cannot hold the cache of the frozen backbone: {with_room}; name another folder with "
                "--cache-dir, or give --no-cache"
            ) from error
        self._arrays: npt.NDArray[np.float16] = np.memmap(file, np.float16, "r+", shape=(slots, *shape))
        self._done = self._read_count()

    @property
    def missing(self) -> int:
        """Return how many arrays are still to be made."""
        return len(self._arrays) - self._done

    def read(self, picture: int, flips: Flips) -> Halves:
        """Return the array of a picture, by its index, for one of the `FLIPS`."""
        return np.array(self._arrays[self._slot(picture, flips)])

    def fill(
        self,
        model: Model,
        machine: Machine,
        view: Callable[[int, Flips], Pixels],
        workers: int,
        made: Callable[[int], None],
    ) -> None:
        """Make the arrays that are missing.

        Args:
            model: The model, in eval mode, on the device of `machine`.
            machine: Where and how to compute.
            view: Returns the input of a picture for one of the `FLIPS`, uint8.
            workers: Number of threads that call `view`.
            made: Is called with the number of arrays that were made just now.
        """
        with self._lock:  # a run that fills the same cache goes first
            self._done = self._read_count()
            wanted = list(itertools.islice(self._all(), self._done, None))
            with ThreadPoolExecutor(workers, "glia-read") as readers, torch.inference_mode():
                views = ordered_map(readers, lambda one: view(*one), wanted, ahead=_BATCH + workers)
                while batch := list(itertools.islice(views, _BATCH)):
                    with machine.autocast():
                        arrays = model.precompute(torch.from_numpy(np.stack(batch)).to(machine.device))
                    self._arrays[self._done : self._done + len(batch)] = arrays.to(torch.float16).cpu().numpy()
                    self._done += len(batch)
                    made(len(batch))
                    if self._done % (_BATCHES_AT_ONCE * _BATCH) == 0:
                        self._write_count()
            self._write_count()

    def _all(self) -> Iterator[tuple[int, Flips]]:
        """Yield the picture and the flips of each array, in the order of the file."""
        pictures = len(self._arrays) - (len(FLIPS) - 1) * self._flipped
        for picture in range(pictures):
            yield from ((picture, flips) for flips in (FLIPS if picture < self._flipped else FLIPS[:1]))

    def _slot(self, picture: int, flips: Flips) -> int:
        if picture < self._flipped:
            return len(FLIPS) * picture + FLIPS.index(flips)
        return (len(FLIPS) - 1) * self._flipped + picture

    def _read_count(self) -> int:
        """Return how many arrays are there. A file that cannot be read stands for none."""
        try:
            return int(json.loads(self._count_file.read_text())["arrays"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _write_count(self) -> None:
        cast("np.memmap[Any, Any]", self._arrays).flush()
        files.write_whole(self._count_file, json.dumps({"arrays": self._done}))


def free_memory() -> int:
    """Return the bytes of memory that this process may still take, as Linux and the container's limit tell."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        found.append(max(0, int(text) - int(used.read_text())))
    return min(found, default=0)
