"""How to train: one frozen dataclass, written beside what it produced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from glia_rt.errors import UsageError
from glia_train.loss import LOSSES, LossName

#: z-scores of two pictures are -1 and 1 whatever their scores: no gradient.
MIN_BATCH: Final = 3


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the defaults are LoDa's.

    Attributes:
        epochs: Passes over the training part.
        batch_size: Pictures a step; what is left of an epoch is dropped.
        lr: First learning rate of AdamW; it falls to 0 along a cosine, step by step.
        weight_decay: Of AdamW.
        loss: "mse-rho" or "plcc", see `glia_train.loss`.
        seed: Of the split, the first weights, the order, the augmentation and the dropout. On a CPU, with one number
            of threads, it fixes every weight; not so on a GPU, nor with a time limit.
        workers: Threads that decode; None for one a core.
        adapter_only: Leave the frozen backbone out of the checkpoint.
        score_range: Least and greatest score the labels' scale has; None for those of the training part.
        time_limit_s: Seconds that the epochs may take. Where they would take longer, the cosine falls with the time
            and the run ends when it is over; the last calibration comes on top, about half an epoch.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 3e-4
    weight_decay: float = 1e-2
    loss: LossName = "mse-rho"
    seed: int = 3407
    workers: int | None = None
    adapter_only: bool = False
    score_range: tuple[float, float] | None = None
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name, least in (("epochs", 1), ("batch_size", MIN_BATCH), ("seed", 0), ("workers", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr must be over 0, not {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight_decay must be at least 0, not {self.weight_decay}")
        if self.loss not in LOSSES:
            raise UsageError(f"loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.score_range is not None:
            low, high = self.score_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"score_range must rise, not {low:g} to {high:g}")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise UsageError(f"time_limit_s must be over 0, not {self.time_limit_s}")
