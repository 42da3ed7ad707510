"""What is being done, and how long it took, for those who ask with `-v`: lines of the logger `glia_rt`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("glia_rt")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Log that a step begins, and how many seconds it took. The second line is left out where the step fails."""
    logger.info("%s ...", what)
    began = time.perf_counter()
    yield
    log_end(what, time.perf_counter() - began)


def log_end(what: str, seconds: float) -> None:
    """Log how long a step took whose begin the user has been told of."""
    logger.info("%s: %.2f s", what, seconds)
