"""Options of training: one frozen dataclass, which is saved with the run that it produced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from glia_rt.errors import UsageError
from glia_train.loss import LOSSES, LossName
from glia_train.machine import Precision
from glia_train.ranking import RATED_PER_PAIR

#: Least batch size. The z-scores of two pictures are -1 and 1 whatever their scores, so two give no gradient.
MIN_BATCH: Final = 3


@dataclass(frozen=True)
class TrainOptions:
    """Options of training. The defaults are LoDa's.

    Attributes:
        epochs: Passes over the training part.
        batch_size: Crops in one step. The incomplete batch at the end of an epoch is dropped.
        micro_batch_size: Crops that are in memory at once. Their gradients add up to that of the whole batch. None
            means the whole batch.
        crops: Crops of each picture in an epoch. Each one is flipped at random, and its inputs draw
            what their rules leave to chance.
        lr: Highest learning rate of AdamW. It falls to 0 along a cosine, step by step.
        backbone_lr: The same for the pretrained weights of a backbone that is trained too. None means `lr`.
        train_on_validation: Whether to train on the validation part, too, once all choices have been made. It is still
            measured, but its figures tell nothing then.
        fit_head: Whether ridge regression fits the model's `ridge_head` to the training pictures before the first step.
        warmup_epochs: Epochs in which the learning rate rises to `lr`, before it falls.
        weight_decay: Weight decay of AdamW.
        clip_norm: Greatest norm of the gradient; a longer one is shortened. None leaves it.
        ema: Decay of a moving average of the weights, for example 0.999; in the first steps it is less. The average is
            measured and kept. None keeps the last weights.
        loss: "mse-rho" or "plcc", see `glia_train.loss`.
        ranking: Weight of a second loss, over pairs of distorted copies of the pictures, see `glia_train.ranking`. A
            batch has a pair for every eight pictures. 0 for none.
        precision: Precision of the matrix products: "fp32", "bf16" or "fp16". None means bf16 where the hardware
            computes in it, else fp32.
        seed: Seed of the split, the first weights, the order, the augmentation and the dropout. On a CPU it fixes every
            weight, for a given number of threads. On a GPU, or with a time limit, it does not.
        workers: Number of threads that decode. None means one for each core.
        cache: Whether to keep what a frozen backbone makes of the pictures, which is the same in every epoch.
        half_weights: Whether the matrices among the weights are rounded to half precision at the end. Then the
            checkpoint and the exported graphs take half the space.
        adapter_only: Leave the frozen backbone out of the checkpoint.
        score_range: Least and greatest score of the labels' scale. None means the dataset's, or for a user's labels
            those of the training part.
        scale: Least and greatest score of the model's own scale, to which the labels are mapped, for example (0, 100).
            None for the labels' scale.
        measure_test: Whether to measure the test part, once, after the last epoch.
        time_limit_s: Seconds that the epochs may take. If they would take longer, the cosine falls with the time, and
            the run ends when the time is over. The last calibration comes on top and takes about half an epoch.
    """

    epochs: int = 10
    batch_size: int = 128
    micro_batch_size: int | None = None
    crops: int = 1
    lr: float = 3e-4
    backbone_lr: float | None = None
    fit_head: bool = False
    train_on_validation: bool = False
    warmup_epochs: float = 0.0
    weight_decay: float = 1e-2
    clip_norm: float | None = None
    ema: float | None = None
    loss: LossName = "mse-rho"
    ranking: float = 0.0
    precision: Precision | None = None
    seed: int = 3407
    workers: int | None = None
    cache: bool = True
    half_weights: bool = False
    adapter_only: bool = False
    score_range: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    measure_test: bool = True
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that training cannot use."""
        least_values = {
            "epochs": 0 if self.fit_head else 1,
            "batch_size": MIN_BATCH,
            "micro_batch_size": 1,
            "crops": 1,
            "seed": 0,
            "workers": 1,
        }
        for name, least in least_values.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        for name in ("lr", "backbone_lr", "clip_norm"):
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be over 0, not {value}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight_decay must be at least 0, not {self.weight_decay}")
        if not 0 <= self.warmup_epochs < max(self.epochs, 1):
            raise UsageError(f"warmup_epochs must lie in [0, {self.epochs}), not {self.warmup_epochs:g}")
        if not (math.isfinite(self.ranking) and self.ranking >= 0):
            raise UsageError(f"ranking must be at least 0, not {self.ranking}")
        if self.ranking and self.batch_size < RATED_PER_PAIR:
            raise UsageError(f"ranking needs a batch_size of at least {RATED_PER_PAIR}, not {self.batch_size}")
        if self.half_weights and self.adapter_only:
            raise UsageError("half_weights rounds the backbone too, which adapter_only leaves out: drop one of them")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema must lie in (0, 1), not {self.ema}")
        if self.loss not in LOSSES:
            raise UsageError(f"loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.precision not in (None, "fp32", "bf16", "fp16"):
            raise UsageError(f"precision must be fp32, bf16 or fp16, not {self.precision!r}")
        for name in ("score_range", "scale"):
            low, high = getattr(self, name) or (0, 1)
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"{name} must rise, not {low:g} to {high:g}")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise UsageError(f"time_limit_s must be over 0, not {self.time_limit_s}")
