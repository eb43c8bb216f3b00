"""PASCAL VOC 2012: with full labels, those of SBD included, and with scribbles."""

from collections.abc import Sequence
from pathlib import Path

from src.data.listing import check_count, pair_names, read_names, require_folder, require_root, require_split
from src.data.reading import FileItem

VOC_2012 = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
SCRIBBLES = {"train": 10582, "val": 1449}
LAYOUT = "JPEGImages/, SegmentationClass/ and ImageSets/ of VOC2012"


def voc_2012(root: str | None, split: str, *, prepared: str | None = None, complete: bool = True) -> Sequence[FileItem]:
    """VOC 2012 with 21 classes. The split train_aug, with SBD, is made by tools/prepare_sbd.py.

    prepared: the folder that the tool wrote into, where that is not the root; complete: False for any number of items.
    """
    base = require_root(root, "voc_2012", LAYOUT)
    require_split(split, VOC_2012, "voc_2012")
    if split == "train_aug":
        items = _train_aug(base, base if prepared is None else Path(prepared), None)
    else:
        items = _own(base, split)
    return check_count(items, VOC_2012[split], "voc_2012", split, complete)


def voc_scribble(
    root: str | None,
    split: str,
    *,
    scribbles: str = "pascal_2012_scribble",
    prepared: str | None = None,
    complete: bool = True,
) -> Sequence[FileItem]:
    """VOC 2012 with the scribbles of ScribbleSup: training on train_aug with scribbles, evaluation with full labels.

    scribbles: folder of label files in the prepared one (or the root): 0..20, 255 where there is no scribble, by
    tools/prepare_scribbles.py or as others published them. Scribbles of the validation images are never read.
    """
    base = require_root(root, "voc_scribble", LAYOUT)
    require_split(split, SCRIBBLES, "voc_scribble")
    made = base if prepared is None else Path(prepared)
    items = _train_aug(base, made, scribbles) if split == "train" else _own(base, split)
    return check_count(items, SCRIBBLES[split], "voc_scribble", split, complete)


def _own(base: Path, split: str) -> list[FileItem]:
    listing = base / "ImageSets" / "Segmentation" / f"{split}.txt"
    labels = (base / "SegmentationClass", ".png")
    return pair_names(read_names(listing, split), (base / "JPEGImages", ".jpg"), labels, listing)


def _train_aug(base: Path, made: Path, scribbles: str | None) -> list[FileItem]:
    """The items of train_aug with full labels, or with scribbles in that folder."""
    listing = require_folder(made / "ImageSets" / "Segmentation", "make it with tools/prepare_sbd.py") / "train_aug.txt"
    if scribbles is None:
        labels = require_folder(made / "SegmentationClassAug", "make it with tools/prepare_sbd.py")
    else:
        labels = require_folder(made / scribbles, "make it with tools/prepare_scribbles.py")
    return pair_names(read_names(listing, "train_aug"), (base / "JPEGImages", ".jpg"), (labels, ".png"), listing)
