"""The demo's pictures: photographs, and distorted copies of them.

The photographs come inside the wheels of scikit-image and scikit-learn. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from glia_rt.errors import GliaError, MissingPackageError
from glia_rt.machine import cpu_count
from glia_rt.pixels.decode import read_image
from glia_train.distortions import LEVELS, distort

#: What the demo writes to its folder, besides the page.
PICTURES: Final = "pictures"
SCORES: Final = "scores.csv"
LABELS: Final = "labels.csv"
RUN: Final = "run"
BUNDLE: Final = "demo.glia"
TUNED_SCORES: Final = "scores-tuned.csv"
#: Longest side of the demo's pictures, pixels. It keeps the demo short.
MAX_SIDE: Final = 512
SEED: Final = 3407


@dataclass(frozen=True)
class Photograph:
    """A photograph in a wheel.

    Attributes:
        package: The package that contains the file.
        file: Path of the file inside the package.
        credit: Its subject, its author and its licence.
    """

    package: str
    file: str
    credit: str

    @property
    def name(self) -> str:
        """Return the name of the content, which stands in the labels' column `reference`."""
        return Path(self.file).stem


PHOTOGRAPHS: Final = (
    Photograph("skimage", "data/astronaut.png", "Eileen Collins, by NASA (public domain)"),
    Photograph("skimage", "data/chelsea.png", "Chelsea the cat, by Stéfan van der Walt (CC0)"),
    Photograph("skimage", "data/coffee.png", "a cup of espresso, by Rachel Michetti (CC0)"),
    Photograph("skimage", "data/hubble_deep_field.jpg", "Hubble extreme deep field, by NASA (public domain)"),
    Photograph("skimage", "data/ihc.png", "stained tissue, by CMMI (no known restrictions)"),
    Photograph("skimage", "data/motorcycle_left.png", "a motorcycle, from the Middlebury 2014 stereo benchmark"),
    Photograph("skimage", "data/retina.jpg", "a retina, by Mikael Häggström (CC0)"),
    Photograph("skimage", "data/rocket.jpg", "Falcon 9 launch, by SpaceX (public domain)"),
    Photograph("sklearn", "datasets/images/china.jpg", "a temple in China, by danielbuechele (CC BY 2.0)"),
    Photograph("sklearn", "datasets/images/flower.jpg", "a flower, by vultilion (CC BY 2.0)"),
)


@dataclass(frozen=True)
class Copy:
    """A picture of the demo: a photograph, or a distorted copy of one.

    Attributes:
        path: The file, a PNG.
        photograph: Name of the photograph.
        distortion: A key of `DISTORTIONS`; None for the photograph itself.
        level: 1 to 5; 0 for the photograph itself.
    """

    path: Path
    photograph: str
    distortion: str | None
    level: int


def make_copies(folder: Path, photographs: Sequence[Photograph], distortions: Sequence[str]) -> list[Copy]:
    """Write photographs, and copies of each with every distortion at every level, as 8-bit PNG.

    Photographs with a side over `MAX_SIDE` are reduced first.

    Args:
        folder: The folder of the pictures, which is made if it does not exist.
        photographs: The photographs.
        distortions: Keys of `DISTORTIONS`.

    Returns:
        The pictures: for each photograph itself, and then its copies.

    Raises:
        MissingPackageError: scikit-learn is not installed.
        GliaError: The folder cannot be written.
    """
    originals = [_reduced(read_photograph(photograph)) for photograph in photographs]
    kinds = [(None, 0), *((name, level) for name in distortions for level in range(1, LEVELS + 1))]
    jobs = [(at, name, level) for at in range(len(photographs)) for name, level in kinds]

    def make(job: tuple[int, str | None, int]) -> Copy:
        at, name, level = job
        pixels = (
            originals[at] if name is None else distort(originals[at], name, level, np.random.default_rng([SEED, at]))
        )
        path = folder / f"{photographs[at].name}-{'original' if name is None else f'{name}-{level}'}.png"
        # PNG is lossless, so that the file shows the distortion and no other. Level 1 is four times as fast as the
        # default.
        Image.fromarray(pixels).save(path, compress_level=1)
        return Copy(path, photographs[at].name, name, level)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(cpu_count()) as pool:
            return list(pool.map(make, jobs))
    except OSError as error:
        raise GliaError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error


def read_photograph(photograph: Photograph) -> npt.NDArray[np.uint8]:
    """Return a photograph, uint8 RGB (H, W, 3).

    Raises:
        MissingPackageError: The package that contains it is not installed.
    """
    # The file is read directly, because scikit-image's own functions may turn to the network.
    try:
        folder = files(photograph.package)
    except ModuleNotFoundError as error:
        raise MissingPackageError(photograph.package, "demo") from error
    with as_file(folder / photograph.file) as path:
        return read_image(path)


def _reduced(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    photograph = Image.fromarray(pixels)
    photograph.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(photograph)
