"""PASCAL VOC 2012 + SBD: makes SegmentationClassAug and the list train_aug of 10,582 training images."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.data.classes import read_classes  # noqa: E402
from src.data.label_forms import read_sbd  # noqa: E402
from src.data.listing import read_names, require_folder  # noqa: E402
from src.data.preparing import Job, check_number, convert_all, parser  # noqa: E402
from src.data.reading import read_mask, to_class_ids  # noqa: E402

SBD_FILES = 11355
TRAIN_AUG = 10582
EPILOG = """\
The labels of VOC go before those of SBD. Training images are those of either, without the validation images of VOC,
whose labels are copied beside them for PASCAL-5i.

example:
  python tools/prepare_sbd.py --voc VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset
  python train.py --config FILE data.dataset=voc_2012 data.root=VOCdevkit/VOC2012 data.train_split=train_aug
"""


def convert(job: Job, table: dict[int, int]) -> np.ndarray:
    values = read_sbd(job.source) if job.source.suffix == ".mat" else read_mask(job.source)
    return to_class_ids(values, table, job.source)


def main() -> None:
    arguments = parser(__doc__, EPILOG)
    arguments.add_argument("--voc", type=Path, required=True, metavar="DIR", help="VOC2012 of the VOC devkit")
    arguments.add_argument("--sbd", type=Path, required=True, metavar="DIR", help="dataset of benchmark_RELEASE")
    arguments.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: --voc)")
    args = arguments.parse_args()
    lists = require_folder(args.voc, "unpack VOCtrainval_11-May-2012.tar") / "ImageSets" / "Segmentation"
    train, val = (read_names(lists / f"{split}.txt", split) for split in ("train", "val"))
    mats = sorted(require_folder(args.sbd / "cls", "unpack benchmark.tgz").glob("*.mat"))
    check_number(len(mats), SBD_FILES, f".mat files in {args.sbd / 'cls'}", args.subset)
    sources = {path.stem: path for path in mats}
    sources |= {name: args.voc / "SegmentationClass" / f"{name}.png" for name in (*train, *val)}
    names = sorted(sources.keys() - set(val))
    check_number(len(names), TRAIN_AUG, "training images of VOC and SBD together", args.subset)
    output = args.output or args.voc
    jobs = [Job(path, output / "SegmentationClassAug" / f"{name}.png") for name, path in sorted(sources.items())]
    classes = read_classes("voc_2012")
    converting = partial(convert, table=classes.table)
    lists = {output / "ImageSets" / "Segmentation" / "train_aug.txt": names}
    convert_all(jobs, converting, classes.palette, args.workers, "SegmentationClassAug", lists)


if __name__ == "__main__":
    cli.run(main)
