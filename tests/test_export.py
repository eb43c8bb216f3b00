"""Every backbone with every head: the exported file computes what the network computes, for images of any size."""

import json
from itertools import product

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.config import ModelConfig
from src.engine.graphs import MindIR, call_graph, export_mindir, read_info
from src.engine.predict_net import PredictNet
from src.functional import bilinear_matrix
from src.models import BACKBONES, HEADS, create_model
from tests.running import randomise

SIZE = (32, 48)
CLASSES = 5
TINY = {
    "vit": {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "taps": [1, 2]},
    "swin": {
        "name": "swin", "embed_width": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 2], "window": 2,
    },
    "resnet": {"name": "resnet", "depths": [1, 1, 1, 1], "bottleneck": False, "stem": "plain7x7"},
    "mobilenet": {"name": "mobilenet", "repeats": [1, 1, 1, 1, 1, 1, 1]},
    "drn": {"name": "drn", "depths": [1] * 8, "widths": [4] * 9},
}  # fmt: skip
WIDTHS = {  # options of the heads
    "text_ecenet": {"channels": 8, "text_width": 16},
    "pixel_text": {"encoder": {"name": "pyramid_pooling"}, "width": 16},
    "consistency": {"channels": 8, "main": {"name": "upernet", "channels": 8}},
    "segvit": {"channels": 8, "num_layers": 1},
}  # fmt: skip
# Pairs that together have every backbone and every head.
QUICK = {
    ("vit", "ecenet"), ("vit", "segvit"), ("vit", "alignseg"), ("mobilenet", "upernet"), ("drn", "pixel_text"),
    ("vit", "text_ecenet"), ("resnet", "consistency"), ("swin", "fcn"),
}  # fmt: skip
INFO = {
    "size": json.dumps(SIZE), "classes": json.dumps(list("abcde")), "palette": json.dumps([[i] * 3 for i in range(5)]),
}  # fmt: skip


def build(backbone: str, head: str, kind: str) -> PredictNet:
    model = ModelConfig(backbone=TINY[backbone], head={"name": head, **WIDTHS.get(head, {"channels": 8})})
    network = create_model(model, CLASSES, SIZE)
    randomise(network)
    for parameter in network.get_parameters():
        # Many convolutions: they keep the size of maps.
        if backbone in ("resnet", "mobilenet", "drn") and parameter.ndim == 4:
            parameter.set_data(parameter / float(np.sqrt(parameter[0].size)))
    return PredictNet(network, SIZE, kind)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def test_every_backbone_family_and_head_is_here():
    assert {name.split("_")[0] for name in BACKBONES} == set(TINY) == {backbone for backbone, _ in QUICK}
    assert {head for _, head in QUICK} == set(HEADS)


def pairs() -> list:
    """Every backbone with every head; all but the quick pairs are slow."""
    return [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in product(TINY, HEADS)]


@pytest.mark.parametrize(("backbone", "head"), pairs())
def test_exported_logits_equal_the_network(backbone, head, tmp_path):
    graph = build(backbone, head, "logits")
    export_mindir(build(backbone, head, "logits"), tmp_path / "model.mindir", {"kind": "logits", **INFO})
    model = MindIR(tmp_path / "model.mindir")
    for shape in (SIZE, (21, 77)):
        ours, exported = call_graph(graph, image(*shape)), call_graph(model.graph, image(*shape))
        assert ours.shape == (CLASSES, *shape)
        np.testing.assert_array_equal(exported, ours)
        np.testing.assert_array_equal(model.labels(image(*shape)), ours.argmax(0))
    assert np.ptp(ours, axis=(1, 2)).min() > 0  # a constant map would prove little
    assert b"auxiliary" not in (tmp_path / "model.mindir").read_bytes()  # which only training has


def test_labels_are_the_argmax_of_the_logits(tmp_path):
    logits = call_graph(build("vit", "fcn", "logits"), image(30, 50))
    labels = call_graph(build("vit", "fcn", "labels"), image(30, 50))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(0))
    assert len(np.unique(labels)) > 1


def test_served_graph_is_the_network_behind_colour_order_and_resizing():
    graph = build("vit", "fcn", "logits")
    picture = image(*SIZE)
    planes = Tensor(picture.transpose(2, 0, 1)[None].copy())  # RGB
    logits = graph.network(planes)["logits"].asnumpy()[0]
    rows, columns = bilinear_matrix(logits.shape[1], SIZE[0]), bilinear_matrix(logits.shape[2], SIZE[1])
    np.testing.assert_allclose(call_graph(graph, picture), rows @ logits @ columns.T, atol=1e-5)


def test_description_travels_in_the_file(tmp_path):
    file = tmp_path / "model.mindir"
    export_mindir(build("vit", "fcn", "labels"), file, {"kind": "labels", **INFO})
    assert read_info(file) == {"kind": "labels", **INFO, "mindspore": ms.__version__}
    model = MindIR(file)
    assert (model.size, model.names, model.palette[2]) == (SIZE, tuple("abcde"), (2, 2, 2))
    with pytest.raises(ValueError, match="--kind logits"):
        model.make(SIZE)


def test_files_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="export.py"):
        read_info(tmp_path / "none.mindir")
    (tmp_path / "text.mindir").write_bytes(b"\xff\xff not a model")
    with pytest.raises(ValueError, match="not a MindIR file"):
        read_info(tmp_path / "text.mindir")
