"""Labels images: label maps as palette PNG files and colour overlays.

python predict.py --model FILE.mindir --input PATH... --output DIR
python predict.py --config FILE --checkpoint PATH --input PATH... --output DIR [key=value ...]

With --classes "road,sky,zebra crossing" a network whose classes are told by text (model.text) finds these instead of
those that it was trained for; model.text.table=FILE takes them from another table.

An input is an image or a folder, searched through with its sub-folders. NAME_labels.png holds class ids with the
classes' colours as its palette, NAME_overlay.jpg the colours over the image, classes.json the names.
"""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src import cli, distributed
from src.class_text import read_names
from src.config import format_config, load_config_with_sources
from src.data import load_classes
from src.data.listing import SUFFIXES
from src.data.reading import read_image
from src.log import progress
from src.predictor import Predictor, from_checkpoint, from_mindir


def main() -> None:
    """Reads the command line and labels the images."""
    parser = cli.config_parser(__doc__, required=False)
    parser.add_argument("--model", metavar="FILE.mindir", help="model written by export.py; takes no --config")
    parser.add_argument("--checkpoint", metavar="PATH", help="folder of a checkpoint or run, .safetensors or .ckpt")
    parser.add_argument("--input", nargs="+", metavar="PATH", help="images or folders of images")
    parser.add_argument("--output", metavar="DIR", help="folder for the results")
    parser.add_argument("--classes", metavar="NAME,...", help="classes by name, with --config; see above")
    parser.add_argument("--device", default="CPU", choices=("CPU", "GPU", "Ascend"), help="with --model (default CPU)")
    arguments = parser.parse_intermixed_args()
    config = None
    if arguments.config:
        config, sources = load_config_with_sources(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(format_config(config, sources))
            return
    if arguments.overrides and not config:
        parser.error(f"{arguments.overrides[0]!r}: settings need --config; a model carries its own")
    if bool(arguments.model) == bool(arguments.config or arguments.checkpoint):
        parser.error("give either --model, or --config and --checkpoint")
    if arguments.classes and not config:
        parser.error("--classes needs --config and --checkpoint: a model has the classes that it was exported with")
    if config and not arguments.checkpoint:
        parser.error("the following arguments are required: --checkpoint")
    if not (arguments.input and arguments.output):
        parser.error("the following arguments are required: --input and --output")
    files = find_images(arguments.input)
    output = Path(arguments.output)
    cli.writable(str(output / "classes.json"))
    if config:
        distributed.setup(config.device.target, config.device.mode)
        named = arguments.classes is not None
        classes = read_names(arguments.classes) if named else load_classes(config.data)
        predictor = from_checkpoint(config, classes, arguments.checkpoint, named)
    else:
        distributed.setup(arguments.device, "graph")
        predictor = from_mindir(arguments.model)
    predict_files(predictor, files, output)


def find_images(inputs: list[str]) -> list[tuple[Path, Path]]:
    """(file, name of its results relative to the output folder without suffix) of every image of the inputs."""
    found = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            images = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not images:
                raise FileNotFoundError(f"no images in {path}; looked for {', '.join(SUFFIXES)}")
            found += [(image, image.relative_to(path).with_suffix("")) for image in images]
        elif path.is_file():
            found.append((path, Path(path.stem)))
        else:
            raise FileNotFoundError(f"no such image or folder: {path}")
    twice = sorted(str(name) for name, count in Counter(name for _, name in found).items() if count > 1)
    if twice:
        raise ValueError(f"several inputs would be written as {', '.join(twice[:5])}; predict one folder at a time")
    return found


def predict_files(predictor: Predictor, files: list[tuple[Path, Path]], output: Path) -> None:
    """Writes label map and overlay of every image, and the class names; ValueError lists images left out."""
    names = {"names": predictor.names, "palette": predictor.palette}
    (output / "classes.json").write_text(json.dumps(names, indent=1))
    bad: list[str] = []
    with progress(len(files), "predict") as advance:
        for file, name in files:
            advance()
            try:
                image = read_image(file)
                label = predictor(image)
            except ValueError as error:
                bad.append(str(error) if str(file) in str(error) else f"{file}: {error}")
                continue
            target = output / name
            target.parent.mkdir(parents=True, exist_ok=True)
            save_label(label, predictor.palette, target.with_name(f"{target.name}_labels.png"))
            overlay = predictor.overlay(image, label)
            cv2.imwrite(str(target.with_name(f"{target.name}_overlay.jpg")), np.ascontiguousarray(overlay[..., ::-1]))
    print(f"{len(files) - len(bad)} label maps and overlays in {output}")
    if bad:
        raise ValueError(f"{len(bad)} of {len(files)} images were left out:\n  " + "\n  ".join(bad))


def save_label(label: np.ndarray, palette, path: Path) -> None:
    """Writes class ids (H, W) as a palette PNG."""
    picture = Image.fromarray(label, mode="P")
    picture.putpalette([value for colour in palette for value in colour])
    picture.save(path)


if __name__ == "__main__":
    cli.run(main)
