"""Real images: a tiny ECENet learns one batch of CamVid by heart."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.config import DataConfig, ModelConfig, OptimizerConfig
from src.data import create_train_batches, load_classes
from src.engine.inference import resize_maps
from src.engine.optimizer import create_optimizer, learning_rates
from src.engine.train_step import TrainStep, draw_noise, run_step
from src.losses import batch_counts, create_loss
from src.models import create_model
from tests.running import to_arrays
from tests.tiny import COLUMNS

CROP, STEPS, RATE = (64, 96), 120, 8e-3
MODEL = ModelConfig(
    backbone={"name": "swin", "embed_width": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window": 4,
              "drop_path": 0.0},
    head={"name": "ecenet", "channels": 64, "norm": "batch", "dropout": 0.0},
)  # fmt: skip


@pytest.mark.slow
def test_one_batch_is_learnt_by_heart(data_root):
    data = DataConfig(
        dataset="camvid", root=str(data_root / "camvid_480x360"), crop_size=CROP, scale_range=(1.0, 1.0), workers=1
    )
    num_classes = len(load_classes(data))
    batch = next(
        create_train_batches(
            data, max_classes=num_classes, seed=0, rank=0, world_size=1, batch_size=4, first_sample=0, num_samples=4
        )
    )
    valid = batch["label"] != 255
    shares = np.bincount(batch["label"][valid], minlength=num_classes) / valid.sum()
    assert valid.mean() > 0.9 and shares.max() < 0.6 and (shares > 0.01).sum() >= 6  # worth learning

    ms.set_seed(0)
    network = create_model(MODEL, num_classes, CROP)
    optimizer = create_optimizer(network, OptimizerConfig(name="adamw", lr=RATE))
    step = TrainStep(network, create_loss({"name": "class_mask"}, num_classes), optimizer, COLUMNS)
    rates = learning_rates(RATE, STEPS, warmup_steps=10, warmup_ratio=0.1)
    for i in range(STEPS):
        noise = draw_noise(network.noise_rates, 0, i, 4)
        run_step(step, optimizer.inputs(i, rates[i]), noise, [batch], batch_counts(batch))

    network.set_train(False)  # running statistics, as every user of the network will have them
    logits = to_arrays(network(Tensor(batch["image"])))["logits"]
    label = np.stack([resize_maps(maps, CROP).argmax(axis=0) for maps in logits])
    accuracy = (label == batch["label"])[valid].mean()
    assert accuracy > 0.97, accuracy
