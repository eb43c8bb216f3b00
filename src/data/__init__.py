"""From the `data` section of a config to classes, training batches and evaluation samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.config import DataConfig, lookup
from src.config_options import check_options
from src.data.bad_samples import BadSamples
from src.data.classes import Classes, identity_table, read_classes, without
from src.data.datasets import camvid, camvid_classes, toy_scenes, toy_scenes_classes
from src.data.folder import folder, folder_classes
from src.data.folds import coco_20i, pascal_5i
from src.data.holdout import select_part, split_part
from src.data.listing import require_folder
from src.data.loader import SampleStream, create_batches
from src.data.published import ade20k, cityscapes, coco_stuff_10k, loveda, pascal_context
from src.data.reading import FileItem, Item, Sample, item_size, read_item
from src.data.transforms import (
    MEAN_PIXEL,
    Transform,
    pad,
    photometric_distortion,
    present_classes,
    random_flip,
    random_window,
)
from src.data.voc import voc_2012, voc_scribble

# name: (root, split, **options) -> items; root -> classes, or the name of a file in tables/
DATASETS: dict[str, tuple[Callable, Callable | str]] = {
    "ade20k": (ade20k, "ade20k"),
    "camvid": (camvid, camvid_classes),
    "cityscapes": (cityscapes, "cityscapes"),
    "coco_20i": (coco_20i, "coco_20i"),
    "coco_stuff_10k": (coco_stuff_10k, "coco_stuff_10k"),
    "folder": (folder, folder_classes),
    "loveda": (loveda, "loveda"),
    "pascal_5i": (pascal_5i, "voc_2012"),
    "pascal_context_59": (pascal_context, "pascal_context_59"),
    "pascal_context_60": (pascal_context, "pascal_context_60"),
    "toy_scenes": (toy_scenes, toy_scenes_classes),
    "voc_2012": (voc_2012, "voc_2012"),
    "voc_scribble": (voc_scribble, "voc_2012"),
}


IMAGE_PRESENT = "image_present"
SCRIBBLED = ("voc_scribble",)  # data sets whose training split has strokes without being told to


def load_classes(data: DataConfig) -> Classes:
    """The classes of the configured data set, those of data.unseen left out."""
    _, classes = lookup(DATASETS, data.dataset, "data set")
    found = read_classes(classes) if isinstance(classes, str) else classes(data.root)
    return without(found, data.unseen) if data.unseen else found


def load_items(data: DataConfig, split: str) -> Sequence[Item]:
    """The items of one split, or of a part of it (see holdout.py); those for training with scribbles where given.

    Raises ValueError for options that the data set does not take, and for data.unseen where its items have tables of
    their own: folds say themselves what training does not see.
    """
    items, _ = lookup(DATASETS, data.dataset, "data set")
    options = check_options(f"data.options ({data.dataset})", items, data.options, positional=2)
    name, part = split_part(split)
    chosen = select_part(items(data.root, name, **options), part)
    if data.unseen and len(chosen) and getattr(chosen[0], "table", None) is not None:
        raise ValueError(f"data.unseen is not for {data.dataset}, whose data.options.fold says what is unseen")
    if data.unseen and data.scribbles is not None:
        raise ValueError("data.unseen does not go with data.scribbles: their files number all classes of the data set")
    if data.scribbles is None or split != data.train_split:
        return chosen
    return scribbled(chosen, Path(data.scribbles), len(load_classes(data)))


def is_scribbled(data: DataConfig, split: str) -> bool:
    """Whether the labels of a split are strokes."""
    return split == data.train_split and (data.scribbles is not None or data.dataset in SCRIBBLED)


def asks_for_classes(data: DataConfig) -> bool:
    """Whether each sample asks for one class, its `category`."""
    return data.options.get("samples") == "pairs"


def require_files(items: Sequence[Item]) -> None:
    """Raises ValueError for drawn scenes, which take no scribbles."""
    drawn = [item.name for item in items if not isinstance(item, FileItem)]
    if drawn:
        raise ValueError(
            f"{drawn[0]} is a drawn scene without a file, which takes no scribbles (data.scribbles); write the scenes "
            "as files first, or take another data set"
        )


def scribbled(items: Sequence[Item], folder: Path, num_classes: int) -> list[FileItem]:
    """The items with the label files of a folder, class ids or 255; FileNotFoundError where some have none."""
    require_folder(folder, "make it with tools/make_scribbles.py")
    require_files(items)
    missing = [item.name for item in items if not (folder / f"{item.name}.png").is_file()]
    if missing:
        raise FileNotFoundError(
            f"data.scribbles: {folder} has no file for {len(missing)} of {len(items)} samples, the first is "
            f"{missing[0]}.png; make them with tools/make_scribbles.py"
        )
    table = identity_table(num_classes)
    return [replace(item, label=folder / f"{item.name}.png", table=table) for item in items]


def train_transforms(
    data: DataConfig, max_classes: int, pad_pixel: tuple[int, int, int] = MEAN_PIXEL, image_classes: int = 0
) -> list[Transform]:
    """The training recipe in its order; max_classes: room for class ids in the column `present`.

    image_classes: room in the column `image_present`, the classes of the whole image; 0: there is none.
    """
    return [
        *([present_classes(image_classes, IMAGE_PRESENT)] if image_classes else []),
        random_window(
            data.base_size, data.scale_range, data.crop_size, data.max_class_share, reduced=data.reduced_decoding
        ),
        random_flip(data.flip),
        *([photometric_distortion()] if data.photometric else []),
        pad(data.crop_size, pad_pixel),
        present_classes(max_classes),
    ]


def create_train_stream(
    data: DataConfig,
    *,
    max_classes: int,
    seed: int,
    first_sample: int,
    num_samples: int,
    rank: int = 0,
    world_size: int = 1,
    pad_pixel: tuple[int, int, int] = MEAN_PIXEL,
    items: Sequence[Item] | None = None,
    bad: BadSamples | None = None,
    columns: Sequence[str] = (),
) -> SampleStream:
    """The augmented samples of which `create_train_batches` makes batches; the same settings."""
    classes = load_classes(data)
    return SampleStream(
        items=load_items(data, data.train_split) if items is None else items,
        table=classes.table,
        transforms=train_transforms(
            data, max_classes, pad_pixel, len(classes) if IMAGE_PRESENT in columns else 0
        ),
        seed=seed,
        length=num_samples,
        rank=rank,
        world_size=world_size,
        first=first_sample,
        bad=bad,
    )


def create_train_batches(data: DataConfig, *, batch_size: int, **settings: Any) -> Iterator[dict[str, np.ndarray]]:
    """Augmented batches of this rank: num_samples samples after the first_sample ones that it has taken already.

    settings: of `create_train_stream`. Both counts are per rank. Yields image (B, 3, H, W) uint8, label (B, H, W)
    int32, valid (B, H, W) uint8, present (B, max_classes) int32, image_present (B, K) int32 where `columns` names it,
    and item (B,) int32, the index in `items` (None: the items of data.train_split) of what each sample was made of.
    Missing data and wrong settings raise here, bad files while iterating, unless `bad` notes them.
    """
    return create_batches(create_train_stream(data, **settings), batch_size, data.workers)


class EvalSamples:
    """(name, sample) of whole images without augmentation, read when asked for."""

    def __init__(self, items: Sequence[Item], table: dict[int, int]) -> None:
        self.items = items
        self.table = table

    def __len__(self) -> int:
        return len(self.items)

    def sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """(name, (H, W)) of every image, from the headers of the label files."""
        return ((item.name, item_size(item)) for item in self.items)

    def __getitem__(self, i: int) -> tuple[str, Sample]:
        item = self.items[i]
        return item.name, read_item(item, self.table)


def create_eval_samples(data: DataConfig, rank: int = 0, world_size: int = 1) -> EvalSamples:
    """The evaluation split, every world_size-th image from number rank on."""
    return EvalSamples(load_items(data, data.val_split)[rank::world_size], load_classes(data).table)
