"""What tools/inspect_classes.py says about masks and class embeddings, and the numbers behind it."""

import json

import numpy as np
import pytest

from src.config import load_config
from src.data import load_classes
from src.engine.class_report import StageScores, separation, steadiness
from src.engine.weights import write_weights
from src.models import create_model
from tests.commands import run_command, succeed
from tests.tiny import weights_of, write_config

TOOL = "tools/inspect_classes.py"


def test_separation_of_vectors_worked_out_by_hand():
    vectors = np.array([[2.0, 0.0], [5.0, 5.0], [0.0, 3.0], [-1.0, 0.0], [9.0, 1.0]])
    found = separation(vectors, [0, 0, 1, 1, 2])  # class 2 has one vector, so it is left out
    diagonal = 0.5**0.5
    assert found["same"] == pytest.approx((diagonal + 0.0) / 2)
    assert found["other"] == pytest.approx((0.0 - 1.0 + diagonal - diagonal) / 4)
    assert found["nearest"] == pytest.approx(3 / 4)  # (0, 3) is at right angles to its class's (-1, 0), not to class 0
    assert separation(vectors, [0, 0, 1, 2, 3]) == {"same": None, "other": None, "nearest": None}


def test_separation_equals_the_loop_over_pairs():
    rng = np.random.default_rng(0)
    vectors, owners = rng.normal(size=(20, 5)), rng.integers(0, 4, 20)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = {True: [], False: []}
    for i in range(20):
        for j in range(i):
            pairs[bool(owners[i] == owners[j])].append(units[i] @ units[j])
    found = separation(vectors, owners)
    assert found["same"] == pytest.approx(np.mean(pairs[True]))
    assert found["other"] == pytest.approx(np.mean(pairs[False]))


def test_steadiness_is_the_mean_cosine():
    assert steadiness(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 4.0], [0.0, 1.0]])) == pytest.approx(0.5)


def test_scores_of_stages_worked_out_by_hand():
    label = np.array([[0, 0, 1, 255]])
    first = np.array([[[3.0, 1.0, 1.0, 0.0]], [[2.0, 2.0, 2.0, 0.0]], [[4.0, 0.0, 0.0, 9.0]]])  # decides 2 1 1
    second = np.array([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 9.0]]])  # decides 0 0 1
    scores = StageScores(2, 3)
    scores.add(np.stack([first, second]), label)
    assert scores.miou() == pytest.approx([(0 + 1 / 2 + 0) / 3, 1.0])
    assert scores.miou_among_present() == pytest.approx([(1 / 2 + 1 / 2) / 2, 1.0])  # 0 1 1
    assert scores.share_changed == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config and weights that fit it."""
    root = tmp_path_factory.mktemp("classes")
    file = write_config(root)
    config = load_config(file)
    network = create_model(config.model, len(load_classes(config.data)), config.data.crop_size)
    write_weights(root / "some.safetensors", weights_of(network), network.weight_metadata())
    return file, root / "some.safetensors"


def test_the_logits_of_the_report_are_those_that_are_evaluated(trained, tmp_path):
    config, file = trained
    succeed(TOOL, "--config", config, "--checkpoint", file, "--output", tmp_path / "facts.json")
    facts = json.loads((tmp_path / "facts.json").read_text())
    succeed("eval.py", "--config", config, "--checkpoint", file, "--output", tmp_path / "eval.json")
    assert facts["images"] == 2 and [row["stage"] for row in facts["stages"]] == [
        "mask 1", "mask 2", "classifier", "logits",
    ]  # fmt: skip
    summary = json.loads((tmp_path / "eval.json").read_text())
    assert facts["stages"][-1]["miou"] == pytest.approx(summary["miou"], abs=1e-9)
    assert len(facts["embeddings"]) == 2 and facts["embeddings"][0]["kept"] is None
    assert -1.0 <= facts["embeddings"][1]["same"] <= 1.0


def test_misuse_is_told(trained):
    config, file = trained
    other = run_command(TOOL, "--config", config, "--checkpoint", file, "model.head={name: fcn}")
    assert other.code == 2 and "this head gives no masks, finest_mask, embeddings" in other.err
    assert run_command(TOOL, "--config", config).code == 2
    none = run_command(TOOL, "--config", config, "--checkpoint", file, "--images", "0")
    assert none.code == 2 and "--images: 0" in none.err
