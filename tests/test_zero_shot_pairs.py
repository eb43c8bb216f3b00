"""One class at a time: from pairs of an image and a class to their scores and gains."""

import json

import cv2
import numpy as np
import pytest

from src.config import DataConfig, load_config
from src.data import create_eval_samples, create_train_batches, load_classes, load_items
from src.data.classes import read_classes
from src.engine.weights import CLASSES, parameters_of, write_weights
from src.models import create_model
from src.predictor import from_checkpoint
from src.zero_shot import binary_counts, binary_scores
from tests.commands import refuse, succeed
from tests.layouts import save_mask, save_photo, write_lines
from tests.running import randomise
from tests.words import write_words

PAIRS = """\
name: pairs
data:
  dataset: pascal_5i
  root: {root}
  crop_size: [32, 32]
  workers: 1
  options: {{fold: 0, samples: pairs, complete: false}}
model:
  backbone: {{name: vit, width: 16, depth: 1, num_heads: 2, taps: [1], drop_path: 0.0}}
  head: {{name: pixel_text, encoder: {{name: reassemble}}, normalise: false, temperature: 1.0}}
  text: {{table: {root}/words.npz, names: {{background: others}}}}
loss: {{name: alignment, protocol: binary}}
optimizer: {{name: sgd, lr: 1e-3}}
train: {{steps: 1, batch_size: 2}}
eval: {{mode: resize, size: [32, 32]}}
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(folder, config file) of PASCAL-5i with two images, and weights of nothing learnt."""
    root = tmp_path_factory.mktemp("pairs")
    classes = read_classes("voc_2012")
    lists = {"trn": {0: ["v__1"], 1: ["v__7"], 2: [], 3: []}, "val": {0: ["v__2", "w__3", "v__3"], 1: [], 2: [], 3: []}}
    for part, folds in lists.items():
        for fold, lines in folds.items():
            write_lines(root / "splits" / "pascal" / part / f"fold{fold}.txt", lines)
    for name, values in {"v": [0, 2, 3, 7], "w": [3, 255]}.items():
        save_photo(root / "JPEGImages" / f"{name}.jpg")
        save_mask(root / "SegmentationClassAug" / f"{name}.png", values, classes.palette)
    write_words(root / "words.npz", classes.names[1:])
    file = root / "pairs.yaml"
    file.write_text(PAIRS.format(root=root), encoding="utf-8")
    model = load_config(file).model
    network = create_model(model, len(classes), (32, 32))
    randomise(network)
    metadata = {"position_grid": "2x2", CLASSES: json.dumps({"names": classes.names, "palette": classes.palette})}
    write_weights(root / "w.safetensors", parameters_of(network), metadata)
    return root, file


def test_one_class_at_a_time(pairs):
    root, file = pairs
    common = ["--config", file, "--checkpoint", root / "w.safetensors", "--output", root / "p.md"]
    succeed("tools/evaluate_zero_shot.py", *common)
    assert "one class at a time needs" in refuse("tools/evaluate_zero_shot.py", *common, "eval.flip=true")
    found = json.loads((root / "p.json").read_text())
    config = load_config(file)
    predictor = from_checkpoint(config, load_classes(config.data), root / "w.safetensors")
    make, counts = predictor.predict.keywords["make"], np.zeros((21, 2, 2))
    for _, sample in create_eval_samples(config.data):
        asked, image = int(sample["category"]), cv2.resize(sample["image"], (32, 32), interpolation=cv2.INTER_LINEAR)
        maps = make((32, 32))(image)
        size = sample["label"].shape[::-1]
        maps = np.stack([cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) for part in maps[[0, asked]]])
        truth = np.where(sample["label"] == 255, 255, sample["label"] == asked)
        counts[asked] += binary_counts(maps.argmax(0), truth)
    assert found["protocol"] == "one class at a time" and found["samples"] == 3
    overlaps = [counts[k, 0, 1] / counts[k, 1, 1] if k in (2, 3) else None for k in range(21)]
    scores = {"fusion": "none", "uses_ground_truth": False, **binary_scores(counts[[2, 3]]), "iou": overlaps}
    assert found["rows"] == [scores] and found["unseen"] == ["bicycle", "bird"]
    assert (found["step"], found["chosen"]) == (None, None) and "FB-IoU |" in (root / "p.md").read_text()
    stored = json.loads((root / "p_none.json").read_text())
    assert stored["unseen"] == found["unseen"] and [row["iou"] for row in stored["classes"]] == overlaps


def test_one_class_at_a_time_needs_pairs(pairs):
    told = refuse("train.py", "--config", pairs[1], "data.options.samples=images", f"output_dir={pairs[0]}/runs")
    assert "loss.protocol=binary needs samples that ask for one class: data.options.samples=pairs" in told


def test_gains_of_folds_are_analysed(pairs):
    root, file = pairs
    common = ["--config", file, "--checkpoint", root / "w.safetensors", "--output", root / "g.md"]
    succeed("tools/compute_segments.py", "--config", file, "--cache", root / "seg", "--patch", 1, "--workers", 1)
    succeed("tools/evaluate_zero_shot.py", *common, "--fusion", "none,oracle", "--cache", root / "seg")
    scores = ["--before", root / "g_none.json", "--after", root / "g_oracle.json", "--output", root / "gains"]
    assert "uses_ground_truth: true" in succeed("tools/analyse_gains.py", "--config", file, *scores)
    lines = (root / "gains" / "gains.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if not line.startswith("#")]
    assert [row[0] for row in rows if row[3]] == ["class", "bicycle", "bird"]
    assert [row[0] for row in rows if row[-1] == "1"] == ["bicycle", "bird"]


def test_the_class_asked_for_is_present_even_where_the_crop_lost_it(pairs):
    data = load_config(pairs[1]).data
    batch = next(create_train_batches(
        data, max_classes=21, seed=0, rank=0, world_size=1, batch_size=2, first_sample=0, num_samples=2,
    ))  # fmt: skip
    asked = [load_items(data, "train")[i].category for i in batch["item"]]
    assert batch["present"][:, 0].tolist() == asked
    options = {**data.options, "fold": 1, "others": "keep"}  # other classes beside it, too
    kept = data.model_copy(update={"options": options})
    batch = next(create_train_batches(
        kept, max_classes=21, seed=0, rank=0, world_size=1, batch_size=4, first_sample=0, num_samples=4,
    ))  # fmt: skip
    assert batch["present"][:, 0].tolist() == [load_items(kept, "train")[i].category for i in batch["item"]]
    assert (batch["present"].max(1) > batch["present"][:, 0]).any()
    with pytest.raises(ValueError, match="data.unseen is not for pascal_5i, whose data.options.fold says"):
        load_items(DataConfig(**{**data.model_dump(), "unseen": ("cat",)}), "val")
