"""The demo's dataset: crops of photographs, distorted, and labelled by SSIM.

The photographs come inside the wheels of scikit-image and scikit-learn. The labels replace human ratings, which these
pictures do not have. They are good enough to run the whole chain, and for nothing else.
"""

from __future__ import annotations

import csv
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from glia_rt.cores import cpu_count
from glia_rt.errors import GliaError, MissingPackageError, OutputExistsError, UsageError
from glia_rt.pixels.decode import read_image
from glia_train.datasets.base import COLUMNS
from glia_train.distortions import DISTORTIONS, LEVELS, distort
from glia_train.full_reference import METRICS, SSIM_SIDE, ssim

LABELS: Final = "labels.csv"
#: Name of the metric that gives the labels, for people to read.
METRIC: Final = METRICS["ssim"].title
METRIC_IN_FULL: Final = METRICS["ssim"].in_full
CROP: Final = SSIM_SIDE
MAX_SIDE: Final = 2 * CROP


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

#: The kinds of pictures: undistorted, and every distortion at every level.
_KINDS: Final = ((None, 0), *((name, level) for name in DISTORTIONS for level in range(1, LEVELS + 1)))
#: Number of pictures if every photograph comes in every kind.
MAX_PICTURES: Final = len(PHOTOGRAPHS) * len(_KINDS)


@dataclass(frozen=True)
class DemoPicture:
    """One labelled picture.

    Attributes:
        path: The file of the picture, a PNG.
        score: The label: SSIM with the undistorted crop. 1 is best.
        reference: Name of the photograph that the crop is cut from.
        distortion: A key of `DISTORTIONS`; None for an undistorted crop.
        level: 1 to 5; 0 for an undistorted crop.
    """

    path: Path
    score: float
    reference: str
    distortion: str | None
    level: int


def make_dataset(
    folder: str | os.PathLike[str],
    *,
    seed: int,
    pictures: int = MAX_PICTURES,
) -> list[DemoPicture]:
    """Write the pictures, as 8-bit PNG of 256x256 pixels, and labels.csv (path,score,reference) for training.

    Distortions, levels and photographs are drawn in turn. 126 pictures hold every distortion at every level, and one
    undistorted picture. MAX_PICTURES hold all of these for every photograph. No photograph has the same distortion and
    level twice.

    Args:
        folder: The folder of the dataset, which is made if it does not exist. It must not hold a labels.csv. The
            pictures go to its folder `pictures`.
        seed: At least 0. The same seed and number of pictures give the same files.
        pictures: Number of pictures, 1 to MAX_PICTURES.

    Returns:
        The pictures that were written, in the order of labels.csv.

    Raises:
        UsageError: The number of pictures or the seed is out of range.
        OutputExistsError: The folder holds a labels.csv already.
        MissingPackageError: scikit-learn is not installed.
        GliaError: The folder cannot be written.
    """
    folder = Path(folder)
    if not 1 <= pictures <= MAX_PICTURES:
        raise UsageError(f"the demo's data set has 1 to {MAX_PICTURES} pictures, not {pictures}")
    if seed < 0:
        raise UsageError(f"the seed must not be negative, it is {seed}")
    if (folder / LABELS).exists():
        raise OutputExistsError(f"{folder / LABELS} exists; name another folder, or remove this one")
    crops = [_cut(read_photograph(photograph)) for photograph in PHOTOGRAPHS]
    kinds = np.random.default_rng(seed).permutation(len(_KINDS))

    def make(index: int) -> DemoPicture:
        rng = np.random.default_rng([seed, index])
        turn, place = divmod(index, len(kinds))
        # Each round of all kinds begins one photograph later, so that after the last round every photograph has had
        # every kind.
        at = (place + turn) % len(PHOTOGRAPHS)
        number = int(rng.integers(len(crops[at])))
        crop, (name, level) = crops[at][number], _KINDS[kinds[place]]
        pixels = crop if name is None else distort(crop, name, level, rng)
        kind = "undistorted" if name is None else f"{name}-{level}"
        path = folder / "pictures" / f"{PHOTOGRAPHS[at].name}-{number}-{kind}.png"
        # PNG is lossless, so that the file holds exactly the pixels that the label is computed from. Level 1 is four
        # times as fast as the default.
        Image.fromarray(pixels).save(path, compress_level=1)
        return DemoPicture(path, ssim(crop, pixels), PHOTOGRAPHS[at].name, name, level)

    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(cpu_count()) as pool:
            made = list(pool.map(make, range(pictures)))
        (folder / LABELS).write_text(_to_csv(made, folder), encoding="utf-8")
    except OSError as error:
        raise GliaError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error
    return made


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


def _cut(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """Return square crops, spread evenly, each overlapping the next by half at most.

    Large photographs are reduced first, so that a crop shows a recognisable part.
    """
    photo = Image.fromarray(pixels)
    scale = MAX_SIDE / min(photo.size)
    if scale < 1:
        photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
    columns, rows = (np.linspace(0, side - CROP, round(side / CROP), dtype=int) for side in photo.size)
    return [np.asarray(photo.crop((x, y, x + CROP, y + CROP))) for y in rows for x in columns]


def _to_csv(pictures: list[DemoPicture], folder: Path) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([p.path.relative_to(folder).as_posix(), f"{p.score:.6f}", p.reference] for p in pictures)
    return table.getvalue()
