"""PASCAL-5i and COCO-20i: the classes in four folds, each of which is unseen once (spec sazs, section 8.1).

The lists are those that were published with HSNet: pairs of an image and a class that it is asked for. In training,
the classes of the fold are unseen; the split val has the images of the fold and asks for its classes alone.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from src.constants import IGNORE
from src.data.classes import Classes, read_classes
from src.data.listing import check_count, pair_names, require_folder, require_root, require_split
from src.data.reading import FileItem

FOLDS = 4
SPLITS = {"train": "trn", "val": "val"}  # names of the published lists
BACKGROUND = 0
Samples = Literal["images", "pairs"]
Others = Literal["background", "ignore", "keep"]
Pair = tuple[str, int]  # name of an image, class id: 1 and up, beside the background

PASCAL_COUNTS = {
    ("train", "pairs"): (11394, 10255, 7797, 11594),
    ("train", "images"): (8450, 8081, 7007, 9002),
    ("val", "pairs"): (346, 451, 725, 346),
    ("val", "images"): (345, 433, 587, 326),
}
COCO_COUNTS = {  # the number of training pairs is not among the measured ones
    ("train", "images"): (62040, 74381, 73035, 73808),
    ("val", "pairs"): (35783, 17912, 14563, 14315),
    ("val", "images"): (26052, 15305, 13138, 12640),
}


def pascal_classes_of_fold(fold: int) -> set[int]:
    """The 5 class ids that fold 0..3 does not see."""
    return set(range(5 * fold + 1, 5 * fold + 6))


def coco_classes_of_fold(fold: int) -> set[int]:
    """The 20 class ids that fold 0..3 does not see: every fourth object."""
    return set(range(fold + 1, 81, FOLDS))


def pascal_5i(
    root: str | None,
    split: str,
    *,
    fold: int,
    samples: Samples = "images",
    others: Others | None = None,
    drop_unseen: bool = False,
    prepared: str | None = None,
    complete: bool = True,
) -> Sequence[FileItem]:
    """PASCAL-5i on VOC 2012 with SBD; lists in splits/pascal/{trn,val}/fold{0..3}.txt of the root or `prepared`.

    samples: `images`, each once, labelled with all classes of the split, or `pairs` of an image and one class, the
    item's `category`. others: what the pixels of all other classes become, `keep` leaves them; None: `ignore` with
    images, so that unseen classes are no negatives, and `background`, all else, with pairs. drop_unseen: leaves
    training images out that are listed with an unseen class, too; counts are not checked.
    """
    base = require_root(root, "pascal_5i", "JPEGImages/ and SegmentationClassAug/ of VOC2012, and splits/pascal/")
    _check_choice("pascal_5i", split, fold)
    made = base if prepared is None else Path(prepared)
    labels = require_folder(made / "SegmentationClassAug", "make it with tools/prepare_sbd.py")
    lists = require_folder(made / "splits" / "pascal" / SPLITS[split], "copy the lists of HSNet (docs/datasets.md)")
    listed = [_read_pascal_list(lists / f"fold{i}.txt") for i in range(FOLDS)]
    unseen = pascal_classes_of_fold(fold)
    if split == "train":
        pairs = [pair for i in range(FOLDS) if i != fold for pair in listed[i]]
        hidden = {name for name, _ in listed[fold]}
    else:
        pairs, hidden = listed[fold], set()
    _check_categories(pairs, unseen if split == "val" else set(range(1, 21)) - unseen, lists)
    files = _files(pairs, (base / "JPEGImages", ".jpg"), (labels, ".png"), lists)
    items = _items(pairs, files, samples, others, read_classes("voc_2012"))
    if (split, samples) in PASCAL_COUNTS:
        check_count(items, PASCAL_COUNTS[split, samples][fold], f"pascal_5i (fold {fold}, {samples})", split, complete)
    return _without_hidden(items, hidden) if drop_unseen else items


def coco_20i(
    root: str | None,
    split: str,
    *,
    fold: int,
    samples: Samples = "images",
    others: Others | None = None,
    drop_unseen: bool = False,
    complete: bool = True,
) -> Sequence[FileItem]:
    """COCO-20i on COCO 2014; lists in splits/coco/{trn,val}/fold{0..3}.pkl, options as of `pascal_5i`.

    Label files are annotations/<name of the image below the root>.png with the object's number in the order of COCO.
    """
    base = require_root(root, "coco_20i", "train2014/, val2014/, annotations/ and splits/coco/")
    _check_choice("coco_20i", split, fold)
    lists = require_folder(base / "splits" / "coco" / SPLITS[split], "copy the lists of HSNet (docs/datasets.md)")
    unseen = coco_classes_of_fold(fold)
    pairs = _read_coco_list(lists / f"fold{fold}.pkl")
    _check_categories(pairs, unseen if split == "val" else set(range(1, 81)) - unseen, lists)
    hidden = set()
    if drop_unseen and split == "train":  # another fold's training list tells of the classes that this one hides
        hidden = {name for name, k in _read_coco_list(lists / f"fold{(fold + 1) % FOLDS}.pkl") if k in unseen}
    files = _files(pairs, (base, ".jpg"), (base / "annotations", ".png"), lists)
    items = _items(pairs, files, samples, others, read_classes("coco_20i"))
    if (split, samples) in COCO_COUNTS:
        check_count(items, COCO_COUNTS[split, samples][fold], f"coco_20i (fold {fold}, {samples})", split, complete)
    return _without_hidden(items, hidden) if drop_unseen else items


def label_table(classes: Classes, kept: set[int], others: Others) -> dict[int, int]:
    """The data set's table with all classes but background and the kept ones turned into what `others` says."""
    if others == "keep":
        return classes.table
    replacement = BACKGROUND if others == "background" else IGNORE
    return {value: k if k in kept | {BACKGROUND, IGNORE} else replacement for value, k in classes.table.items()}


def _files(
    pairs: Sequence[Pair], images: tuple[Path, str], labels: tuple[Path, str], lists: Path
) -> dict[str, FileItem]:
    """Every image of the pairs once, in their order, by its name."""
    names = list(dict.fromkeys(name for name, _ in pairs))
    return {item.name: item for item in pair_names(names, images, labels, lists)}


def _items(
    pairs: Sequence[Pair], files: Mapping[str, FileItem], samples: Samples, others: Others | None, classes: Classes
) -> list[FileItem]:
    categories = sorted({k for _, k in pairs})
    if samples == "images":
        table = label_table(classes, set(categories), others or "ignore")
        return [replace(item, table=table) for item in files.values()]
    tables = {k: label_table(classes, {k}, others or "background") for k in categories}
    return [replace(files[name], table=tables[k], category=k) for name, k in pairs]


def _without_hidden(items: Sequence[FileItem], hidden: set[str]) -> list[FileItem]:
    left = [item for item in items if item.name not in hidden]
    if not left:
        raise ValueError(
            f"data.options.drop_unseen leaves none of {len(items)} items, for all show unseen classes; set it to false"
        )
    return left


def _check_choice(dataset: str, split: str, fold: int) -> None:
    require_split(split, SPLITS, dataset)
    if not 0 <= fold < FOLDS:
        raise ValueError(f"data.options.fold is {fold}; {dataset} has the folds 0..{FOLDS - 1}")


def _check_categories(pairs: Sequence[Pair], allowed: set[int], lists: Path) -> None:
    if not pairs:
        raise ValueError(f"{lists} names no image for this fold; copy the published lists again (docs/datasets.md)")
    wrong = sorted({k for _, k in pairs} - allowed)
    if wrong:
        raise ValueError(
            f"{lists} lists images for the classes {wrong}, which do not belong to this fold and split; allowed: "
            f"{sorted(allowed)}. Copy the published lists again (docs/datasets.md)"
        )


def _read_pascal_list(path: Path) -> list[Pair]:
    """The pairs in a list: a line is <image>__<class, from 1>."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; copy the lists of HSNet (docs/datasets.md)")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, found, category = line.strip().partition("__")
        if not found or not category.isdigit():
            raise ValueError(f"{path}:{number}: {line!r} is not of the form <image>__<class>; copy the list again")
        pairs.append((name, int(category)))
    return pairs


class _PlainUnpickler(pickle.Unpickler):
    """Containers, texts and numbers only: a pickle that names a class or a function could run anything."""

    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and a list needs plain values only")


def _read_coco_list(path: Path) -> list[Pair]:
    """The pairs in a list, a pickled dict of class (from 0) -> paths of images, in the order of the classes."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; copy the lists of HSNet (docs/datasets.md)")
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is refused: {error}; copy the published list again") from error
    if not isinstance(content, Mapping) or not all(isinstance(k, int) for k in content):
        raise ValueError(f"{path} does not hold a dict of class -> images; copy the published list again")
    for k, names in content.items():
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"{path} holds {str(names)[:40]} for class {k} in place of a list of paths of images; copy the "
                f"published list again"
            )
    return [(name.removesuffix(".jpg"), k + 1) for k in sorted(content) for name in content[k]]
