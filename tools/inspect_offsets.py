"""Draws what a trained AlignSeg moves in an image: its offset fields, and the maps before and after they are applied.

python tools/inspect_offsets.py --config FILE --checkpoint PATH --image IMAGE [--output FILE.png] [key=value ...]

A row for each aligned sum: the coarser map, then the accumulated one; the last row is the aligned context. Colours and
arrows of an offset field say where each pixel is read: what is seen moves the other way; all fields have one scale.
Black lines are borders between predicted classes. Colours of a map are its three principal components, the same before
and after. The image is resized, its ratio kept, to fit into eval.size: with eval.mode=slide it is seen whole, not in
tiles.
A table says how far pixels are moved, in pixels of the resized image, near borders between predicted classes and
elsewhere.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")  # a file is drawn, no window opened

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import hsv_to_rgb  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from any folder

import src  # noqa: E402, F401  (before MindSpore, whose log level it sets)

# isort: split
from mindspore import Tensor, nn  # noqa: E402

from src import cli, distributed  # noqa: E402
from src.config import Config, format_config, load_config_with_sources  # noqa: E402
from src.constants import MEAN_PIXEL  # noqa: E402
from src.data import load_classes  # noqa: E402
from src.data.reading import read_image  # noqa: E402
from src.engine.inference import pad_image, scaled_size  # noqa: E402
from src.engine.weights import load_weights, require_classes, weights_file  # noqa: E402
from src.functional import resize_bilinear  # noqa: E402
from src.models import create_model  # noqa: E402
from src.models.heads.alignseg import AlignSegHead  # noqa: E402
from src.models.heads.alignseg_parts import AlignedContext, AlignedSum, ContextBranch, Offsets  # noqa: E402
from src.models.heads.sampler import Sampler  # noqa: E402

WATCHED = (AlignedSum, AlignedContext, ContextBranch, Offsets)
NEAR = 8  # pixels of the image: what counts as near a border
ARROWS = 24  # along the longer side
STRONG = 99  # percentile of lengths at which colours are strongest


@dataclass(frozen=True)
class Move:
    """What one offset field does. Letters: E channels, h x w grid, H x W network input.

    name: of the map that is moved; shift (2, h, w): to the right and down, in pixels of the input, from each place to
    where it is read; before, after (E, h, w): the map at the places, and as it was read.
    """

    name: str
    shift: np.ndarray
    before: np.ndarray
    after: np.ndarray


def main() -> None:
    """Reads the command line, runs the network, prints the table and writes the picture."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="folder of a checkpoint or run, .safetensors or .ckpt")
    parser.add_argument("--image", metavar="IMAGE", help="any photo; its labels are not needed")
    parser.add_argument("--output", metavar="FILE.png", default="offsets.png", help="picture (default: offsets.png)")
    arguments = parser.parse_intermixed_args()
    config, sources = load_config_with_sources(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(format_config(config, sources))
        return
    if not (arguments.checkpoint and arguments.image):
        parser.error("the following arguments are required: --checkpoint and --image")
    if Path(arguments.output).suffix.lower() != ".png":
        parser.error(f"--output {arguments.output}: give a name that ends in .png")
    if not Path(arguments.image).is_file():
        raise FileNotFoundError(f"no image at {arguments.image}")
    output = cli.writable(arguments.output)
    distributed.setup(config.device.target, config.device.mode)
    network = load_network(config, arguments.checkpoint)
    image, fitted = fit(read_image(Path(arguments.image)), config.eval.size)
    rows, label = inspect(network, image)
    print(table(rows, label, fitted))
    draw(rows, image, label, fitted, output)
    print(output)


def load_network(config: Config, checkpoint: str) -> nn.Cell:
    """The network of a config at eval.size with a checkpoint's weights; ValueError where it moves nothing."""
    classes = load_classes(config.data)
    network = create_model(config.model, len(classes), config.eval.size)
    if not isinstance(network.head, AlignSegHead):
        raise ValueError(f"model.head is {config.model.head['name']!r}, which has no offsets; only 'alignseg' has")
    if not any(isinstance(cell, Offsets) for _, cell in network.cells_and_names()):
        raise ValueError(
            "this network moves nothing: model.head.align_up and align_acc are false and context is not aligncm"
        )
    require_classes(weights_file(checkpoint), classes.names)
    load_weights(network, checkpoint)
    return network.set_train(False)


def fit(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The image (H', W', 3) resized to fit into `size` and padded to it; and the resized size."""
    fitted = scaled_size(image.shape[:2], min(size[0] / image.shape[0], size[1] / image.shape[1]))
    fitted = (min(fitted[0], size[0]), min(fitted[1], size[1]))
    resized = cv2.resize(image, fitted[::-1], interpolation=cv2.INTER_LINEAR)
    return pad_image(resized, size, MEAN_PIXEL), fitted


def inspect(network: nn.Cell, image: np.ndarray) -> tuple[list[list[Move]], np.ndarray]:
    """Moves of every aligned sum, then of the context, and the label map (H, W), of an image (H, W, 3) uint8 RGB."""
    seen = {}

    def watch(name: str):
        def keep(cell, inputs, output) -> None:
            seen[name] = (inputs, output)

        return keep

    head, rows = network.head, []
    with distributed.pynative():  # a compiled graph calls no hooks
        watched = [(name, cell) for name, cell in head.cells_and_names() if isinstance(cell, WATCHED)]
        handles = [cell.register_forward_hook(watch(name)) for name, cell in watched]
        logits = network(Tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None])))["logits"]
        for handle in handles:
            handle.remove()
        size = image.shape[:2]
        for i, cell in enumerate(head.sums):
            acc, deep = seen[f"sums.{i}"][0]
            up = resize_bilinear(deep, acc.shape[2:], True)
            maps = {"up": ("coarser map", up), "acc": ("accumulated map", acc)}
            rows.append([
                move(f"sum {i + 1}: {name}", x, x, seen[f"sums.{i}.offset_{key}"][1], cell.sampler, size)
                for key, (name, x) in maps.items() if f"sums.{i}.offset_{key}" in seen
            ])  # fmt: skip
        if "context.offset" in seen:
            offset, pooled = seen["context.offset"][1], seen["context.pooled"][1]
            resized = resize_bilinear(pooled, offset.shape[2:], True)
            rows.append([move("context", pooled, resized, offset, head.context.sampler, size)])
        label = resize_bilinear(logits, size, True).asnumpy()[0].argmax(0)
    return [row for row in rows if row], label


def move(name: str, source: Tensor, before: Tensor, offset: Tensor, sampler: Sampler, size: tuple[int, int]) -> Move:
    """The move of maps `source` (1, E, h', w'), seen without offsets as `before` (1, E, h, w), by offsets (1, 2, h, w).

    size: of the network's input.
    """
    shift = offset.asnumpy()[0].copy()
    for channel, axis in ((0, 1), (1, 0)):
        count = source.shape[2 + axis]
        pixel = (size[axis] - 1) / max(count - 1, 1)  # of the map, in pixels of the input
        shift[channel] *= sampler.unit(count, offset.shape[2 + axis]) * pixel
    return Move(name, shift, before.asnumpy()[0], sampler(source, offset).asnumpy()[0])


def table(rows: list[list[Move]], label: np.ndarray, fitted: tuple[int, int]) -> str:
    """Lengths of the shifts of every move in pixels; label (H, W), of which the upper left `fitted` is the image."""
    distance = cv2.distanceTransform((~borders(label)).astype(np.uint8), cv2.DIST_L2, 5)
    lines = [f"{'shift in pixels':<26}{'mean':>8}{'95 %':>8}{'largest':>9}{f'within {NEAR} px':>13}{'elsewhere':>11}"]
    for item in (item for row in rows for item in row):
        y, x = (places(n, side).round().astype(int) for n, side in zip(item.shift.shape[1:], label.shape, strict=True))
        inside = (y < fitted[0])[:, None] & (x < fitted[1])[None]
        length, near = np.hypot(*item.shift)[inside], (distance[np.ix_(y, x)] <= NEAR)[inside]
        means = [f"{part.mean():.2f}" if part.size else "-" for part in (length[near], length[~near])]
        numbers = f"{length.mean():>8.2f}{np.percentile(length, 95):>8.2f}{length.max():>9.2f}"
        lines.append(f"{item.name:<26}{numbers}{means[0]:>13}{means[1]:>11}")
    return "\n".join(lines)


def borders(label: np.ndarray) -> np.ndarray:
    """Which pixels of a label map (H, W) differ from the one above or to the left."""
    edges = np.zeros(label.shape, bool)
    edges[1:] |= label[1:] != label[:-1]
    edges[:, 1:] |= label[:, 1:] != label[:, :-1]
    return edges


def places(count: int, side: int) -> np.ndarray:
    """Where `count` places from the first to the last of `side` pixels lie."""
    return np.linspace(0.0, side - 1.0, count)


def draw(
    rows: list[list[Move]], image: np.ndarray, label: np.ndarray, fitted: tuple[int, int], output: Path
) -> None:
    """Writes the picture: image and colour wheel, then three panels a move, two moves a row."""
    lengths = [np.hypot(*item.shift).ravel() for row in rows for item in row]
    strong = max(np.percentile(length, STRONG) for length in lengths)
    ratio = fitted[0] / fitted[1]
    figure, axes = plt.subplots(
        len(rows) + 1, 6, figsize=(21, (3.5 * ratio + 0.35) * (len(rows) + 1)), layout="constrained", squeeze=False
    )
    for panel in axes.flat:
        panel.set_axis_off()
    grey = np.repeat(image.mean(-1, keepdims=True) / 255.0, 3, -1)
    axes[0, 0].imshow(image[: fitted[0], : fitted[1]])
    axes[0, 0].set_title("image", loc="left")
    draw_wheel(axes[0, 1], strong)
    for row, moves in zip(axes[1:], rows, strict=True):
        for i, item in enumerate(moves):
            draw_field(row[3 * i], item, strong, grey)
            row[3 * i].imshow(np.zeros((*label.shape, 3)), alpha=borders(label).astype(float))  # black
            before, after = components(item.before, item.after)
            for panel, colours, when in ((row[3 * i + 1], before, "before"), (row[3 * i + 2], after, "after")):
                lay_over(panel, colours, grey, 1.0)
                panel.set_title(f"{item.name}, {when}", loc="left", fontsize=10)
            for panel in row[3 * i : 3 * i + 3]:
                panel.set_xlim(-0.5, fitted[1] - 0.5)
                panel.set_ylim(fitted[0] - 0.5, -0.5)
    figure.savefig(output, dpi=80)
    plt.close(figure)


def lay_over(panel: Axes, colours: np.ndarray, grey: np.ndarray, opacity: float) -> None:
    """Colours (h, w, 3), whose corner pixels lie on those of the grey image (H, W, 3), over it."""
    (height, width), (rows, columns) = grey.shape[:2], colours.shape[:2]
    panel.imshow(grey)
    y, x = ((side - 1) / max(count - 1, 1) / 2 for side, count in ((height, rows), (width, columns)))
    panel.imshow(colours, extent=(-x, width - 1 + x, height - 1 + y, -y), alpha=opacity, interpolation="nearest")


def draw_field(panel: Axes, item: Move, strong: float, grey: np.ndarray) -> None:
    """The offset field in colours and arrows over the grey image; strong: length in pixels of the fullest colour."""
    lay_over(panel, wheel_colours(item.shift / max(strong, 1e-9)), grey, 0.6)
    if strong > 0.0:
        sides = item.shift.shape[1:]
        step = max(1, -(-max(sides) // ARROWS))
        y, x = (places(n, side)[step // 2 :: step] for n, side in zip(sides, grey.shape[:2], strict=True))
        spacing = step * (grey.shape[1] - 1) / max(sides[1] - 1, 1)
        u, v = item.shift[:, step // 2 :: step, step // 2 :: step] * (1.2 * spacing / strong)
        panel.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1, width=0.004)
    mean = np.hypot(*item.shift).mean()
    panel.set_title(f"{item.name}, mean {mean:.2f} px", loc="left", fontsize=10)


def wheel_colours(shift: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) of shifts (2, h, w): hue by direction, white for 0, full at length 1 and beyond."""
    hue = (np.arctan2(shift[1], shift[0]) / (2 * np.pi)) % 1.0
    return hsv_to_rgb(np.stack([hue, np.minimum(np.hypot(*shift), 1.0), np.ones_like(hue)], -1))


def draw_wheel(panel: Axes, strong: float) -> None:
    """The colour of every direction; at the edge shifts of `strong` pixels and more."""
    axis = np.linspace(-1.0, 1.0, 201)
    shift = np.stack(np.meshgrid(axis, axis))
    colours = wheel_colours(shift)
    colours[np.hypot(*shift) > 1.0] = 1.0
    panel.imshow(colours)
    panel.set_title(f"where a pixel is read; at the edge: {strong:.2f} px and more", loc="left", fontsize=10)


def components(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Three principal components of both maps (E, h, w) together, as colours (h, w, 3) each."""
    channels = len(before)
    vectors = np.concatenate([before.reshape(channels, -1), after.reshape(channels, -1)], 1).astype(np.float64)
    vectors -= vectors.mean(1, keepdims=True)
    axes = np.linalg.eigh(vectors @ vectors.T)[1][:, ::-1][:, :3].T
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # a sign that repeats
    values = axes @ vectors
    low, high = np.percentile(values, (2, 98), axis=1)[..., None]
    colours = np.clip((values - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    colours = colours.reshape(len(axes), 2, *before.shape[1:]).transpose(1, 2, 3, 0)
    return colours[0], colours[1]


if __name__ == "__main__":
    cli.run(main)
