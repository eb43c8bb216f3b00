"""Draws scribbles into full masks, for data sets that have none: one stroke for every component of every class."""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from any folder

from src import cli  # noqa: E402
from src.config import load_config  # noqa: E402
from src.data import load_classes, load_items  # noqa: E402
from src.data.label_forms import SCRIBBLE_TAGS  # noqa: E402
from src.data.preparing import Job, convert_all  # noqa: E402
from src.data.reading import read_item, read_mask  # noqa: E402
from src.data.scribble_audit import Audit, overlay  # noqa: E402
from src.data.scribbles import Pen, scribble, to_xml  # noqa: E402

EPILOG = """\
Writes a label file a sample of the training split: 255 off the strokes, the files' own classes on them. Started again,
it makes only what is missing or was made with other settings. Then the scribbles are compared with the masks: an image
without a stroke and a class that is never scribbled are errors.

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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--width", type=int, default=3, metavar="PIXELS", help="of a stroke (default: 3)")
    parser.add_argument("--ratio", type=float, default=1.0, metavar="R", help="kept length, 0 is a dot (default: 1)")
    parser.add_argument("--drop", type=float, default=0.0, metavar="P", help="share of strokes left out (default: 0)")
    parser.add_argument("--jitter", type=float, default=0.0, metavar="PIXELS", help="of the vertices (default: 0)")
    parser.add_argument("--smallest", type=int, default=100, metavar="PIXELS", help="area for a stroke (default: 100)")
    parser.add_argument("--background", default="0", metavar="ID", help="class with two strokes at most, or none")
    parser.add_argument("--pictures", type=int, default=0, metavar="N", help="images with their strokes, in pictures/")
    parser.add_argument("--xml", action="store_true", help="write the strokes in the form of ScribbleSup, too, in xml/")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    return parser.parse_intermixed_args()


def convert(job: Job, items: dict, table: dict, seed: int, pen: Pen) -> np.ndarray:
    """The label file of one job; items: target -> item."""
    item = items[job.target]
    return scribble(read_item(item, table)["label"], item.name, seed, pen)[1]


def main() -> None:
    """Reads the command line, draws, compares."""
    args = parse()
    data = load_config(args.config, args.overrides).data.model_copy(update={"scribbles": None})
    if args.background != "none" and not args.background.isdigit():
        raise ValueError(f"--background is {args.background!r}; give the id of a class, or none")
    background = None if args.background == "none" else int(args.background)
    pen = Pen(args.width, args.ratio, args.drop, args.jitter, args.smallest, background)
    classes, items = load_classes(data), load_items(data, data.train_split)
    targets = {args.output / f"{item.name}.png": item for item in items}
    settings = f"{pen} seed {args.seed}"
    jobs = [Job(getattr(item, "label", item.name), target, settings) for target, item in targets.items()]
    drawing = partial(convert, items=targets, table=classes.table, seed=args.seed, pen=pen)
    convert_all(jobs, drawing, classes.palette, args.workers, "scribbles")
    audit, tags = Audit(len(classes)), SCRIBBLE_TAGS if data.dataset.startswith("voc") else classes.names
    for i, item in enumerate(items):
        sample = read_item(item, classes.table)
        label = read_mask(args.output / f"{item.name}.png").astype(np.uint8)
        audit.add(item.name, label, sample["label"])
        if args.xml:
            strokes = scribble(sample["label"], item.name, args.seed, pen)[0]
            file = cli.writable(str(args.output / "xml" / f"{item.name}.xml"))
            Path(file).write_text(to_xml(strokes, label.shape, tags), encoding="utf-8")
        if i < args.pictures:
            picture = overlay(sample["image"], label, classes.palette)
            Image.fromarray(picture).save(cli.writable(str(args.output / "pictures" / f"{item.name}.png")))
    print(audit.table(classes.names))
    audit.require_usable(classes.names)


if __name__ == "__main__":
    cli.run(main)
