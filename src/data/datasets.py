"""The data sets that need no download: one function each, (root, split, **options) -> items, and their classes.

Users' own data are in folder.py, published data sets in published.py, voc.py and folds.py.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from src.data.classes import CAMVID, Classes, identity_table
from src.data.listing import check_count, pair_names, read_names, require_folder
from src.data.reading import FileItem, SceneItem
from src.data.toy_scenes import SMALLEST_SIDE, TOY_CLASSES, TOY_PALETTE

REPOSITORY = Path(__file__).resolve().parents[2]
CAMVID_COUNTS = {"train": 367, "val": 101, "test": 233}  # SegNet split
FIRST_VAL_SCENE = 1_000_000  # validation scenes start here, so no training count below it can reach them


def camvid_root(root: str | None) -> Path:
    """data.root, or camvid_480x360 in the folder that the environment variable ECENET_DATA names."""
    remedy = "set data.root to the folder with images/, labels/, train.txt and val.txt, or ECENET_DATA to its parent"
    if root is not None:
        return require_folder(Path(root), remedy)
    data = os.environ.get("ECENET_DATA") or REPOSITORY.parent / "shared" / "data"
    return require_folder(Path(data) / "camvid_480x360", remedy)


def camvid(root: str | None, split: str, *, complete: bool = True) -> Sequence[FileItem]:
    """CamVid 480 x 360 in the SegNet split, in the order of <split>.txt; lists of other names may be of any length.

    Raises FileNotFoundError for a missing folder, list or pair, ValueError for an empty split and, unless complete is
    False, for another number of images than published.
    """
    base = camvid_root(root)
    listing = base / f"{split}.txt"
    images, labels = (base / "images" / split, ".jpg"), (base / "labels" / split, ".png")
    items = pair_names(read_names(listing, split), images, labels, listing)
    return check_count(items, CAMVID_COUNTS.get(split, len(items)), "camvid", split, complete)


def camvid_classes(root: str | None) -> Classes:
    """The 11 classes of CamVid; they do not depend on where the files lie."""
    return CAMVID


def toy_scenes(
    root: str | None,
    split: str,
    *,
    train_count: int = 600,
    val_count: int = 100,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> list[SceneItem]:
    """Drawn street scenes; size is (H, W). No validation scene is ever a training scene.

    Raises ValueError for a root (there are no files), another split than train and val, and counts out of range.
    """
    if root is not None:
        raise ValueError(f"data.root is {root!r}, but toy_scenes are drawn and have no files; set data.root=null")
    first_and_count = {"train": (0, train_count), "val": (FIRST_VAL_SCENE, val_count)}
    if split not in first_and_count:
        raise ValueError(f"toy_scenes have no split {split!r}; known: train, val")
    first, count = first_and_count[split]
    if not 1 <= count <= FIRST_VAL_SCENE:
        raise ValueError(f"data.options.{split}_count is {count}; allowed: 1..{FIRST_VAL_SCENE}")
    height, width = size
    if min(size) < SMALLEST_SIDE or seed < 0:
        raise ValueError(
            f"data.options.size is {tuple(size)} (height, width) and seed {seed}; allowed: sides of at least "
            f"{SMALLEST_SIDE} pixels and a seed of 0 or more"
        )
    return [SceneItem(f"scene_{index:07d}", seed, index, (height, width)) for index in range(first, first + count)]


def toy_scenes_classes(root: str | None) -> Classes:
    """The classes of the drawn scenes; drawing gives class ids and IGNORE directly."""
    return Classes(TOY_CLASSES, TOY_PALETTE, identity_table(len(TOY_CLASSES)))
