"""Cityscapes: looks the ids of gtFine up and writes the 19 class ids beside them, *_gtFine_labelTrainIds.png."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.data.classes import read_classes  # noqa: E402
from src.data.listing import require_folder  # noqa: E402
from src.data.preparing import Job, check_number, convert_all, parser  # noqa: E402
from src.data.published import CITYSCAPES  # noqa: E402
from src.data.reading import read_mask, to_class_ids  # noqa: E402

IDS, TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
EPILOG = """\
Not needed for training: the data set reads the published files through the same table.

example:
  python tools/prepare_cityscapes.py --root cityscapes
  python train.py --config FILE data.dataset=cityscapes data.root=cityscapes data.options.labels=labelTrainIds
"""


def convert(job: Job, table: dict[int, int]) -> np.ndarray:
    return to_class_ids(read_mask(job.source), table, job.source)


def main() -> None:
    arguments = parser(__doc__, EPILOG)
    arguments.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with gtFine")
    arguments.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: --root)")
    args = arguments.parse_args()
    fine = require_folder(args.root / "gtFine", "unpack gtFine_trainvaltest.zip")
    target = (args.output or args.root) / "gtFine"
    jobs = []
    for split, count in CITYSCAPES.items():
        files = sorted((fine / split).glob(f"*/*{IDS}"))
        check_number(len(files), count, f"files *{IDS} in {fine / split}", args.subset)
        jobs += [Job(f, target / split / f.parent.name / f"{f.name.removesuffix(IDS)}{TRAIN_IDS}") for f in files]
    classes = read_classes("cityscapes")
    convert_all(jobs, partial(convert, table=classes.table), classes.palette, args.workers, "labelTrainIds")


if __name__ == "__main__":
    cli.run(main)
