"""PASCAL-Context: makes label files of 59 classes and background from either published annotation."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.data.classes import read_classes  # noqa: E402
from src.data.label_forms import context_table, draw_regions, read_context  # noqa: E402
from src.data.listing import read_names, require_folder  # noqa: E402
from src.data.preparing import Job, check_number, convert_all, parser  # noqa: E402
from src.data.published import PASCAL_CONTEXT  # noqa: E402
from src.data.reading import to_class_ids  # noqa: E402

EPILOG = """\
--masks: trainval/*.mat with 459 classes; splits are the lists ImageSets/Main of VOC 2010 (4,998 and 5,105 images).
--json:  the detail annotation, which most published results use; it has its own splits (4,996 and 5,104 images).
Label files hold 0 for background, 1..59 for the classes; the data sets pascal_context_59 and _60 share them.

example:
  python tools/prepare_pascal_context.py --voc VOCdevkit/VOC2010 --json trainval_merged.json
  python train.py --config FILE data.dataset=pascal_context_59 data.root=VOCdevkit/VOC2010
"""

ORIGINS = ("the .mat files with 459 classes (--masks)", "the detail annotation (--json)")
Jobs = dict[str, list[Job]]  # split -> jobs


def convert(job: Job, table: dict[int, int], place: Path) -> np.ndarray:
    """The label of one image; place: of the annotation, for messages."""
    if isinstance(job.source, Path):
        return to_class_ids(read_context(job.source), table, job.source)
    image = json.loads(job.source)
    try:
        values = draw_regions(image["regions"], (image["height"], image["width"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}, regions of {job.target.stem}: {error}") from error
    return to_class_ids(values, table, f"{place}, annotation of {job.target.stem},")


def jobs_of_masks(masks: Path, voc: Path, folder: Path) -> Jobs:
    """One job for each image in the main lists of VOC 2010."""
    require_folder(masks, "unpack trainval.tar.gz of PASCAL-Context")
    names = {split: read_names(voc / "ImageSets" / "Main" / f"{split}.txt", split) for split in PASCAL_CONTEXT}
    return {split: [Job(masks / f"{n}.mat", folder / f"{n}.png") for n in found] for split, found in names.items()}


def jobs_of_json(path: Path, folder: Path) -> Jobs:
    """One job for each training and validation image of the detail annotation; its regions go along as text."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; download trainval_merged.json of PASCAL in Detail")
    try:
        content = json.loads(path.read_bytes())
        regions: dict[Any, list] = {image["image_id"]: [] for image in content["images"]}
        for region in content["annos_segmentation"]:
            part = {key: region[key] for key in ("category_id", "segmentation")}
            regions[region["image_id"]].append(part)
        jobs: Jobs = {split: [] for split in PASCAL_CONTEXT}
        for image in content["images"]:
            if image["phase"] in jobs:
                facts = {"height": image["height"], "width": image["width"], "regions": regions[image["image_id"]]}
                target = folder / f"{Path(image['file_name']).stem}.png"
                jobs[image["phase"]].append(Job(json.dumps(facts, sort_keys=True), target))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no detail annotation ({error!r}); download trainval_merged.json again") from error
    return jobs


def main() -> None:
    arguments = parser(__doc__, EPILOG)
    arguments.add_argument("--voc", type=Path, required=True, metavar="DIR", help="VOC2010 of the VOC devkit")
    sources = arguments.add_mutually_exclusive_group(required=True)
    sources.add_argument("--masks", type=Path, metavar="DIR", help="folder of the .mat files")
    sources.add_argument("--json", type=Path, metavar="FILE", help="trainval_merged.json")
    arguments.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: --voc)")
    args = arguments.parse_args()
    require_folder(args.voc, "unpack VOCtrainval_03-May-2010.tar")
    output = args.output or args.voc
    folder = output / "SegmentationClassContext"
    jobs = jobs_of_json(args.json, folder) if args.json else jobs_of_masks(args.masks, args.voc, folder)
    form = 1 if args.json else 0
    for split, found in jobs.items():
        check_number(len(found), PASCAL_CONTEXT[split][form], f"images of the split {split}", args.subset)
    palette = read_classes("pascal_context_60").palette
    every = [job for found in jobs.values() for job in found]
    lists = output / "ImageSets" / "SegmentationContext"
    names = {lists / f"{split}.txt": [job.target.stem for job in found] for split, found in jobs.items()}
    converting = partial(convert, table=context_table(), place=args.json or args.masks)
    convert_all(every, converting, palette, args.workers, "PASCAL-Context labels", names, ORIGINS[form])


if __name__ == "__main__":
    cli.run(main)
