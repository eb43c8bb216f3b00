"""COCO-Stuff 10K: writes the label maps of the .mat files as PNG files with the published ids."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.constants import IGNORE  # noqa: E402
from src.data.classes import read_classes  # noqa: E402
from src.data.label_forms import read_coco_stuff  # noqa: E402
from src.data.listing import read_names, require_folder  # noqa: E402
from src.data.preparing import Job, check_number, convert_all, parser  # noqa: E402
from src.data.published import COCO_STUFF  # noqa: E402
from src.data.reading import to_class_ids  # noqa: E402

EPILOG = """\
Ids are 0 (unlabelled) and 1..182; the data set looks them up when it reads the files.

example:
  python tools/prepare_coco_stuff.py --root cocostuff-10k-v1.1
  python train.py --config FILE data.dataset=coco_stuff_10k data.root=cocostuff-10k-v1.1
"""


def convert(job: Job, table: dict[int, int]) -> np.ndarray:
    """The ids as they are, once all of them are known to the table."""
    values = read_coco_stuff(job.source)
    to_class_ids(values, table, job.source)
    return values


def main() -> None:
    arguments = parser(__doc__, EPILOG)
    arguments.add_argument("--root", type=Path, required=True, metavar="DIR", help="annotations/ and imageLists/")
    arguments.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: --root)")
    args = arguments.parse_args()
    require_folder(args.root / "annotations", "unpack cocostuff-10k-v1.1.zip")
    folder = (args.output or args.root) / "labels"
    jobs = []
    for split, (listing, count) in COCO_STUFF.items():
        names = read_names(args.root / "imageLists" / f"{listing}.txt", split)
        check_number(len(names), count, f"names in imageLists/{listing}.txt", args.subset)
        jobs += [Job(args.root / "annotations" / f"{name}.mat", folder / f"{name}.png") for name in names]
    classes = read_classes("coco_stuff_10k")
    colours = {value: classes.palette[k] for value, k in classes.table.items() if k != IGNORE}
    palette = [colours.get(value, (0, 0, 0)) for value in range(max(colours) + 1)]
    convert_all(jobs, partial(convert, table=classes.table), palette, args.workers, "COCO-Stuff labels")


if __name__ == "__main__":
    cli.run(main)
