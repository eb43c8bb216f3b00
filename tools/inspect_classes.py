"""Looks into ECENet's stages: what each class mask decides by itself, and how well class embeddings tell classes apart.

python tools/inspect_classes.py --config FILE --checkpoint PATH [--images N] [--output FILE.json] [key=value ...]

For every stage, over the images of the evaluation split:
  mIoU            of the label map that its mask alone would give; of the classifier without and with the mask prior
  among present   the same, choosing only among the classes that the label holds (uses the ground truth: masks are
                  trained for those alone)
  same, other     mean cosine between its class embeddings of two images: of one class, and of two
  nearest         share of embeddings that are nearest to the mean of their own class
  kept            mean cosine with the embeddings of the stage before
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import src  # noqa: E402, F401  (before MindSpore, whose log level it sets)

# isort: split
from mindspore import Tensor  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from src import cli, distributed  # noqa: E402
from src.config import Config, EvalConfig, format_config, load_config_with_sources  # noqa: E402
from src.constants import IGNORE, MEAN_PIXEL  # noqa: E402
from src.data import create_eval_samples, load_classes  # noqa: E402
from src.engine import weights  # noqa: E402
from src.engine.class_report import ClassOutputs, StageScores, separation, steadiness  # noqa: E402
from src.engine.inference import pad_image, require_fit, resize_maps  # noqa: E402
from src.log import progress  # noqa: E402
from src.models import create_model  # noqa: E402


def main() -> None:
    """Reads the command line, looks, prints the table and writes the facts."""
    parser = cli.config_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="PATH", help="checkpoint folder, run folder (its best) or weights file")
    parser.add_argument("--images", type=cli.positive, metavar="N", help="look at the first N images only")
    parser.add_argument("--output", metavar="FILE.json", help="where to write the facts as JSON")
    arguments = parser.parse_intermixed_args()
    config, sources = load_config_with_sources(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(format_config(config, sources))
        return
    if not arguments.checkpoint:
        parser.error("the following arguments are required: --checkpoint")
    output = cli.writable(arguments.output) if arguments.output else None
    distributed.setup(config.device.target, config.device.mode)
    facts = {"checkpoint": arguments.checkpoint, **inspect(config, arguments.checkpoint, arguments.images)}
    print_table(facts)
    if output:
        output.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        print(f"facts written to {output}")


def inspect(config: Config, checkpoint: str, images: int | None) -> dict:
    """Facts of the stages over the first images of the evaluation split (None: all of them)."""
    classes, samples = load_classes(config.data), create_eval_samples(config.data)
    if config.eval.mode == "whole":
        require_fit(samples.sizes(), config.eval)
    file = weights.weights_file(checkpoint)
    weights.require_classes(file, classes.names)
    network = create_model(config.model, len(classes), config.eval.size)
    look = ClassOutputs(network)
    weights.load_weights(network, file)
    count = len(samples) if images is None else min(images, len(samples))
    scores, embeddings, owners = None, [], []
    with progress(count, "inspect") as advance:
        for i in range(count):
            sample = samples[i][1]
            maps, vectors = look_at(look, sample["image"], config.eval)
            scores = scores or StageScores(len(maps), len(classes))
            scores.add(maps, sample["label"])
            present = np.unique(sample["label"][sample["label"] != IGNORE])
            embeddings.append(vectors[:, present])
            owners.extend(present)
            advance()
    return {"images": count, **summarise(scores, np.concatenate(embeddings, 1), owners)}


def look_at(look: ClassOutputs, image: np.ndarray, settings: EvalConfig) -> tuple[np.ndarray, np.ndarray]:
    """Scores (stages, K, H, W) at the image's size and embeddings (R, K, E) of one image (H, W, 3) uint8.

    The image is padded to the network's size in mode whole, resized to it in the others.
    """
    size, (height, width) = settings.size, image.shape[:2]
    whole = settings.mode == "whole"
    fitted = pad_image(image, size, MEAN_PIXEL) if whole else cv2.resize(image, size[::-1])
    planes = np.ascontiguousarray(fitted.transpose(2, 0, 1)[None])
    scores, embeddings = (result.asnumpy() for result in look(Tensor(planes)))
    resized = (resize_maps(resize_maps(maps, size)[:, :height, :width] if whole else maps, (height, width))
               for maps in scores)  # fmt: skip
    return np.stack(list(resized)), embeddings


def summarise(scores: StageScores, embeddings: np.ndarray, owners: list[int]) -> dict:
    """Facts of the masks, embeddings and logits, each in the order in which the network makes them."""
    free, among = scores.miou(), scores.miou_among_present()
    masks = len(free) - 2
    names = [f"mask {i + 1}" for i in range(masks)] + ["classifier", "logits"]
    stages = [
        {"stage": name, "miou": value, "miou_among_present_uses_ground_truth": given}
        for name, value, given in zip(names, free, among, strict=True)
    ]
    embedded = []
    for i, vectors in enumerate(embeddings):
        kept = steadiness(embeddings[i - 1], vectors) if i else None
        embedded.append({"embedding": i + 1, **separation(vectors, owners), "kept": kept})
    return {"stages": stages, "embeddings": embedded, "share_changed_by_prior": scores.share_changed}


def print_table(facts: dict) -> None:
    """The facts as two tables."""
    console = Console(highlight=False)
    maps = Table("stage", "mIoU", "among present", box=box.ASCII2)
    for row in facts["stages"]:
        maps.add_row(row["stage"], *map(number, (row["miou"], row["miou_among_present_uses_ground_truth"])))
    vectors = Table("class embeddings", "same", "other", "nearest", "kept", box=box.ASCII2)
    for row in facts["embeddings"]:
        vectors.add_row(str(row["embedding"]), *(number(row[key]) for key in ("same", "other", "nearest", "kept")))
    console.print(maps, vectors)
    console.print(f"{facts['images']} images; the mask prior changes {100 * facts['share_changed_by_prior']:.2f} % "
                  "of the labelled pixels")  # fmt: skip


def number(value: float | None) -> str:
    """Four digits, or a dash for what there is not."""
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    cli.run(main)
