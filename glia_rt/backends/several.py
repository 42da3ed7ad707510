"""Several backends of one kind as one backend. A batch goes to any backend that is idle."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from glia_rt.errors import UsageError

if TYPE_CHECKING:
    from glia_rt.backends.base import Backend


class SeveralBackend:
    """Several backends as one; see `Backend`. It owns the backends and closes them."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        """Join backends of one name, precision and batch size.

        Raises:
            UsageError: The backends run on devices of different types. Scores of different types may differ in their
                last digits, so a picture's score would depend on the device that took it.
        """
        first = backends[0]
        types = sorted({backend.device_type for backend in backends})
        if len(types) > 1:
            raise UsageError(
                f"a picture's score would depend on whether {' or '.join(types)} took it: give devices of one type, "
                "and the others a run of their own, with --shard"
            )
        self.name = first.name
        self.precision = first.precision
        self.library = first.library
        self.batch_size = first.batch_size
        self.device = ", ".join(backend.device for backend in backends)
        self.device_type = first.device_type
        self.parallel = sum(backend.parallel for backend in backends)
        self._backends = tuple(backends)
        self._idle: queue.SimpleQueue[Backend] = queue.SimpleQueue()
        for turn in range(max(backend.parallel for backend in backends)):
            for backend in backends:
                if turn < backend.parallel:
                    self._idle.put(backend)

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Score a batch on an idle backend; see `Backend.run`."""
        backend = self._idle.get()
        try:
            return backend.run(inputs)
        finally:
            self._idle.put(backend)

    def warm_up(self) -> None:
        """Warm up all backends; see `Backend.warm_up`."""
        for backend in self._backends:
            backend.warm_up()

    def close(self) -> None:
        """Close all backends."""
        for backend in self._backends:
            backend.close()
