"""PASCAL VOC with scribbles: draws the XML files of ScribbleSup as label files."""

import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.data.classes import read_classes  # noqa: E402
from src.data.label_forms import draw_scribbles  # noqa: E402
from src.data.listing import require_folder  # noqa: E402
from src.data.preparing import Job, check_number, convert_all, parser  # noqa: E402

SCRIBBLES = 12031  # of train_aug and of val together
EPILOG = """\
A stroke is a line of --width pixels with round ends; what no stroke covers is 255.

example:
  python tools/prepare_scribbles.py --voc VOCdevkit/VOC2012 --xml scribble_annotation/pascal_2012
  python train.py --config FILE data.dataset=voc_scribble data.root=VOCdevkit/VOC2012
"""


def convert(job: Job, images: Path, width: int) -> np.ndarray:
    """Draws the strokes of one file; ValueError that names the image, also where its size is another."""
    try:
        values, size = draw_scribbles(job.source, width)
    except ValueError as error:
        raise ValueError(f"scribbles of {job.target.stem}: {error}") from error
    with Image.open(images / f"{job.target.stem}.jpg") as image:
        if image.size[::-1] != size:
            raise ValueError(
                f"scribbles of {job.target.stem} are for {size[0]} x {size[1]} (height x width), the image has "
                f"{image.height} x {image.width}; they belong to different versions"
            )
    return values


def read_annotations(place: Path) -> dict[str, str]:
    """Name of the image -> text of its file, from a folder or a .zip of .xml files."""
    if place.suffix == ".zip" and place.is_file():
        with zipfile.ZipFile(place) as archive:
            members = [name for name in archive.namelist() if name.endswith(".xml")]
            return {Path(name).stem: archive.read(name).decode() for name in members}
    files = require_folder(place, "give the folder pascal_2012 of ScribbleSup, or a .zip of its files").glob("*.xml")
    return {path.stem: path.read_text(encoding="utf-8") for path in files}


def main() -> None:
    arguments = parser(__doc__, EPILOG)
    arguments.add_argument("--voc", type=Path, required=True, metavar="DIR", help="VOC2012 of the VOC devkit")
    arguments.add_argument("--xml", type=Path, required=True, metavar="PATH", help="folder or .zip of XML files")
    arguments.add_argument("--width", type=int, default=3, metavar="PIXELS", help="of a stroke (default: 3)")
    arguments.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: --voc)")
    args = arguments.parse_args()
    if args.width < 1:
        raise ValueError(f"--width is {args.width}; at least 1 pixel is needed")
    images = require_folder(args.voc / "JPEGImages", "unpack VOCtrainval_11-May-2012.tar")
    texts = read_annotations(args.xml)
    check_number(len(texts), SCRIBBLES, f".xml files in {args.xml}", args.subset)
    folder = (args.output or args.voc) / "pascal_2012_scribble"
    jobs = [Job(text, folder / f"{name}.png", f"width {args.width}") for name, text in sorted(texts.items())]
    drawing = partial(convert, images=images, width=args.width)
    convert_all(jobs, drawing, read_classes("voc_2012").palette, args.workers, "pascal_2012_scribble")


if __name__ == "__main__":
    cli.run(main)
