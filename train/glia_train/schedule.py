"""The progress of a training run, the learning rate that follows from it, and the bar that shows it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from glia_train.options import TrainOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Schedule:
    """Counts the steps of a run, derives its progress and learning rate, and shows the progress on a bar."""

    def __init__(self, options: TrainOptions, steps_per_epoch: int, progress: Progress) -> None:
        self._options = options
        self._steps_per_epoch = steps_per_epoch
        self._steps = 0
        self._start = time.monotonic()
        self._progress = progress
        self._task = progress.add_task("", total=1.0, rate="")

    @property
    def done(self) -> float:
        """Return the share of the steps taken, or of the time if that share is greater; 1 or more at the end."""
        steps = self._steps / (self._steps_per_epoch * self._options.epochs)
        limit = self._options.time_limit_s
        return steps if limit is None else max(steps, (time.monotonic() - self._start) / limit)

    @property
    def learning_rate(self) -> float:
        """Return the learning rate, which falls along half a cosine from `lr` to 0."""
        return self._options.lr * (1 + math.cos(math.pi * min(self.done, 1.0))) / 2

    def step(self, rate: float) -> None:
        """Count a step and update the bar; `rate` is in pictures per second."""
        self._steps += 1
        epoch, step = divmod(self._steps - 1, self._steps_per_epoch)
        self.say(f"epoch {epoch + 1}/{self._options.epochs}, step {step + 1}/{self._steps_per_epoch}")
        self._progress.update(self._task, completed=min(self.done, 1.0), rate=f"{rate:.1f} pictures/s")

    def say(self, what: str) -> None:
        """Show on the bar what the run is doing."""
        self._progress.update(self._task, description=what)


def progress_bar(console: Console | None) -> Progress:
    """Return a progress bar with rate and time left.

    It is disabled if there is no console, or if the console is not a terminal.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None or not console.is_terminal,
        transient=True,
        speed_estimate_period=3600,  # a step of ViT-B on a CPU takes minutes
    )
