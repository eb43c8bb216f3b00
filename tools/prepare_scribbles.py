"""PASCAL VOC with scribbles or points: draws the XML files of ScribbleSup, or files of clicks, as label files."""

import argparse
import json
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.data.classes import read_classes  # noqa: E402
from src.data.label_forms import draw_clicks, draw_scribbles  # noqa: E402
from src.data.listing import require_folder  # noqa: E402
from src.data.preparing import Job, check_number, convert_all, parser  # noqa: E402

SCRIBBLES = 12031  # of train_aug and of val together
CLICKED = (12180, SCRIBBLES)  # images with clicks on objects; those with clicks on background alone
SCRIBBLE_FOLDER, POINT_FOLDER = "pascal_2012_scribble", "pascal_2012_point"
EPILOG = """\
A stroke is a line of --width pixels with round ends, a click a disc; what none covers is 255. Files of clicks are JSON:
{"IMAGE": [{"x": 12.5, "y": 3.0, "cls": 15}, ...], ...}; those of several files are drawn in their order.

example:
  python tools/prepare_scribbles.py --voc VOCdevkit/VOC2012 --xml scribble_annotation/pascal_2012
  python train.py --config FILE data.dataset=voc_scribble data.root=VOCdevkit/VOC2012
  python tools/prepare_scribbles.py --voc VOCdevkit/VOC2012 --clicks background.json objects.json
  python train.py --config FILE data.dataset=voc_scribble data.root=VOCdevkit/VOC2012 \\
    data.options.scribbles=pascal_2012_point
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


def convert_clicks(job: Job, images: Path, width: int) -> np.ndarray:
    """Draws the clicks of one image, a JSON list; ValueError that names the image."""
    with Image.open(images / f"{job.target.stem}.jpg") as image:
        size = image.size[::-1]
    try:
        return draw_clicks(json.loads(job.source), size, width)
    except ValueError as error:
        raise ValueError(f"clicks of {job.target.stem}: {error}") from error


def read_clicks(files: list[Path]) -> dict[str, str]:
    """Name of the image -> its clicks in all files, a JSON list; an image may be missing in some of them."""
    clicks: dict[str, list] = {}
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON file of clicks: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(each, list) for each in found.values()):
            raise ValueError(f"{file} holds no lists of clicks by the images' names")
        for name, each in found.items():
            clicks.setdefault(name, []).extend(each)
    return {name: json.dumps(each) for name, each in clicks.items()}


def read_annotations(place: Path) -> dict[str, str]:
    """Name of the image -> text of its file, from a folder or a .zip of .xml files."""
    if not place.is_file():
        folder = require_folder(place, "give the folder pascal_2012 of ScribbleSup, or a .zip of its files")
        return {path.stem: decode(path.read_bytes(), path) for path in folder.glob("*.xml") if is_annotation(path)}
    try:
        with zipfile.ZipFile(place) as archive:
            members = [name for name in archive.namelist() if is_annotation(Path(name))]
            texts = {Path(name).stem: decode(archive.read(name), place / name) for name in members}
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{place} is no whole .zip: {error}; download it again, or name a folder") from error
    if len(texts) < len(members):
        folders = ", ".join(sorted({str(Path(name).parent) for name in members}))
        raise ValueError(f"{place} holds files of one name in several folders ({folders}); unpack it and name one")
    return texts


def is_annotation(path: Path) -> bool:
    """An .xml file, but none of those that macOS writes beside each."""
    return path.suffix == ".xml" and not path.name.startswith(".")


def decode(content: bytes, place: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no text in UTF-8: {error}; unpack the download again") from error


def parse() -> argparse.Namespace:
    arguments = parser(__doc__, EPILOG)
    arguments.add_argument("--voc", type=Path, required=True, metavar="DIR", help="VOC2012 of the VOC devkit")
    sources = arguments.add_mutually_exclusive_group(required=True)
    sources.add_argument("--xml", type=Path, metavar="PATH", help="folder or .zip of XML files")
    sources.add_argument("--clicks", type=Path, nargs="+", metavar="FILE", help="JSON files of clicks")
    arguments.add_argument("--width", type=int, default=3, metavar="PIXELS", help="of a stroke or disc (default: 3)")
    arguments.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: --voc)")
    return arguments.parse_args()


def main() -> None:
    args = parse()
    if args.width < 1:
        raise ValueError(f"--width is {args.width}; at least 1 pixel is needed")
    images = require_folder(args.voc / "JPEGImages", "unpack VOCtrainval_11-May-2012.tar")
    if args.xml:
        texts, draw, name = read_annotations(args.xml), convert, SCRIBBLE_FOLDER
        check_number(len(texts), SCRIBBLES, f".xml files in {args.xml}", args.subset)
    else:
        texts, draw, name = read_clicks(args.clicks), convert_clicks, POINT_FOLDER
        check_number(len(texts), CLICKED, "images with clicks", args.subset)
    folder = (args.output or args.voc) / name
    jobs = [Job(text, folder / f"{image}.png", f"width {args.width}") for image, text in sorted(texts.items())]
    drawing = partial(draw, images=images, width=args.width)
    convert_all(jobs, drawing, read_classes("voc_2012").palette, args.workers, name)


if __name__ == "__main__":
    cli.run(main)
