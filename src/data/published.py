"""The published data sets that lie in folders of images: one function each, (root, split, **options) -> items.

Classes and tables are in tables/, where the data come from and what their folders hold in docs/datasets.md. PASCAL VOC
is in voc.py, its folds and those of COCO in folds.py. `complete=False` accepts any number of items; `prepared` is the
folder that the data set's tools/prepare_*.py wrote into, where that is not the root.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from src.data.classes import identity_table
from src.data.index import pair_folders
from src.data.listing import check_count, pair_names, read_names, require_folder, require_root, require_split
from src.data.reading import FileItem

ADE20K = {"train": ("training", 20210), "val": ("validation", 2000)}
# The lists of VOC 2010 have 4998 and 5105 images, the detail annotation leaves out three of them.
PASCAL_CONTEXT = {"train": (4998, 4996), "val": (5105, 5104)}
COCO_STUFF = {"train": ("train", 9000), "val": ("test", 1000)}  # published as training and test
CITYSCAPES = {"train": 2975, "val": 500}
CITYSCAPES_CLASSES = 19
LOVEDA = {"train": ("Train", 2522), "val": ("Val", 1669)}
LOVEDA_AREAS = ("Rural", "Urban")

REMEDY = "copy the data again (docs/datasets.md)"


def ade20k(root: str | None, split: str, *, complete: bool = True) -> Sequence[FileItem]:
    """ADE20K in the form of the scene parsing challenge 2016: ROOT/images/training, ROOT/annotations/training, ..."""
    base = require_root(root, "ade20k", "images/ and annotations/ of ADEChallengeData2016")
    folder, count = ADE20K[require_split(split, ADE20K, "ade20k")]
    images, labels = (require_folder(base / kind / folder, REMEDY) for kind in ("images", "annotations"))
    return check_count(pair_folders(images, labels, split), count, "ade20k", split, complete)


def pascal_context(
    root: str | None, split: str, *, prepared: str | None = None, complete: bool = True
) -> Sequence[FileItem]:
    """PASCAL-Context on VOC 2010; labels and lists by tools/prepare_pascal_context.py, for 59 and for 60 classes."""
    base = require_root(root, "pascal_context", "JPEGImages/ of VOC2010")
    require_split(split, PASCAL_CONTEXT, "pascal_context")
    made = base if prepared is None else Path(prepared)
    remedy = "make it with tools/prepare_pascal_context.py"
    labels = require_folder(made / "SegmentationClassContext", remedy)
    listing = require_folder(made / "ImageSets" / "SegmentationContext", remedy) / f"{split}.txt"
    items = pair_names(read_names(listing, split), (base / "JPEGImages", ".jpg"), (labels, ".png"), listing)
    return check_count(items, PASCAL_CONTEXT[split], "pascal_context", split, complete)


def coco_stuff_10k(
    root: str | None, split: str, *, prepared: str | None = None, complete: bool = True
) -> Sequence[FileItem]:
    """COCO-Stuff 10K 1.1; labels by tools/prepare_coco_stuff.py. The split val is what was published as test."""
    base = require_root(root, "coco_stuff_10k", "images/ and imageLists/ of cocostuff-10k-v1.1")
    published, count = COCO_STUFF[require_split(split, COCO_STUFF, "coco_stuff_10k")]
    made = base if prepared is None else Path(prepared)
    labels = require_folder(made / "labels", "make it with tools/prepare_coco_stuff.py")
    listing = base / "imageLists" / f"{published}.txt"
    items = pair_names(read_names(listing, split), (base / "images", ".jpg"), (labels, ".png"), listing)
    return check_count(items, count, "coco_stuff_10k", split, complete)


def cityscapes(
    root: str | None,
    split: str,
    *,
    labels: Literal["labelIds", "labelTrainIds"] = "labelIds",
    prepared: str | None = None,
    complete: bool = True,
) -> Sequence[FileItem]:
    """Cityscapes, fine annotation: leftImg8bit/<split>/<city>/, gtFine/<split>/<city>/.

    labels: which label files are read. labelIds are published and looked up in the table of the data set;
    labelTrainIds, by tools/prepare_cityscapes.py or cityscapesScripts, hold class ids.
    """
    base = require_root(root, "cityscapes", "leftImg8bit/ and gtFine/")
    require_split(split, CITYSCAPES, "cityscapes")
    made = base if prepared is None else Path(prepared)
    images = require_folder(base / "leftImg8bit" / split, REMEDY)
    output = "" if prepared is None else f" --output {made}"
    mend = {
        "labelIds": "copy the published files again, or read others with data.options.labels=labelTrainIds",
        "labelTrainIds": f"make them with `python tools/prepare_cityscapes.py --root {base}{output}`, or read the "
        f"published files with data.options.labels=labelIds",
    }[labels]
    fine = require_folder(made / "gtFine" / split, mend)
    if not any(fine.glob(f"*/*_gtFine_{labels}.png")):
        raise FileNotFoundError(f"{fine} holds no files CITY/*_gtFine_{labels}.png; {mend}")
    items = pair_folders(images, fine, split, ("_leftImg8bit.png",), (f"_gtFine_{labels}.png",))
    check_count(items, CITYSCAPES[split], "cityscapes", split, complete)
    if labels == "labelIds":
        return items
    table = identity_table(CITYSCAPES_CLASSES)
    return [replace(item, table=table) for item in items]


def loveda(root: str | None, split: str, *, complete: bool = True) -> Sequence[FileItem]:
    """LoveDA, urban and rural: <Split>/<Area>/images_png, <Split>/<Area>/masks_png. The test split has no labels."""
    base = require_root(root, "loveda", "Train/ and Val/, each with Rural/ and Urban/")
    folder, count = LOVEDA[require_split(split, LOVEDA, "loveda")]
    items = []
    for area in LOVEDA_AREAS:
        images, labels = (require_folder(base / folder / area / kind, REMEDY) for kind in ("images_png", "masks_png"))
        items += [replace(item, name=f"{area}/{item.name}") for item in pair_folders(images, labels, split)]
    return check_count(items, count, "loveda", split, complete)
