"""Draws what DFR's kernel ties a pixel to: shallow, deep and joint affinity over an image, from a trained network.

A row for each pixel: the predicted classes, then how strongly every cell of the loss's grid is tied to the pixel's: by
place and colour (shallow), by features alone (deep), by both (joint, what the loss uses at the end of a training); 1 is
the most. X to the right and Y down are counted in the image's own pixels, from 0. The image is resized, its ratio
kept, to fit into eval.size. A table says how much of each affinity lies on cells of the pixel's predicted class.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # a file is drawn, no window opened

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from any folder

import src  # noqa: E402, F401  (before MindSpore, whose log level it sets)

# isort: split
from mindspore import Tensor, nn  # noqa: E402

from src import cli, distributed  # noqa: E402
from src.config import Config, format_config, load_config_with_sources  # noqa: E402
from src.data import load_classes  # noqa: E402
from src.data.classes import Classes  # noqa: E402
from src.data.reading import read_image  # noqa: E402
from src.engine.weights import load_weights, read_tensors, require_classes, weights_file  # noqa: E402
from src.functional import pool_grid, resize_bilinear  # noqa: E402
from src.losses import create_loss  # noqa: E402
from src.losses.dfr import DFRLoss  # noqa: E402
from src.losses.grids import to_grid, unit  # noqa: E402
from src.losses.regulariser import Regulariser  # noqa: E402
from src.models import create_model  # noqa: E402
from tools.inspect_offsets import fit  # noqa: E402

KINDS = ("shallow", "deep", "joint")
OPACITY = 0.75  # of affinities over the grey image


@dataclass(frozen=True)
class Scene:
    """What is known of an image. Letters: h x w cells, H x W network input.

    image (H, W, 3) uint8, of which the upper left `fitted` is the photo, the rest padding; label (H, W): predicted
    classes; colours (1, 3, h, w), deep (1, D, h, w): what the kernel compares.
    """

    image: np.ndarray
    fitted: tuple[int, int]
    label: np.ndarray
    colours: Tensor
    deep: Tensor
    stride: int

    def inside(self) -> np.ndarray:
        """Cells (h, w) bool without padding."""
        rows, columns = (np.arange(1, n + 1) * self.stride for n in self.colours.shape[2:])
        return (rows <= self.fitted[0])[:, None] & (columns <= self.fitted[1])[None]

    def cell_classes(self) -> np.ndarray:
        """Predicted class (h, w) in the middle of every cell."""
        return self.label[self.stride // 2 :: self.stride, self.stride // 2 :: self.stride]


def main() -> None:
    """Reads the command line, runs the network, prints the table and writes the picture."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="folder of a checkpoint or run, .safetensors or .ckpt")
    parser.add_argument("--image", metavar="IMAGE", help="any photo; its labels are not needed")
    parser.add_argument("--pixel", action="append", default=[], metavar="X,Y", help="may be repeated, a row each")
    parser.add_argument("--output", metavar="FILE.png", default="affinity.png", help="picture (default: affinity.png)")
    arguments = parser.parse_intermixed_args()
    config, sources = load_config_with_sources(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(format_config(config, sources))
        return
    if not (arguments.checkpoint and arguments.image and arguments.pixel):
        parser.error("the following arguments are required: --checkpoint, --image and --pixel")
    if Path(arguments.output).suffix.lower() != ".png":
        parser.error(f"--output {arguments.output}: give a name that ends in .png")
    if not Path(arguments.image).is_file():
        raise FileNotFoundError(f"no image at {arguments.image}")
    photo = read_image(Path(arguments.image))
    pixels = [read_pixel(text, photo.shape[:2]) for text in arguments.pixel]
    output, classes = cli.writable(arguments.output), load_classes(config.data)
    distributed.setup(config.device.target, config.device.mode)
    network, regulariser = load(config, arguments.checkpoint, classes)
    scene = look(network, regulariser, photo, config.eval.size)
    ratio = scene.fitted[1] / photo.shape[1], scene.fitted[0] / photo.shape[0]
    places = [tuple(int((v + 0.5) * r) for v, r in zip(pixel, ratio, strict=True)) for pixel in pixels]
    found = [affinities(regulariser, scene, (y // scene.stride, x // scene.stride)) for x, y in places]
    print(table(arguments.pixel, places, found, scene, classes))
    draw(places, found, scene, classes, output)
    print(output)


def read_pixel(text: str, size: tuple[int, int]) -> tuple[int, int]:
    """(x, y) of `X,Y` in an image of size (H, W); ValueError for anything else."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"--pixel {text}: give X,Y in whole pixels from the upper left corner, such as 120,80")
    x, y = map(int, parts)
    if x >= size[1] or y >= size[0]:
        raise ValueError(
            f"--pixel {text} lies outside the image, which has {size[1]} x {size[0]} pixels (width x height): X may be "
            f"0 to {size[1] - 1}, Y 0 to {size[0] - 1}"
        )
    return x, y


def load(config: Config, checkpoint: str, classes: Classes) -> tuple[nn.Cell, Regulariser]:
    """The network of a config at eval.size with a checkpoint's weights, and the loss's kernel.

    Raises ValueError where there is no kernel with a deep factor, or nothing that it could read.
    """
    network = create_model(config.model, len(classes), config.eval.size)
    loss = create_loss(config.loss, len(classes))
    if not isinstance(loss, DFRLoss):
        raise ValueError(f"loss is {config.loss['name']!r}, which has no affinities; only 'dfr' has")
    regulariser = loss.regulariser
    if not regulariser.deep:
        raise ValueError(
            "loss.regulariser.kernels have no deep factor, the last number of each is 0: this loss is static; give the "
            "configuration of a dynamic one"
        )
    if regulariser.deep_source not in network.head.outputs:
        raise ValueError(
            f"the deep factor reads {regulariser.deep_source!r}, which the head {config.model.head['name']!r} does not "
            "give; train with model.head={name: consistency, main: ...}"
        )
    if any(side % regulariser.stride for side in config.eval.size):
        raise ValueError(
            f"eval.size {list(config.eval.size)} is no whole number of cells of {regulariser.stride} pixels "
            "(loss.regulariser.stride)"
        )
    require_classes(weights_file(checkpoint), classes.names)
    require_head(weights_file(checkpoint), network.head, config.model.head["name"])
    load_weights(network, checkpoint)
    return network.set_train(False), regulariser


def require_head(file: Path, head: nn.Cell, kind: str) -> None:
    """Raises ValueError where a weights file holds other parameters of a head than those of the kind `kind`."""
    stored = {name for name in read_tensors(file)[0] if name.startswith("head.")}
    wanted = {parameter.name for parameter in head.get_parameters()}
    if stored != wanted:
        raise ValueError(
            f"{file} was trained with another head than {kind!r}: {len(wanted - stored)} of its {len(wanted)} "
            f"parameters are missing there, {len(stored - wanted)} are unknown; give the config.yaml of that run"
        )


def look(network: nn.Cell, regulariser: Regulariser, photo: np.ndarray, size: tuple[int, int]) -> Scene:
    """Runs the network on a photo (H', W', 3) uint8 RGB of any size."""
    image, fitted = fit(photo, size)
    planes = Tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
    grid = tuple(side // regulariser.stride for side in size)
    # Heads give what the loss alone reads while these flags are set; their norms and dropout are cells of their own.
    for head in (network.head, getattr(network.head, "main", network.head)):
        head.add_flags(training=True)
    with distributed.pynative():
        outputs = network(planes)
        deep = to_grid(outputs[regulariser.deep_source], grid)
        deep = unit(deep) if regulariser.normalise else deep
        colours = pool_grid(Tensor((planes.asnumpy() / 255.0).astype(np.float32)), grid)
        label = resize_bilinear(outputs["logits"], size, network.align_corners).asnumpy()[0].argmax(0)
    return Scene(image, fitted, label, colours, deep, regulariser.stride)


def affinities(regulariser: Regulariser, scene: Scene, cell: tuple[int, int]) -> dict[str, np.ndarray]:
    """Affinity (h, w) of every cell to the one at (row, column), 0 to 1, for each of KINDS, beta being 1."""
    kernels = regulariser.kernels
    chosen = {
        "shallow": [(*kernel[:3], 0.0) for kernel in kernels if max(kernel[1:3]) > 0.0],
        "deep": [(kernel[0], 0.0, 0.0, kernel[3]) for kernel in kernels if kernel[3] > 0.0],
        "joint": kernels,
    }
    with distributed.pynative():
        return {kind: mixture(regulariser, scene, chosen[kind], cell) for kind in KINDS}


def mixture(regulariser: Regulariser, scene: Scene, kernels: list, cell: tuple[int, int]) -> np.ndarray:
    """Mean (h, w) of kernels by their weights, for the pairs with one cell."""
    total, one = np.zeros(scene.colours.shape[2:]), Tensor(np.float32(1.0))
    for kernel in kernels:
        exponent = 0.5 * np.square(apart(regulariser.features(kernel, scene.colours, scene.deep, one), cell))
        if regulariser.l1mean:
            exponent = np.concatenate([exponent, np.abs(apart(regulariser.others(kernel, scene.deep, one), cell))])
        total += kernel[0] * np.exp(-exponent.sum(0))
    return total / max(sum(kernel[0] for kernel in kernels), 1e-12)


def apart(features: Tensor, cell: tuple[int, int]) -> np.ndarray:
    """Difference (F, h, w) of a map (1, F, h, w) from its value in a cell."""
    values = features.asnumpy()[0].astype(np.float64)
    return values - values[:, cell[0], cell[1]][:, None, None]


def table(texts: list[str], places: list, found: list[dict], scene: Scene, classes: Classes) -> str:
    """For each pixel its predicted class, that class's share of the other cells, and of each affinity to them."""
    lines = [f"{'pixel':<12}{'class':<20}{'its cells':>10}" + "".join(f"{kind:>10}" for kind in KINDS)]
    for text, (x, y), maps in zip(texts, places, found, strict=True):
        own, others = scene.label[y, x], scene.inside()
        others[y // scene.stride, x // scene.stride] = False
        same = (scene.cell_classes() == own)[others]
        shares = [same.mean(), *(maps[k][others][same].sum() / max(maps[k][others].sum(), 1e-12) for k in KINDS)]
        lines.append(f"{text:<12}{classes.names[own]:<20}" + "".join(f"{share:>10.1%}" for share in shares))
    return "\n".join(lines)


def draw(places: list, found: list[dict], scene: Scene, classes: Classes, output: Path) -> None:
    """Writes the picture: a row for each pixel (x, y) of the network's input, its classes and three affinities."""
    height, width = scene.fitted
    figure, axes = plt.subplots(
        len(places), 4, figsize=(20, (4.8 * height / width + 0.4) * len(places)), layout="constrained", squeeze=False
    )
    grey = np.repeat(scene.image.mean(-1, keepdims=True) / 255.0, 3, -1)
    palette = np.array(classes.palette)[scene.label] / 255.0
    for row, (x, y), maps in zip(axes, places, found, strict=True):
        row[0].imshow(0.5 * grey + 0.5 * palette)
        found_classes = np.unique(scene.label[:height, :width]).tolist()
        patches = [Patch(color=np.array(classes.palette[k]) / 255.0, label=classes.names[k]) for k in found_classes]
        row[0].legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize="small")
        row[0].set_title(f"predicted: {classes.names[scene.label[y, x]]}", loc="left")
        for panel, kind in zip(row[1:], KINDS, strict=True):
            panel.imshow(grey)
            bottom, right = (side - 0.5 for side in scene.image.shape[:2])
            drawn = panel.imshow(
                maps[kind], extent=(-0.5, right, bottom, -0.5), alpha=OPACITY, interpolation="nearest", vmin=0, vmax=1
            )
            panel.set_title(kind, loc="left")
        for panel in row:
            panel.plot(x, y, "+", color="red", markersize=14, markeredgewidth=2)
            panel.set_xlim(-0.5, width - 0.5)
            panel.set_ylim(height - 0.5, -0.5)
            panel.set_axis_off()
        figure.colorbar(drawn, ax=row[-1], shrink=0.8)
    figure.savefig(output, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main)
