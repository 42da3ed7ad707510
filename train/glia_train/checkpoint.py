"""checkpoint.pt: a model's family, config, contract, weights, calibration and origin, as plain types.

The file appears whole or not at all. It is read with weights_only, so that opening a stranger's checkpoint runs none
of its code.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from glia_rt import files, upgrades
from glia_rt.contract import Contract
from glia_rt.errors import BundleError, UsageError
from glia_rt.starter.paths import resolve_checkpoint
from glia_rt.versions import __version__
from glia_train.backbones import backbone_sha256, load_backbone_weights
from glia_train.models.base import Model
from glia_train.models.table import family_of, read_config, source_of

SCHEMA: Final = 2
#: Numbers in a weight from which on it is worth storing as halves.
LARGE_MATRIX: Final = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A model as it is stored on disk.

    Attributes:
        config: The config of the model's family, which fixes the architecture.
        contract: The inputs and the score. The range of the score is None until the model is calibrated.
        weights: The model's state dict. An adapter-only checkpoint leaves out the frozen backbones.
        calibration: The linear map (scale, offset) from raw scores to the model's scale.
        backbones: Facts about each pretrained network inside, by its name. `source` is what --backbone-weights was:
            "hub", "random" or the file's name. `sha256` is the hash of its weights in the trained model.
        trained_on: Facts about the dataset, the split and the options; empty for an untrained model.
        metrics: Metrics of the held-out part after the last epoch, by name.
        card: What a bundle of this model tells people about it: `text`, and `figures` by name. It may be empty.
    """

    config: Any
    contract: Contract
    weights: Mapping[str, Tensor]
    calibration: tuple[float, float]
    backbones: Mapping[str, Mapping[str, str]]
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> type[Model]:
        """Return the class of the model."""
        return family_of(self.config)

    @property
    def left_out(self) -> list[str]:
        """Return the names of the backbones whose weights the checkpoint leaves out.

        The hashes in `backbones` identify the weights that belong there.
        """
        return [name for name in self.backbones if not any(key.startswith(f"{name}.") for key in self.weights)]

    @property
    def adapter_only(self) -> bool:
        """Return whether the checkpoint leaves out any backbone."""
        return bool(self.left_out)

    @property
    def calibrated(self) -> bool:
        """Return whether scores have a scale."""
        return self.contract.score.range is not None

    def describe(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON types."""
        return {
            "model": {"family": self.family.family, "config": dataclasses.asdict(self.config)},
            "contract": self.contract.to_dict(),
            "calibrated": self.calibrated,
            "adapter_only": self.adapter_only,
            "backbones": {name: dict(facts) for name, facts in self.backbones.items()},
            "parameters": sum(value.numel() for value in self.weights.values()),
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
            "card": dict(self.card),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the checkpoint. The file appears whole or not at all."""
        record = {
            "schema": SCHEMA,
            "glia_rt": __version__,
            "family": self.family.family,
            "config": dataclasses.asdict(self.config),
            "contract": self.contract.to_dict(),
            "weights": {key: value.half() if holds_as_half(value) else value for key, value in self.weights.items()},
            "calibration": list(self.calibration),
            "backbones": {name: dict(facts) for name, facts in self.backbones.items()},
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
            "card": dict(self.card),
        }
        with files.whole_file(Path(path)) as file:
            torch.save(record, file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint of the current schema, or of schema 1.

        Args:
            path: The file, or "starter" for the model that glia-rt ships.

        Raises:
            BundleError: The file is missing, is damaged, is not a checkpoint of glia-rt, or is of a newer version.
        """
        path = resolve_checkpoint(path)
        if not path.is_file():
            raise BundleError(f"{path}: no such checkpoint")
        try:
            record = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except MemoryError:  # which says nothing of the file
            raise
        except Exception as error:  # of damaged bytes the unpickler raises nearly anything
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BundleError(f"{path}: not a checkpoint of glia-rt, or damaged ({reason[:200]})") from error
        if not isinstance(record, dict) or "schema" not in record:
            raise BundleError(f"{path}: not a checkpoint of glia-rt; `glia-rt train` writes one")
        written_by = record.get("glia_rt")
        if not all(isinstance(key, str) for key in record):
            raise BundleError(f"{path}: a field has no name; the checkpoint is damaged")
        record = upgrades.upgrade(record, f"{path}: checkpoint", SCHEMA, upgrades.CHECKPOINT, written_by)
        written_by = record.get("glia_rt")
        required = {"schema", "glia_rt", "family", "config", "contract", "weights", "calibration", "backbones"}
        required |= {"trained_on", "metrics"}
        upgrades.require_fields(record, f"{path}: checkpoint", required, {"card"}, written_by)
        try:
            config = read_config(record["family"], record["config"])
            contract = Contract.from_dict(record["contract"], written_by)
            scale, offset = (float(value) for value in record["calibration"])
            backbones = {name: dict(facts) for name, facts in record["backbones"].items()}
            facts = (dict(record["trained_on"]), dict(record["metrics"]), dict(record.get("card", {})))
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        # A value is of the wrong kind, or of a later version. A UsageError is a ValueError.
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            newer = f"made by glia-rt {written_by}: upgrade to it" if written_by != __version__ else "damaged"
            raise BundleError(f"{path}: {error}; the checkpoint is {newer}") from error
        weights = record["weights"]
        if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise BundleError(f"{path}: its weights are no tensors; the checkpoint is damaged")
        weights = {key: value.float() if value.dtype == torch.float16 else value for key, value in weights.items()}
        return cls(
            config,
            contract,
            weights,
            (scale, offset),
            backbones,
            *facts,
        )

    def build_model(self, backbone_weights: str | Mapping[str, str] | None = None) -> Model:
        """Return the model with this checkpoint's weights, in eval mode.

        Args:
            backbone_weights: Source of the backbone's weights for an adapter-only checkpoint: "hub" or a file.

        Raises:
            UsageError: The checkpoint is adapter-only, and no backbone weights are given.
            BundleError: The weights do not fit, or the backbone is not the one that the adapters were trained against.
        """
        model = self.family(self.config)
        left_out = self.left_out
        if odd_names := sorted(set(self.backbones) ^ set(model.backbones())):
            raise BundleError(f"the checkpoint's backbones do not fit its config, first {odd_names[0]}: it is damaged")
        for name in left_out:
            source = None if backbone_weights is None else source_of(backbone_weights, name)
            self._load_backbone(name, model.backbones()[name], source)
        prefixes = tuple(f"{name}." for name in left_out)
        expected = {k: v.shape for k, v in model.state_dict().items() if not prefixes or not k.startswith(prefixes)}
        if {k: v.shape for k, v in self.weights.items()} != expected:
            odd = sorted(
                k
                for k in self.weights.keys() | expected.keys()
                if k not in self.weights or self.weights[k].shape != expected.get(k)
            )
            raise BundleError(f"the checkpoint's weights do not fit its config, first at {odd[0]}: it is damaged")
        model.load_state_dict(dict(self.weights), strict=not left_out)
        model.calibration.copy_(torch.tensor(self.calibration))
        # The contract has the values of training. Another version of timm may give this backbone other ones.
        model.mean.copy_(torch.tensor(self.contract.mean))
        model.std.copy_(torch.tensor(self.contract.std))
        return model.eval()

    def _load_backbone(self, name: str, backbone: torch.nn.Module, source: str | None) -> None:
        expected = self.backbones[name]["sha256"]
        if source is None:
            raise UsageError(
                "this checkpoint holds the adapters only: give --backbone-weights with the weights it was "
                f"trained against ({self.backbones[name]['source']}; sha256 {expected[:12]}...)"
            )
        load_backbone_weights(backbone, source)
        if (found := backbone_sha256(backbone)) != expected:
            raise BundleError(
                f"the adapters were trained against another backbone: sha256 {expected[:12]}... "
                f"was expected, {source} has {found[:12]}..."
            )


def holds_as_half(weight: torch.Tensor) -> bool:
    """Return whether a weight is a large matrix whose values half precision holds exactly, so that it is stored so."""
    large = weight.dtype == torch.float32 and weight.ndim >= 2 and weight.numel() >= LARGE_MATRIX
    return large and bool(torch.equal(weight.half().float(), weight))


def check_adapter_only(model: Model, backbone_source: str | Mapping[str, str]) -> None:
    """Check that the frozen backbones of a model can be restored, so that a checkpoint may leave them out.

    Raises:
        UsageError: Every backbone is trained too, or the backbones started from random weights.
    """
    if not model.backbones():
        raise UsageError(f"--adapter-only: a model of family {model.family} has no backbone to leave out: drop it")
    if not model.frozen_backbones():
        raise UsageError("--adapter-only cannot leave out a backbone that is trained: drop it or --tune-backbone")
    if "random" in (source_of(backbone_source, name) for name in model.frozen_backbones()):
        raise UsageError("--adapter-only cannot leave out a backbone of random weights: nobody could restore it")


def make_checkpoint(
    model: Model,
    contract: Contract,
    backbone_source: str | Mapping[str, str],
    *,
    adapter_only: bool = False,
    trained_on: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    card: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Return a checkpoint of a model. The weights are copied to the CPU.

    Raises:
        UsageError: `adapter_only` is set, and a backbone could not be restored.
    """
    left_out: tuple[str, ...] = ()
    if adapter_only:
        check_adapter_only(model, backbone_source)
        left_out = tuple(f"{name}." for name in model.frozen_backbones())
    weights = {
        key: value.detach().cpu().clone()
        for key, value in model.state_dict().items()
        if not left_out or not key.startswith(left_out)
    }
    scale, offset = model.calibration.tolist()
    return Checkpoint(
        config=model.config,
        contract=contract,
        weights=weights,
        calibration=(scale, offset),
        backbones={
            name: {"source": source_of(backbone_source, name), "sha256": backbone_sha256(backbone)}
            for name, backbone in model.backbones().items()
        },
        trained_on=dict(trained_on or {}),
        metrics=dict(metrics or {}),
        card=dict(card or {}),
    )
