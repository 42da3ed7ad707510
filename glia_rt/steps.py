"""What is being done, and how long it took, for those who ask with `-v`: lines of the logger `glia_rt`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("glia_rt")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Log that something begins, and how many seconds it took; nothing but that where it fails."""
    logger.info("%s ...", what)
    began = time.perf_counter()
    yield
    logger.info("%s: %.2f s", what, time.perf_counter() - began)
