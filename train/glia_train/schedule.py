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
    """Counts the steps of a run, derives its progress and learning rate, and shows the progress on a bar.

    Attributes:
        steps: Steps taken, from the start of the run.
    """

    def __init__(self, options: TrainOptions, steps_per_epoch: int, progress: Progress) -> None:
        self.steps = 0
        self._options = options
        self._steps_per_epoch = steps_per_epoch
        self._start = time.monotonic()
        self._progress = progress
        self._task = progress.add_task("", total=1.0, rate="")

    @property
    def seconds(self) -> float:
        """Return the seconds that the run has taken, those before it was resumed included."""
        return time.monotonic() - self._start

    def resume(self, steps: int, seconds: float) -> None:
        """Go on where an earlier process of this run was."""
        self.steps = steps
        self._start = time.monotonic() - seconds

    @property
    def done(self) -> float:
        """Return the share of the steps taken, or of the time if that share is greater; 1 or more at the end."""
        steps = self.steps / (self._steps_per_epoch * self._options.epochs)
        limit = self._options.time_limit_s
        return steps if limit is None else max(steps, self.seconds / limit)

    @property
    def learning_rate(self) -> float:
        """Return the learning rate: a straight line up to `lr` during the warm-up, then half a cosine down to 0."""
        options, done = self._options, min(self.done, 1.0)
        warmup = options.warmup_epochs / options.epochs
        if done < warmup:
            one_step = 1 / (self._steps_per_epoch * options.epochs)
            return options.lr * min(1.0, (done + one_step) / warmup)
        return options.lr * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2

    def step(self, rate: float) -> None:
        """Count a step and update the bar; `rate` is in crops per second."""
        self.steps += 1
        epoch, step = divmod(self.steps - 1, self._steps_per_epoch)
        self.say(f"epoch {epoch + 1}/{self._options.epochs}, step {step + 1}/{self._steps_per_epoch}")
        self._progress.update(self._task, completed=min(self.done, 1.0), rate=f"{rate:.1f} crops/s")

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
        disable=console is None or not console.file.isatty(),
        transient=True,
        speed_estimate_period=3600,  # a step of ViT-B on a CPU takes minutes
    )
