"""Logits functions of networks and exported graphs, for `inference.py`.

Letters: H x W image, h x w network size, K classes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError
from mindspore import Tensor, nn
from mindspore.train import mind_ir_pb2

from src.engine.predict_net import PredictNet

Size = tuple[int, int]


def call_graph(graph: nn.Cell, image: np.ndarray, *more: np.ndarray) -> np.ndarray:
    """Runs a PredictNet or its export on an RGB image (H, W, 3) uint8; logits (K, H, W) or labels (H, W).

    more: what a graph takes besides the image.
    """
    return graph(Tensor(np.ascontiguousarray(image[None, :, :, ::-1])), *map(Tensor, more)).asnumpy()[0]


class NetworkLogits:
    """Makes logits functions of one network for any input size; keeps what it has made.

    Args:
        create: (h, w) -> a fresh network of that size.
        fill: gives such a network its weights.
    """

    def __init__(self, create: Callable[[Size], nn.Cell], fill: Callable[[nn.Cell], object]) -> None:
        self.create, self.fill = create, fill
        self.graphs: dict[Size, PredictNet] = {}

    def __call__(self, size: Size) -> Callable[[np.ndarray], np.ndarray]:
        size = tuple(size)
        if size not in self.graphs:
            network = self.create(size)
            self.fill(network)
            self.graphs[size] = PredictNet(network, size, "logits")
        graph = self.graphs[size]
        return lambda image: call_graph(graph, image)

    def refresh(self) -> None:
        """Gives every network made so far the present weights."""
        for graph in self.graphs.values():
            self.fill(graph.network)


class MindIR:
    """An exported graph and its description: kind (labels or logits), network size (h, w), class names, palette.

    `more_inputs` names what it takes besides the image.

    Raises FileNotFoundError where there is no file, ValueError for a file that was not made by export.py.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = read_info(self.path)
        self.kind = self.info["kind"]
        self.size = tuple(json.loads(self.info["size"]))
        self.names = tuple(json.loads(self.info["classes"]))
        self.palette = tuple(tuple(colour) for colour in json.loads(self.info["palette"]))
        self.more_inputs = tuple(json.loads(self.info.get("more_inputs", "[]")))
        self.graph = nn.GraphCell(ms.load(str(self.path)))

    def labels(self, image: np.ndarray, *more: np.ndarray) -> np.ndarray:
        """RGB image (H, W, 3) uint8 -> label map (H, W) uint8, resized inside the graph."""
        result = call_graph(self.graph, image, *more)
        return result if self.kind == "labels" else result.argmax(0).astype(np.uint8)

    def make(self, size: Size) -> Callable[[np.ndarray], np.ndarray]:
        """The logits function for network size (h, w); only the exported size and kind logits can give one."""
        if self.kind != "logits":
            raise ValueError(
                f"{self.path}: exported as kind 'labels', which serves only eval.mode=resize at one scale without "
                "flip; export it with --kind logits"
            )
        if tuple(size) != self.size:
            raise ValueError(
                f"{self.path}: exported for size {self.size}, but these eval settings need {tuple(size)}; set "
                f"eval.size=[{self.size[0]},{self.size[1]}] and scales=[1.0], or export again"
            )
        return lambda image: call_graph(self.graph, image)


def export_mindir(graph: nn.Cell, path: str | Path, info: dict[str, str], *more: Tensor) -> None:
    """Writes a PredictNet as MindIR, `info` and MindSpore's version in its user_info; an existing file is replaced.

    more: types and shapes of what the graph takes besides the image.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.incomplete.mindir")
    draft.unlink(missing_ok=True)

    def add_info(model) -> None:
        for key, value in {**info, "mindspore": ms.__version__}.items():
            model.user_info[key] = value

    image = Tensor(shape=[1, None, None, 3], dtype=ms.uint8)
    ms.export(graph, image, *more, file_name=str(draft), file_format="MINDIR", custom_func=add_info)
    draft.chmod(0o644)
    draft.replace(path)


def read_info(path: str | Path) -> dict[str, str]:
    """What `export_mindir` put into a file beside the graph."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no exported model at {path}; make one with export.py")
    model = mind_ir_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path}: not a MindIR file ({error})") from error
    info = dict(model.user_info)
    if "kind" not in info:
        raise ValueError(f"{path}: a MindIR without the description that export.py writes; export it again with it")
    return info
