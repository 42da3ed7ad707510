"""What is being done, and how long it took, for those who ask with `-v`: lines of the logger `glia_rt`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
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


class Stages:
    """Tells the user each stage as it begins, and measures how long it takes.

    Attributes:
        seconds: Time of each stage that is over, by its name.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        """Begin with no stage; `report` is called with the name of each."""
        self.seconds: dict[str, float] = {}
        self._report = report
        self._name: str | None = None
        self._began = 0.0

    def __call__(self, name: str) -> None:
        """End the stage before, and begin one."""
        self.done()
        self._report(name)
        self._name, self._began = name, time.perf_counter()

    def done(self) -> None:
        """End the current stage."""
        if self._name is not None:
            self.seconds[self._name] = time.perf_counter() - self._began
            log_end(self._name, self.seconds[self._name])
        self._name = None
