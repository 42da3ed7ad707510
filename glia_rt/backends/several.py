"""Several engines of one kind as one backend: a batch goes to whichever is idle."""

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
    """See `Backend`. It owns the others, and closes them."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        """Take backends of one name, precision and batch size.

        Raises:
            UsageError: They run on devices of different types, whose scores may differ in their last digits: a
                picture's would depend on which of them took it.
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
        """See `Backend`."""
        backend = self._idle.get()
        try:
            return backend.run(inputs)
        finally:
            self._idle.put(backend)

    def close(self) -> None:
        """See `Backend`."""
        for backend in self._backends:
            backend.close()
