"""BIQ2021: 12,000 photographs as people take and publish them, nearly all of 512x512, each rated by 30 people.

    ROOT/Train (Images and MOS).csv    Image Name,MOS and empty columns; 10,000 rows
    ROOT/Test (Images and MOS).csv     likewise; 2,000 rows
    ROOT/Images/ss01 (1).jpg           subsets: ss01 an archive, ss02 faults made on purpose, ss03 Unsplash

Source: Ahmed and Asif, "BIQ2021: a large-scale blind image quality assessment database", J. Electron. Imaging 31(5),
2022. The repository nisarahmedrana/BIQ2021 on GitHub has this layout.

Some photographs are there several times, or nearly so. `biq2021_groups.txt` lists these groups, one in a line. 139
pictures of the official test part have such a twin in the training part.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from glia_rt.errors import UsageError
from glia_train.datasets.base import Dataset, FolderFiles, LabelledPicture, Part, require_layout, require_scores
from glia_train.datasets.tables import read_rows

NAME: Final = "biq2021"
TITLE: Final = "BIQ2021"
LABELS: Final[dict[str, Part]] = {"Train (Images and MOS).csv": "train", "Test (Images and MOS).csv": "test"}
IMAGES: Final = "Images"
COLUMNS: Final = ("Image Name", "MOS")
SUBSETS: Final = ("ss01", "ss02", "ss03")
SCORE_RANGE: Final = (0.0, 1.0)
GROUPS: Final = "biq2021_groups.txt"


def read(root: Path) -> Dataset:
    """Return the rows of BIQ2021's folder. Whether the pictures are there is not looked at.

    Raises:
        UsageError: The folder is not in this layout. The message says what was expected where.
    """
    require_layout(root, TITLE, [*LABELS, f"{IMAGES}/"])
    files, groups = FolderFiles(root / IMAGES), near_duplicates()
    pictures: list[LabelledPicture] = []
    seen: dict[str, str] = {}
    for labels, part in LABELS.items():
        for row in read_rows(root / labels, COLUMNS, f"{TITLE}'s has {','.join(COLUMNS)}"):
            name = row.text("Image Name")
            subset = name.partition(" ")[0].lower()
            if subset not in SUBSETS or "/" in name or "\\" in name:
                raise UsageError(f"{row.where}: {name[:60]!r} is not named as {SUBSETS[0]} (1).jpg is")
            if (first := seen.setdefault(name.lower(), row.where)) != row.where:
                raise UsageError(f"{row.where}: {name} is in {first} already")
            pictures.append(
                LabelledPicture(
                    f"{IMAGES}/{name}",
                    files.find(name),  # one name has another case on disk
                    row.number("MOS"),
                    group=groups.get(Path(name).stem.lower()),
                    subset=subset,
                    part=part,
                )
            )
        require_scores(f"{root / labels}", [picture for picture in pictures if picture.part == part], SCORE_RANGE)
    return Dataset(NAME, tuple(pictures), SCORE_RANGE)


def near_duplicates() -> dict[str, str]:
    """Return the group of each picture that has near-duplicates, by its name in lower case without the suffix."""
    text = resources.files("glia_train.datasets").joinpath(GROUPS).read_text(encoding="utf-8")
    groups = [line.split("|") for line in text.splitlines() if not line.startswith("#")]
    return {name: f"near-duplicates of {names[0]}" for names in groups for name in names}
