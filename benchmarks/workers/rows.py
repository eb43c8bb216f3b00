"""What is timed: named rows (network, sizes, mode), and the batch they run on. NumPy only.

Letters: B images, K classes, M classes at most in one image, H x W image.
"""

from dataclasses import dataclass

import numpy as np

from src.config import load_config

MODES = ("train", "infer", "forward")  # training step; one image through the exported model; forward of a batch
SEED = 7
LABEL_CELLS = (3, 4)  # rectangles of one class each in a label
IGNORED = 0.02  # share of pixels labelled 255
IGNORE = 255


@dataclass(frozen=True)
class Row:
    """A configuration file with overrides, the image size (H, W), K, B and one of MODES."""

    title: str
    config: str
    mode: str
    size: tuple[int, int]
    classes: int
    batch: int = 1
    overrides: tuple[str, ...] = ()


VIT_BASE, VIT_TINY = "config/ecenet/vit_base_ade20k.yaml", "config/ecenet/vit_tiny_camvid.yaml"
SWIN_BASE = "config/ecenet/swin_base_ade20k.yaml"
SWIN_TINY = ("model.backbone={name: swin_tiny, drop_path: 0.3}", "model.head.channels=256")
SMALL_VIT = (
    "model.backbone={name: vit, width: 32, depth: 2, num_heads: 2, taps: [1, 2]}",
    "model.head={name: ecenet, channels: 32}",
)
ROWS = {
    "train_vit_base": Row("training step, ViT-B/16 iso16, 512, batch 1", VIT_BASE, "train", (512, 512), 150),
    "train_vit_tiny": Row("training step, ViT-Ti/16 iso16, 352x480, batch 4", VIT_TINY, "train", (352, 480), 11, 4),
    "train_swin_tiny": Row("training step, Swin-T, 512, batch 1", SWIN_BASE, "train", (512, 512), 150, 1, SWIN_TINY),
    "infer_vit_base": Row("MindIR, ViT-B/16 iso16, 512", VIT_BASE, "infer", (512, 512), 150),
    "infer_swin_base": Row("MindIR, Swin-B w12, 640 (released)", SWIN_BASE, "infer", (640, 640), 150),
}
# For functional checks only: too small to say anything about speed.
SMALL_ROWS = {
    "small_train": Row("training step, 2 blocks of width 32, 64x96", VIT_BASE, "train", (64, 96), 9, 2, SMALL_VIT),
    "small_infer": Row("MindIR, 2 blocks of width 32, 64x96", VIT_BASE, "infer", (64, 96), 9, 1, SMALL_VIT),
}


def describe(row: Row, reference: bool = True) -> dict:
    """The row as the workers get it, ready for JSON. reference: make logits to compare with, too."""
    config = load_config(row.config, row.overrides)
    model = config.model
    return {
        "title": row.title, "mode": row.mode, "size": list(row.size), "classes": row.classes, "batch": row.batch,
        "max_classes": min(config.data.max_classes or row.classes, row.classes), "reference": reference, "seed": SEED,
        "model": {"backbone": model.backbone, "head": model.head, "mean": model.mean, "std": model.std},
        "loss": config.loss, "optimizer": config.optimizer.model_dump(),
    }  # fmt: skip


def draw_batch(row: dict) -> dict[str, np.ndarray]:
    """Noise images; labels of a few rectangles, a share of the pixels ignored; columns as in training.

    image (B, 3, H, W) uint8, label (B, H, W) int32, valid (B, H, W) uint8, present (B, M) int32.
    """
    random = np.random.default_rng(row["seed"])
    images, height, width = row["batch"], *row["size"]
    cells = random.integers(0, row["classes"], (images, *LABEL_CELLS))
    lines, columns = (np.arange(side) * count // side for side, count in zip((height, width), LABEL_CELLS, strict=True))
    label = cells[:, lines][:, :, columns].astype(np.int32)
    label[random.random(label.shape) < IGNORED] = IGNORE
    present = np.full((images, row["max_classes"]), -1, np.int32)
    for b in range(images):
        ids = np.unique(label[b][label[b] != IGNORE])
        present[b, : len(ids)] = ids
    image = random.integers(0, 256, (images, 3, height, width), np.uint8)
    return {"image": image, "label": label, "valid": np.ones(label.shape, np.uint8), "present": present}
