"""Tiny networks, batches and train steps that several test files share.

Letters: B batch, K classes, H x W image, M classes at most in one image.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from src.config import ModelConfig, OptimizerConfig
from src.engine.optimizer import create_optimizer
from src.engine.train_step import TrainStep
from src.losses import create_loss
from src.models import create_model
from src.models.segmentor import Segmentor

COLUMNS = ("image", "label", "valid", "present")
SIZE = (32, 48)
K = 4
BACKBONES = {
    "vit": {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "taps": [1, 2], "drop_path": 0.3},
    "one_block": {"name": "vit", "width": 16, "depth": 1, "num_heads": 2, "taps": [1], "drop_path": 0.3},
    "swin": {"name": "swin", "embed_width": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window": 3,
             "drop_path": 0.3},
    "resnet": {"name": "resnet", "depths": [1, 1, 1, 1], "bottleneck": False, "stem": "plain7x7", "norm": "group"},
    "mobilenet": {"name": "mobilenet", "repeats": [1, 1, 1, 1, 1, 1, 1]},
    "drn": {"name": "drn", "depths": [1] * 8, "widths": [4] * 9, "norm": "group"},
}  # fmt: skip
HEADS = {
    "ecenet": {"name": "ecenet", "channels": 16, "norm": "group", "dropout": 0.3},
    "fcn": {"name": "fcn", "channels": 8, "norm": "group", "dropout": 0.3},
    "segvit": {"name": "segvit", "channels": 16, "num_heads": 2, "num_layers": 1, "dropout": 0.3},
    "alignseg": {"name": "alignseg", "channels": 8, "norm": "group", "dropout": 0.3},
    "upernet": {"name": "upernet", "channels": 8, "auxiliary": 4, "norm": "group", "dropout": 0.3},
    "consistency": {"name": "consistency", "channels": 8, "main": {"name": "fcn", "channels": 8, "norm": "group"}},
    "pixel_text": {"name": "pixel_text", "encoder": {"name": "reassemble"}, "width": 16},
    "text_ecenet": {"name": "text_ecenet", "channels": 16, "norm": "group", "dropout": 0.3, "text_width": 16},
}


def tiny_network(backbone: str = "vit", head: str = "ecenet", size=SIZE, num_classes: int = K, **options) -> Segmentor:
    """A network with the same weights at every call; options go to the head."""
    ms.set_seed(3)
    settings = ModelConfig(backbone=BACKBONES[backbone], head={**HEADS[head], **options})
    return create_model(settings, num_classes, size)


def tiny_step(
    network: Segmentor, loss: str | dict = "class_mask", optimizer: dict | None = None,
    ema_decay: float | None = None, num_classes: int = K, **options,
) -> TrainStep:  # fmt: skip
    """A train step with SGD, lr to be given with each step; loss: name or settings; options go to the step."""
    loss = loss if isinstance(loss, dict) else {"name": loss}
    settings = OptimizerConfig(**{"name": "sgd", "lr": 1.0, "weight_decay": 0.0, "momentum": 0.0, **(optimizer or {})})
    optimizer = create_optimizer(network, settings, ema_decay)
    loss = create_loss(loss, num_classes)
    return TrainStep(network, loss, optimizer, (*COLUMNS, *getattr(loss, "columns", ())), **options)


def draw_batch(count: int, seed: int = 0, ignored: float = 0.2, size=SIZE) -> dict[str, np.ndarray]:
    """Random images; labels in four vertical bands of classes, a share of pixels ignored."""
    rng = np.random.default_rng(seed)
    label = np.empty((count, *size), np.int32)
    present = np.full((count, K), -1, np.int32)
    for b in range(count):
        bands = rng.integers(0, K, 4).repeat(-(-size[1] // 4))[: size[1]]
        label[b] = np.where(rng.random(size) < ignored, 255, bands)
        ids = np.unique(label[b][label[b] != 255])
        present[b, : len(ids)] = ids
    image = rng.integers(0, 256, (count, 3, *size), dtype=np.uint8)
    return {"image": image, "label": label, "valid": np.ones(label.shape, np.uint8), "present": present}


def split(batch: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The samples of a batch, each as a batch of one."""
    return [{key: value[b : b + 1] for key, value in batch.items()} for b in range(len(batch["label"]))]


def weights_of(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Copies of all parameters by name."""
    return {p.name: p.asnumpy().copy() for p in cell.get_parameters()}


def with_optimizer(seed: int = 0, ema_decay: float | None = None):
    """A network and its optimiser, both filled with values of a seed."""
    network = tiny_network(head="fcn")
    optimizer = create_optimizer(network, OptimizerConfig(name="adamw", lr=1.0), ema_decay)
    rng = np.random.default_rng(seed)
    for parameter in {p.name: p for cell in (network, optimizer) for p in cell.get_parameters()}.values():
        parameter.set_data(ms.Tensor(rng.random(parameter.shape).astype(np.float32)))
    return network, optimizer


def equal(first: dict, second: dict) -> bool:
    """Whether two mappings hold equal arrays."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


# A run on drawn scenes with everything random switched on; {root} is the folder of its runs.
CONFIG = """\
name: tiny
output_dir: {root}
data:
  dataset: toy_scenes
  crop_size: [32, 48]
  workers: 1
  options: {{train_count: 5, val_count: 2, size: [48, 64]}}
model:
  backbone: {{name: vit, width: 16, depth: 2, num_heads: 2, taps: [1, 2], drop_path: 0.3}}
  head: {{name: ecenet, channels: 16, norm: batch, dropout: 0.3}}
loss: {{name: class_mask}}
optimizer: {{name: adamw, lr: 1e-3, warmup_steps: 2, head_lr_multiplier: 2.0, clip_norm: 1.0}}
train: {{steps: 6, batch_size: 2, ema_decay: 0.9, log_every: 1, evaluate_every: 3, checkpoint_every: 3}}
eval: {{mode: whole, size: [48, 64]}}
"""


# With these the tiny run compiles soonest; dropout, drop path and averages stay on.
SMALL = ("model.head.name=fcn", "loss.name=cross_entropy", "model.backbone.depth=1", "model.backbone.taps=[1]")


def write_config(root: Path) -> Path:
    """The tiny config as a file, whose runs go to `root`/runs."""
    file = root / "tiny.yaml"
    file.write_text(CONFIG.format(root=root / "runs"), encoding="utf-8")
    return file
