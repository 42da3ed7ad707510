"""Options of training: one frozen dataclass, which is saved with the run that it produced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from glia_rt.errors import UsageError
from glia_train.loss import LOSSES, LossName

#: Least batch size. The z-scores of two pictures are -1 and 1 whatever their scores, so two give no gradient.
MIN_BATCH: Final = 3


@dataclass(frozen=True)
class TrainOptions:
    """Options of training. The defaults are LoDa's.

    Attributes:
        epochs: Passes over the training part.
        batch_size: Pictures in one step. The incomplete batch at the end of an epoch is dropped.
        lr: First learning rate of AdamW. It falls to 0 along a cosine, step by step.
        weight_decay: Weight decay of AdamW.
        loss: "mse-rho" or "plcc", see `glia_train.loss`.
        seed: Seed of the split, the first weights, the order, the augmentation and the dropout. On a CPU it fixes every
            weight, for a given number of threads. On a GPU, or with a time limit, it does not.
        workers: Number of threads that decode. None means one for each core.
        adapter_only: Leave the frozen backbone out of the checkpoint.
        score_range: Least and greatest score of the labels' scale. None means those of the training part.
        time_limit_s: Seconds that the epochs may take. If they would take longer, the cosine falls with the time, and
            the run ends when the time is over. The last calibration comes on top and takes about half an epoch.
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
        """Refuse values that training cannot use."""
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
