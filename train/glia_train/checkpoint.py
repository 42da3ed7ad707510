"""checkpoint.pt: the architecture, the contract, the weights, and where they came from, as plain types.

Written by rename and read with weights_only, so that opening a stranger's checkpoint runs none of its code.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from glia_rt.contract import Contract
from glia_rt.errors import BundleError, UsageError
from glia_train.backbone import backbone_sha256, load_backbone_weights, pretrained_cfg
from glia_train.model import GLIANet, ModelConfig

SCHEMA: Final = 1
BACKBONE_PREFIX: Final = "backbone."


@dataclass(frozen=True)
class Checkpoint:
    """A GLIANet on disk.

    Attributes:
        config: The architecture.
        contract: Pixels, views and the score; its score_range is None until the model is calibrated.
        weights: The model's state dict; without the backbone's part in an adapter-only checkpoint.
        backbone_source: What --backbone-weights was: "hub", "random", or the file's name.
        backbone_sha256: Hash of the backbone's weights as they are in the trained model.
        trained_on: Plain facts about the data, the split and the options; empty for an untrained model.
        metrics: Figures of the held-out part after the last epoch.
    """

    config: ModelConfig
    contract: Contract
    weights: Mapping[str, Tensor]
    backbone_source: str
    backbone_sha256: str
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def adapter_only(self) -> bool:
        """The backbone's weights are left out; its hash says which ones belong to it."""
        return not any(key.startswith(BACKBONE_PREFIX) for key in self.weights)

    @property
    def calibrated(self) -> bool:
        """Scores are in label units."""
        return self.contract.score_range is not None

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as plain JSON types."""
        return {
            "model": {"family": "glianet", "config": self.config.to_dict()},
            "contract": self.contract.to_dict(),
            "calibrated": self.calibrated,
            "adapter_only": self.adapter_only,
            "backbone_source": self.backbone_source,
            "backbone_sha256": self.backbone_sha256,
            "parameters": sum(value.numel() for value in self.weights.values()),
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole, or not at all."""
        target = Path(path)
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record |= {
            "schema": SCHEMA,
            "config": self.config.to_dict(),
            "contract": self.contract.to_dict(),
            "weights": dict(self.weights),
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
        }
        partial = target.with_name(target.name + ".partial")
        try:
            with partial.open("wb") as file:
                torch.save(record, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            BundleError: The file is missing, damaged, not a checkpoint of glia-rt, or of a newer version.
        """
        path = Path(path)
        if not path.is_file():
            raise BundleError(f"{path}: no such checkpoint")
        try:
            record = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BundleError(f"{path}: not a checkpoint of glia-rt, or damaged ({reason[:200]})") from error
        if not isinstance(record, dict) or "schema" not in record:
            raise BundleError(f"{path}: not a checkpoint of glia-rt; `glia-rt train` writes one")
        if record.pop("schema") != SCHEMA:
            raise BundleError(f"{path}: written by a newer glia-rt; upgrade to read it")
        names = {field.name for field in dataclasses.fields(cls)}
        if set(record) != names:
            odd = ", ".join(sorted(set(record) ^ names))
            raise BundleError(f"{path}: fields missing or unknown: {odd}; written by another version of glia-rt")
        try:
            record["config"] = ModelConfig.from_dict(record["config"])
            record["contract"] = Contract.from_dict(record["contract"])
        except (AttributeError, TypeError, ValueError) as error:  # values of the wrong kind; UsageError is one
            raise BundleError(f"{path}: {error}; the checkpoint is damaged, or of a newer glia-rt") from error
        weights = record["weights"]
        if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise BundleError(f"{path}: its weights are no tensors; the checkpoint is damaged")
        return cls(**record)

    def build_model(self, backbone_weights: str | None = None) -> GLIANet:
        """Make the model with this checkpoint's weights, in eval mode.

        Args:
            backbone_weights: For an adapter-only checkpoint, where the backbone's weights are: "hub" or a file.

        Raises:
            UsageError: An adapter-only checkpoint and no backbone weights.
            BundleError: The weights do not fit, or the backbone is not the one it was trained against.
        """
        model = GLIANet(self.config)
        if self.adapter_only:
            if backbone_weights is None:
                raise UsageError(
                    "this checkpoint holds the adapters only: give --backbone-weights with the weights it was "
                    f"trained against ({self.backbone_source}; sha256 {self.backbone_sha256[:12]}...)"
                )
            load_backbone_weights(model.backbone, backbone_weights)
            if (found := backbone_sha256(model.backbone)) != self.backbone_sha256:
                raise BundleError(
                    f"the adapters were trained against another backbone: sha256 {self.backbone_sha256[:12]}... "
                    f"was expected, {backbone_weights} has {found[:12]}..."
                )
        expected = {k: v.shape for k, v in model.state_dict().items()}
        if self.adapter_only:
            expected = {k: v for k, v in expected.items() if not k.startswith(BACKBONE_PREFIX)}
        if {k: v.shape for k, v in self.weights.items()} != expected:
            odd = sorted(
                k
                for k in self.weights.keys() | expected.keys()
                if k not in self.weights or self.weights[k].shape != expected.get(k)
            )
            raise BundleError(f"the checkpoint's weights do not fit its config, first at {odd[0]}: it is damaged")
        model.load_state_dict(dict(self.weights), strict=not self.adapter_only)
        # As at training: another version of timm may have another mind about a backbone's pixels.
        model.mean.copy_(torch.tensor(self.contract.mean))
        model.std.copy_(torch.tensor(self.contract.std))
        return model.eval()


def check_adapter_only(config: ModelConfig, backbone_source: str) -> None:
    """See that a backbone may be left out of a checkpoint: that it can be had again.

    Raises:
        UsageError: The backbone is trained too, or started from random weights.
    """
    if config.tune_backbone:
        raise UsageError("--adapter-only cannot leave out a backbone that is trained: drop it or --tune-backbone")
    if backbone_source == "random":
        raise UsageError("--adapter-only cannot leave out a backbone of random weights: nobody could restore it")


def make_checkpoint(
    model: GLIANet,
    contract: Contract,
    backbone_source: str,
    *,
    adapter_only: bool = False,
    trained_on: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Checkpoint:
    """Take a checkpoint of a model, whose weights are copied to the CPU.

    Raises:
        UsageError: adapter_only with a backbone that could not be had again.
    """
    if adapter_only:
        check_adapter_only(model.config, backbone_source)
    weights = {
        key: value.detach().cpu().clone()
        for key, value in model.state_dict().items()
        if not (adapter_only and key.startswith(BACKBONE_PREFIX))
    }
    return Checkpoint(
        config=model.config,
        contract=contract,
        weights=weights,
        backbone_source=backbone_source,
        backbone_sha256=backbone_sha256(model.backbone),
        trained_on=dict(trained_on or {}),
        metrics=dict(metrics or {}),
    )


def untrained(config: ModelConfig, backbone_weights: str = "random", seed: int = 0) -> tuple[GLIANet, Contract]:
    """A fresh model, in eval mode, and its contract: how training starts, and what speed is measured with.

    Args:
        config: The architecture.
        backbone_weights: As `load_backbone_weights` takes it.
        seed: Of every random weight.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GLIANet(config)
    load_backbone_weights(model.backbone, backbone_weights)
    pixels = pretrained_cfg(model.backbone)
    return model.eval(), Contract(mean=tuple(pixels["mean"]), std=tuple(pixels["std"]))
