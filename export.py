"""Exports a checkpoint as a self-describing MindIR, and proves that it computes what the network computes.

python export.py --config FILE --checkpoint PATH --output FILE.mindir [--kind labels|logits] [--classes NAME,...]
                 [--fusion project] [key=value ...]
python export.py --inspect FILE.mindir

The model takes a raw uint8 BGR image (1, H, W, 3) of any size, as OpenCV decodes it, and returns the label map
(1, H, W) uint8, or for kind logits float32 scores (1, K, H, W). The network inside has the size eval.size. --classes:
others than those of the training, for networks whose classes are told by text. With --fusion project the model takes
eigenvectors of the image and their degrees, too, and scores are probabilities.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src import cli, distributed
from src.class_text import loader_of, read_names
from src.config import Config, config_to_yaml, format_config, load_config_with_sources
from src.data import load_classes
from src.data.classes import Classes
from src.engine.checkpoint_files import file_hash
from src.engine.graphs import MindIR, call_graph, export_mindir, read_info
from src.engine.predict_net import KINDS, PredictNet
from src.fused_net import MORE_INPUTS, ProjectNet, draw_spectrum
from src.models import create_model
from src.spectral.fusion import describe

TOLERANCE = 1e-3  # share of pixels that may be labelled otherwise, summed over the compared images


def main() -> None:
    """Reads the command line and exports or inspects."""
    parser = cli.config_parser(__doc__, required=False)
    parser.add_argument("--checkpoint", metavar="PATH", help="folder of a checkpoint or run, .safetensors or .ckpt")
    parser.add_argument("--output", metavar="FILE.mindir", help="where to write the model")
    parser.add_argument("--kind", choices=KINDS, default="labels", help="what the model returns (default: labels)")
    parser.add_argument("--classes", metavar="NAME,...", help="classes by name, for a network told by text")
    parser.add_argument("--fusion", choices=("none", "project"), default="none", help="with eigensegments (none)")
    parser.add_argument("--inspect", metavar="FILE.mindir", help="print what a model says of itself, and stop")
    arguments = parser.parse_intermixed_args()
    if arguments.inspect:
        for key, value in read_info(arguments.inspect).items():
            print(f"{key}: {value}" if "\n" not in value else f"{key}:\n  " + value.replace("\n", "\n  "))
        return
    if not arguments.config:
        parser.error("the following arguments are required: --config (or --inspect)")
    config, sources = load_config_with_sources(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(format_config(config, sources))
        return
    if not (arguments.checkpoint and arguments.output):
        parser.error("the following arguments are required: --checkpoint and --output")
    if not arguments.output.endswith(".mindir"):
        raise ValueError(f"--output {arguments.output}: the name must end in .mindir")
    output = cli.writable(arguments.output)
    distributed.setup(config.device.target, config.device.mode)
    named = arguments.classes is not None
    classes = read_names(arguments.classes) if named else load_classes(config.data)
    file, fill = loader_of(config.model, arguments.checkpoint, classes.names, named)
    build = partial(build_graph, config, len(classes), fill, arguments.kind, arguments.fusion)
    export(config, classes, file, build, output, arguments.kind, arguments.fusion)


def export(
    config: Config, classes: Classes, file: Path, build: Callable[[], nn.Cell], output: Path, kind: str, fusion: str
) -> None:
    """Writes the model, loads it again and compares it with the network; raises RuntimeError where they disagree.

    file: the network's weights; build: makes its graph.
    """
    info = {
        "kind": kind, "size": json.dumps(config.eval.size), "classes": json.dumps(classes.names),
        "palette": json.dumps(classes.palette), "config": config_to_yaml(config), "weights": file.name,
        "weights_sha256": file_hash(file),
        "input": "uint8 BGR image (1, H, W, 3), any H and W",
        "output": "uint8 label map (1, H, W)" if kind == "labels" else "float32 logits (1, K, H, W)",
    }  # fmt: skip
    more = ()
    if fusion != "none":
        info |= {key: str(value) for key, value in describe(fusion).items()}
        info |= {"more_inputs": json.dumps(list(MORE_INPUTS))}
        more = tuple(Tensor(shape=[None] * axes, dtype=ms.float32) for axes in MORE_INPUTS.values())
    export_mindir(build(), output, info, *more)
    share = compare(build(), MindIR(output), config.eval.size, draw_spectrum() if more else ())
    if share > TOLERANCE:
        output.unlink()
        raise RuntimeError(
            f"the exported model labels {share:.2%} of the compared pixels otherwise than the network (allowed: "
            f"{TOLERANCE:.1%}); {output} was removed"
        )
    print(f"{output}: kind {kind}, network size {config.eval.size}; {share:.4%} of pixels differ from the network")


def build_graph(config: Config, num_classes: int, fill: Callable, kind: str, fusion: str) -> nn.Cell:
    """The served graph, given its weights by `fill`."""
    network = create_model(config.model, num_classes, config.eval.size)
    fill(network)
    if fusion == "project":
        return ProjectNet(PredictNet(network, config.eval.size, "logits"), kind)
    return PredictNet(network, config.eval.size, kind)


def compare(graph: nn.Cell, model: MindIR, size: tuple[int, int], more: tuple[np.ndarray, ...] = ()) -> float:
    """Share of pixels that graph and exported model label differently, over images of three sizes.

    more: what both take besides the image.
    """
    height, width = size
    rng = np.random.default_rng(0)
    differ = total = 0
    for shape in (size, (height * 3 // 4 + 1, width + 7), (height + 13, width * 2 // 3 + 1)):
        # Smooth noise: its label map has regions, as a photograph's has, and many shades of each colour.
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = np.kron(coarse, np.ones((-(-shape[0] // 6), -(-shape[1] // 8), 1)))[: shape[0], : shape[1]]
        image = np.clip(image + rng.normal(0, 12, (*shape, 3)), 0, 255).astype(np.uint8)
        ours = call_graph(graph, image, *more)
        ours = ours if graph.labels else ours.argmax(0)
        differ += int((ours != model.labels(image, *more)).sum())
        total += ours.size
    return differ / total


if __name__ == "__main__":
    cli.run(main)
