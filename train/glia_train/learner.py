"""A model in training: its steps, its averaged weights, and all that a run needs to go on where it was."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from glia_rt.errors import GliaError
from glia_train.loader import InputLoader
from glia_train.loss import LOSSES, MIN_VARIANCE
from glia_train.machine import Machine
from glia_train.models.base import Model
from glia_train.options import TrainOptions
from glia_train.ranking import RATED_PER_PAIR, ranking_loss
from glia_train.ridge_head import RidgeHead
from glia_train.schedule import Schedule


class Learner:
    """A model, its optimiser and the pictures that it learns from, which are named by their indices in `loader`.

    Attributes:
        losses: The losses of the steps of this epoch so far.
        waited: Seconds of this epoch in which a step waited for its batch.
        seconds: Seconds that the steps of this epoch took, the waiting included.
    """

    def __init__(self, model: Model, loader: InputLoader, options: TrainOptions, machine: Machine) -> None:
        self.losses: list[float] = []
        self.waited = self.seconds = 0.0
        self._model = model
        self._loader = loader
        self._options = options
        self._machine = machine
        self._parameters = model.trainable_parameters()
        self._optimiser = torch.optim.AdamW(self._groups(), lr=options.lr, weight_decay=options.weight_decay)
        self._scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        self._steps = 0
        self._average = None if options.ema is None else [p.detach().clone() for p in self._parameters]

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameters by their learning rate, which is `share` of the schedule's."""
        options = self._options
        pretrained = {id(p) for backbone in self._model.backbones().values() for p in backbone.parameters()}
        rates = {False: options.lr, True: options.backbone_lr or options.lr}
        groups = [
            {"params": [p for p in self._parameters if (id(p) in pretrained) == own], "share": rate / options.lr}
            for own, rate in rates.items()
        ]
        return [group for group in groups if group["params"]]

    def state(self) -> dict[str, Any]:
        """Return all that changes from step to step, as tensors and plain types."""
        return {
            "weights": self._changing_weights(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average,
            "steps": self._steps,
            "losses": list(self.losses),
            "waited": self.waited,
            "seconds": self.seconds,
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state() if self._machine.device.type == "cuda" else None,
        }

    def _changing_weights(self) -> dict[str, Tensor]:
        """Return the tensors of the model by name, less the frozen parameters."""
        frozen = {name for name, parameter in self._model.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self._model.state_dict().items() if name not in frozen}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        weights = self._changing_weights()
        for name, value in state["weights"].items():
            weights[name].copy_(value)
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            for own, value in zip(self._average, state["average"], strict=True):
                own.copy_(value)
        self._steps = state["steps"]
        self.losses, self.waited, self.seconds = list(state["losses"]), state["waited"], state["seconds"]
        torch.set_rng_state(state["random"])
        if state["random_gpu"] is not None:
            torch.cuda.set_rng_state(state["random_gpu"])

    def train_epoch(self, pictures: Sequence[int], epoch: int, schedule: Schedule) -> Iterator[None]:
        """Take the steps of one epoch, or fewer if the time runs out.

        Steps that `losses` already has, because they were taken before the run was resumed, are left out.

        Yields:
            After each step.

        Raises:
            GliaError: The loss is not finite, or the model gives all pictures of a batch the same score.
        """
        options, taken = self._options, len(self.losses)
        crops = [picture + crop * len(self._loader.pictures) for crop in range(options.crops) for picture in pictures]
        order = np.random.default_rng([options.seed, epoch]).permutation(crops).tolist()
        whole = order[taken * options.batch_size : len(order) // options.batch_size * options.batch_size]
        self._model.train()
        start = last = time.monotonic()
        pairs = options.batch_size // RATED_PER_PAIR if options.ranking else 0
        with closing(self._loader.batches(whole, options.batch_size, epoch, pairs=pairs)) as batches:
            for inputs, label in batches:
                self.waited += time.monotonic() - last
                for group in self._optimiser.param_groups:
                    group["lr"] = group["share"] * schedule.learning_rate
                self.losses.append(self._step(inputs, label.to(self._machine.device), epoch))
                schedule.step(rate=(len(self.losses) - taken) * options.batch_size / (time.monotonic() - start))
                self.seconds += time.monotonic() - last
                yield
                last = time.monotonic()  # what is done between two steps, such as saving, is no part of either
                if schedule.done >= 1:
                    break

    def next_epoch(self) -> None:
        """Forget the losses and the times of the epoch that has ended."""
        self.losses, self.waited, self.seconds = [], 0.0, 0.0

    def _step(self, inputs: Sequence[Tensor], label: Tensor, epoch: int) -> float:
        options = self._options
        self._optimiser.zero_grad()
        rows = len(inputs[0])
        size = options.micro_batch_size or rows
        if size >= rows:
            raw = self._machine.raw_score(self._model, inputs)
            loss = self._loss(raw, label)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        else:
            raw, loss = self._accumulate(inputs, label, size)
        self._require_health(loss.item(), raw, epoch)
        if options.clip_norm is not None:
            self._scaler.unscale_(self._optimiser)
            torch.nn.utils.clip_grad_norm_(self._parameters, options.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None and options.ema is not None:
            self._steps += 1
            update: Any = get_ema_multi_avg_fn(averaging_decay(options.ema, self._steps))  # type: ignore[no-untyped-call]
            update(self._average, self._parameters, 0)
        return loss.item()

    def _loss(self, raw: Tensor, label: Tensor) -> Tensor:
        """Return the loss of a batch: of its rated pictures, and of the pairs of distorted copies behind them."""
        rated, copies = raw[: len(label)], raw[len(label) :]
        loss = LOSSES[self._options.loss](rated, label)
        if self._options.ranking:
            better, worse = copies.chunk(2)
            loss = loss + self._options.ranking * ranking_loss(better, worse, rated.std())
        return loss

    def _accumulate(self, inputs: Sequence[Tensor], label: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Add up the gradient of a batch in parts of `size` crops, and return the raw scores and the loss.

        The loss uses the mean and the variance of the whole batch, so it does not split into losses of the parts. All
        scores are computed first, without a graph. The loss gives the gradient of each score. Then each part runs
        again, with the same dropout, and passes its share of that gradient back.
        """
        parts = [self._precomputed(part) for part in zip(*(torch.split(one, size) for one in inputs), strict=True)]
        states, raws = [], []
        with torch.no_grad():
            for part in parts:
                states.append(_random_state(self._machine.device))
                raws.append(self._machine.raw_score(self._model, part))
        raw = torch.cat(raws).requires_grad_()
        loss = self._loss(raw, label)
        [gradient] = torch.autograd.grad(self._scaler.scale(loss), [raw])
        for part, state, share in zip(parts, states, torch.split(gradient, size), strict=True):
            _set_random_state(state, self._machine.device)
            self._machine.raw_score(self._model, part).backward(share)  # type: ignore[no-untyped-call]
        return raw.detach(), loss.detach()

    def _precomputed(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return inputs of which the one that only frozen layers read is what they make of it."""
        name, names = self._model.precomputed_input(), [one.name for one in self._loader.contract.inputs]
        if name is None or inputs[names.index(name)].is_floating_point():
            return inputs
        with torch.no_grad(), self._machine.autocast():
            made = self._model.precompute(inputs[names.index(name)].to(self._machine.device))
        return [made if own == name else one for own, one in zip(names, inputs, strict=True)]

    def _require_health(self, loss: float, raw: Tensor, epoch: int) -> None:
        where, advice = f"in epoch {epoch}", f"give an --lr under {self._options.lr:g}"
        if not math.isfinite(loss):
            raise GliaError(f"the loss is {loss} {where}: {advice}")
        if not raw.detach().double().var() >= MIN_VARIANCE:  # the comparison is false for NaN too
            raise GliaError(
                f"the model gives all pictures of a batch one score {where}: {advice}, and look at the pictures"
            )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model its averaged weights inside the block, if there are any."""
        if self._average is None:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self._average or [], strict=True):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the matrices among the weights to half precision, in place."""
        for parameter in self._model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(parameter.half())

    @torch.inference_mode()
    def fit_head(self, head: RidgeHead, pictures: Sequence[int], report: Callable[[int], None]) -> float:
        """Fit the model's ridge head to the deterministic inputs of pictures.

        Args:
            head: The head, which is part of the model.
            pictures: Indices of the pictures.
            report: Called after each batch with the number of pictures that have been read.

        Returns:
            The strength of the regularisation.
        """
        self._model.eval()
        last, features = len(head.weight), []
        for inputs, _ in self._loader.batches(pictures, self._size, epoch=None):
            found = self._machine.features(self._model, inputs)
            features.append(found[:, -last:].float().cpu().numpy())
            report(sum(map(len, features)))
        labels = np.array([self._loader.pictures[i].score for i in pictures], np.float32)
        return head.fit(np.concatenate(features), labels)

    @property
    def _size(self) -> int:
        return self._options.micro_batch_size or self._options.batch_size

    @torch.inference_mode()
    def raw_scores(self, pictures: Sequence[int], loader: InputLoader | None = None) -> npt.NDArray[np.float64]:
        """Return the raw scores (N,) of the deterministic inputs of pictures."""
        self._model.eval()
        scores = [
            self._machine.raw_score(self._model, inputs).cpu()
            for inputs, _ in (loader or self._loader).batches(pictures, self._size, epoch=None)
        ]
        return torch.cat(scores).double().numpy()

    def calibrate(self, pictures: Sequence[int]) -> tuple[float, float]:
        """Set the model's calibration, the least-squares line from raw scores to labels; returns (scale, offset).

        Raises:
            GliaError: The raw scores are all the same, or not finite.
        """
        raw = self.raw_scores(pictures)
        if not raw.var() >= MIN_VARIANCE:  # the comparison is false for NaN too
            raise GliaError(
                "the model gives all training pictures one score, or none: give a lower --lr, and look at the pictures"
            )
        scale, offset = np.polyfit(raw, [self._loader.pictures[i].score for i in pictures], deg=1)
        self._model.calibration.copy_(torch.tensor([scale, offset]))
        return float(scale), float(offset)


def averaging_decay(decay: float, steps: int) -> float:
    """Return the decay of averaged weights after a number of steps, at least 1: less than `decay` at first.

    Otherwise the average of a short run would be made of the first weights. The rule is TensorFlow's:
    min(decay, (1 + steps) / (10 + steps)).
    """
    return min(decay, (1 + steps) / (10 + steps))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    cpu, gpu = state
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)
