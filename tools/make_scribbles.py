"""Draws scribbles into full masks, for data sets that have none: one stroke for every component of every class."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.config import load_config  # noqa: E402
from src.data import load_classes, load_items, require_files  # noqa: E402
from src.data.classes import Classes  # noqa: E402
from src.data.label_forms import SCRIBBLE_TAGS  # noqa: E402
from src.data.preparing import Job, convert_all  # noqa: E402
from src.data.reading import FileItem, read_item, read_mask  # noqa: E402
from src.data.scribble_audit import Audit, overlay  # noqa: E402
from src.data.scribbles import Pen, scribble, to_xml  # noqa: E402

EPILOG = """\
Writes a label file a sample of the training split: 255 off the strokes, class ids on them. Started again,
it makes only what is missing or was made with other settings. Then the scribbles are compared with the masks: an image
without a stroke, a class that is never scribbled and a pixel of another class than the mask's are errors.

example:
  python tools/make_scribbles.py --config config/fcn/vit_tiny_camvid.yaml --output output/camvid_scribbles \\
    --background none --pictures 8
  python train.py --config config/dfr/vit_tiny_camvid_dfr.yaml data.scribbles=output/camvid_scribbles
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="its data section names the full masks")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the label files")
    parser.add_argument("--seed", type=cli.natural, default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--width", type=cli.positive, default=3, metavar="PIXELS", help="of a stroke (default: 3)")
    parser.add_argument("--ratio", type=float, default=1.0, metavar="R", help="kept length, 0 is a dot (default: 1)")
    parser.add_argument("--drop", type=float, default=0.0, metavar="P", help="share of strokes left out (default: 0)")
    parser.add_argument("--jitter", type=float, default=0.0, metavar="PIXELS", help="of the vertices (default: 0)")
    parser.add_argument(
        "--smallest", type=cli.positive, default=100, metavar="PIXELS", help="area for a stroke (default: 100)"
    )
    parser.add_argument(
        "--background", default="0", metavar="ID",
        help="class with two strokes an image at most, or none (default: 0, the first class)",
    )  # fmt: skip
    parser.add_argument(
        "--extra-strokes", type=cli.natural, default=0, metavar="N", help="more in a component (default: 0)"
    )
    parser.add_argument(
        "--pictures", type=cli.natural, default=0, metavar="N", help="images with their strokes, in pictures/"
    )
    parser.add_argument(
        "--xml", action="store_true",
        help="write the lines in the form of ScribbleSup, too, in xml/, where what a stroke covers of other classes is "
        "not cleared as in the label files; tools/prepare_scribbles.py reads them for the classes of VOC alone",
    )  # fmt: skip
    parser.add_argument("--workers", type=cli.positive, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    return parser.parse_intermixed_args()


def convert(job: Job, items: dict, table: dict, seed: int, pen: Pen, xml: dict, tags: tuple[str, ...]) -> np.ndarray:
    """The label file of one job, and its .xml file where there is to be one; items, xml: target -> item, .xml file."""
    item, file = items[job.target], xml.get(job.target)
    strokes, label = scribble(read_item(item, table)["label"], item.name, seed, pen)
    if file:
        Path(cli.writable(str(file))).write_text(to_xml(strokes, label.shape, tags), encoding="utf-8")
    return label


def read_pen(args: argparse.Namespace, classes: Classes) -> Pen:
    """How strokes are drawn; ValueError for settings that are not allowed."""
    known = [str(k) for k in range(len(classes))]
    if args.background not in ("none", *known):
        raise ValueError(f"--background is {args.background!r}; give the id of a class, 0 to {known[-1]}, or none")
    background = None if args.background == "none" else int(args.background)
    return Pen(args.width, args.ratio, args.drop, args.jitter, args.smallest, background, args.extra_strokes)


def main() -> None:
    """Reads the command line, draws, compares."""
    args = parse()
    data = load_config(args.config, args.overrides).data.model_copy(update={"scribbles": None})
    classes, items = load_classes(data), load_items(data, data.train_split)
    require_files(items)
    pen = read_pen(args, classes)
    if pen.background is not None:
        name = classes.names[pen.background]
        print(f"background: {name}, two strokes an image at most (--background none: as every other class)")
    targets = {args.output / f"{item.name}.png": item for item in items}
    xml = {target: args.output / "xml" / f"{item.name}.xml" for target, item in targets.items()} if args.xml else {}
    settings = f"{pen} seed {args.seed} xml {args.xml} table "
    jobs = [
        Job(item.label, target, f"{settings}{sorted((item.table or classes.table).items())}")
        for target, item in targets.items()
    ]
    tags = SCRIBBLE_TAGS if data.dataset.startswith("voc") else classes.names
    drawing = partial(convert, items=targets, table=classes.table, seed=args.seed, pen=pen, xml=xml, tags=tags)
    convert_all(jobs, drawing, classes.palette, args.workers, "scribbles")
    audit = compare(items, classes, args.output, args.pictures)
    print(audit.table(classes.names))
    audit.require_usable(classes.names)


def compare(items: Sequence[FileItem], classes: Classes, output: Path, pictures: int) -> Audit:
    """The audit of the label files against the masks; draws the first images."""
    audit = Audit(len(classes))
    for i, item in enumerate(items):
        sample = read_item(item, classes.table)
        label = read_mask(output / f"{item.name}.png").astype(np.uint8)
        audit.add(item.name, label, sample["label"])
        if i < pictures:
            picture = overlay(sample["image"], label, classes.palette)
            Image.fromarray(picture).save(cli.writable(str(output / "pictures" / f"{item.name}.png")))
    return audit


if __name__ == "__main__":
    cli.run(main)
