"""A network told by text from training without some classes to scores, predictions and exports with them."""

import json
import os
import subprocess

import cv2
import numpy as np
import pytest
from mindspore import Tensor

from src.config import load_config
from src.data import create_eval_samples, load_classes
from src.data.toy_scenes import TOY_CLASSES, draw_scene
from src.engine.graphs import MindIR, read_info
from src.engine.weights import CLASSES, read_metadata, weights_file
from src.fused import project_shares, softmax
from src.fused_net import draw_spectrum
from src.metrics import confusion_matrix, iou
from src.predictor import from_checkpoint
from src.spectral.segments import Segments
from src.text.tables import read_table, rows_of, unit_rows
from src.zero_shot import split_scores
from tests.commands import refuse, succeed
from tests.conftest import ROOT
from tests.words import write_words
from tools.evaluate_zero_shot import Tally, find_checkpoint

UNSEEN = ("car", "vegetation")
CONFIG = """\
name: tiny
output_dir: {root}/runs
data:
  dataset: toy_scenes
  unseen: [car, vegetation]
  crop_size: [32, 48]
  workers: 1
  options: {{train_count: 4, val_count: 3, size: [48, 64]}}
model:
  backbone: {{name: vit, width: 16, depth: 2, num_heads: 2, taps: [2], class_token: true, readout: project}}
  head: {{name: pixel_text, encoder: {{name: reassemble}}}}
  text: {{table: {root}/words.npz}}
loss: {{name: alignment, weights: {{shape: 0.3}}}}
optimizer: {{name: adamw, lr: 1e-3}}
train: {{steps: 2, batch_size: 2, log_every: 1, evaluate_every: 2, checkpoint_every: 2}}
eval: {{mode: whole, size: [48, 64]}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, config file) of a network that was trained for two steps on all but two classes."""
    root = tmp_path_factory.mktemp("zero_shot")
    write_words(root / "words.npz", (*TOY_CLASSES, "zebra crossing"))
    config = root / "tiny.yaml"
    config.write_text(CONFIG.format(root=root), encoding="utf-8")
    succeed("train.py", "--config", config)
    for i in range(2):
        cv2.imwrite(str(root / f"photo{i}.png"), draw_scene(5, i, (48, 64))[0][..., ::-1])
    return root, config


def test_training_saw_neither_name_nor_pixel_of_the_unseen(run):
    root, config = run
    data = load_config(config).data
    names = load_classes(data).names
    assert names == tuple(name for name in TOY_CLASSES if name not in UNSEEN)
    whole = data.model_copy(update={"unseen": ()})
    hidden = [TOY_CLASSES.index(name) for name in UNSEEN]
    for (_, few), (_, all_of) in zip(create_eval_samples(data), create_eval_samples(whole), strict=False):
        kept = [name for k, name in enumerate(TOY_CLASSES) if k not in hidden]
        wanted = np.full(256, 255)
        for k, name in enumerate(TOY_CLASSES):
            wanted[k] = kept.index(name) if name in kept else 255
        np.testing.assert_array_equal(few["label"], wanted[all_of["label"]])
    assert any(np.isin(sample["label"], hidden).any() for _, sample in list(create_eval_samples(whole))[:3])
    metadata = read_metadata(weights_file(root / "runs" / "tiny"))
    assert tuple(json.loads(metadata[CLASSES])["names"]) == names
    records = [json.loads(line) for line in (root / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    terms = [record["terms"] for record in records if record["kind"] == "train"]
    assert all(np.isfinite(list(each.values())).all() and each["align"] > 0 and each["bce"] > 0 for each in terms)


@pytest.fixture(scope="module")
def report(run):
    root, config = run
    cache = root / "segments"
    succeed("tools/compute_segments.py", "--config", config, "--cache", cache, "--patch", 8, "--workers", 1)
    text = succeed(
        "tools/evaluate_zero_shot.py", "--config", config, "--checkpoint", root / "runs" / "tiny", "--cache", cache,
        "--fusion", "none,project,select,regions,oracle", "--calibration", "3", "--output",
        root / "scores.md",
    )  # fmt: skip
    assert (root / "scores.md").read_text() in text
    return json.loads((root / "scores.json").read_text()), (root / "scores.md").read_text(), root


def test_every_fusion_is_reported_and_the_oracle_flagged(report):
    found, text, folder = report
    shuffled = "none, unseen names changed about"
    kinds = ["none", "project", "select", "regions", "oracle", shuffled]
    assert [(row["fusion"], row["calibration"]) for row in found["rows"]] == [
        ("chance", 0.0), *((kind, 0.0) for kind in kinds), *((kind, 3.0) for kind in kinds if kind != "oracle")
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["uses_ground_truth"] == (row["fusion"] == "oracle") and len(row["iou"]) == len(TOY_CLASSES)
        assert {"seen", "unseen", "hiou", "fb_iou"} <= row.keys()
    flagged = [line for line in text.splitlines() if "**yes**" in line]
    assert len(flagged) == 1 and flagged[0].startswith("| oracle")
    assert text.count("| oracle (ground truth) |") == 2 and "| oracle |" not in text
    assert "car (unseen)" in text and found["samples"] == 3
    for row in found["rows"][1:6]:
        scores = json.loads((folder / f"scores_{row['fusion']}.json").read_text())
        assert [each["iou"] for each in scores["classes"]] == row["iou"]
        assert (scores["fusion"], scores["unseen"]) == (row["fusion"], list(UNSEEN))
    assert (found["step"], found["chosen"]) == (2, "last and best") and "(step 2, last and best)" in text
    plain, lowered = found["rows"][1], found["rows"][7]
    assert lowered["unseen"] > plain["unseen"] or plain["unseen"] > 0  # the seen classes give way


def test_of_a_run_the_last_checkpoint_is_taken(tmp_path):
    for step in (10, 20):
        folder = tmp_path / "checkpoints" / f"step_{step:08}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step}))
    for link, step in (("best", 10), ("latest", 20)):
        (tmp_path / "checkpoints" / link).symlink_to(f"step_{step:08}")
    last, best = tmp_path / "checkpoints" / "latest", tmp_path / "checkpoints" / "best"
    assert find_checkpoint(tmp_path) == (last, {"checkpoint": str(tmp_path), "step": 20, "chosen": "last"})
    assert find_checkpoint(best) == (best, {"checkpoint": str(best), "step": 10, "chosen": "best"})
    file = best / "weights.safetensors"
    assert find_checkpoint(file) == (file, {"checkpoint": str(file), "step": 10, "chosen": "best"})


def test_names_changed_about_by_hand():
    """Classes 1 and 2 are unseen: where the network says 1, it would say 2 if their names were exchanged."""
    tally = Tally(("none",), (0.0,), 3, [1, 2])
    shares = np.array([[0.6, 0.1, 0.2], [0.1, 0.8, 0.1], [0.3, 0.1, 0.7]])[:, None]  # predicts 0, 1, 2
    tally.add(shares, None, {"label": np.array([[0, 1, 1]])})
    chance, plain, moved = tally.rows()
    assert plain["iou"] == [1.0, 0.5, 0.0] and moved["iou"] == [1.0, 0.5, 0.0]
    tally.add(shares, None, {"label": np.array([[255, 1, 255]])})
    chance, plain, moved = tally.rows()
    assert plain["iou"] == [1.0, 2 / 3, 0.0] and moved["iou"] == [1.0, 1 / 3, 0.0]
    assert (plain["seen"], plain["unseen"], moved["unseen"]) == (1.0, 1 / 3, 1 / 6) and chance["fusion"] == "chance"


def test_plain_scores_are_those_of_the_predictor(run, report):
    root, config = run
    loaded = load_config(config)
    whole = loaded.model_copy(update={"data": loaded.data.model_copy(update={"unseen": ()})})
    classes = load_classes(whole.data)
    predict = from_checkpoint(whole, classes, root / "runs" / "tiny", named=True)
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    for i in range(3):
        sample = create_eval_samples(whole.data)[i][1]
        matrix += confusion_matrix(predict(sample["image"]), sample["label"], len(classes))
    wanted = split_scores(iou(matrix), [classes.names.index(name) for name in UNSEEN])
    row = report[0]["rows"][1]
    assert {key: row[key] for key in wanted} == pytest.approx(wanted)


def test_evaluation_refuses_what_it_cannot_do(run):
    root, config = run
    common = ["--config", config, "--checkpoint", root / "runs" / "tiny", "--output", root / "x.md"]
    tool = "tools/evaluate_zero_shot.py"
    assert "fusions need --cache" in refuse(tool, *common, "--fusion", "select")
    assert "fusion.kind 'best' is not known" in refuse(tool, *common, "--fusion", "best")
    assert "data.unseen is empty" in refuse(tool, *common, "data.unseen=[]")
    for text in ("low", "nan", "0,inf"):
        assert "give finite numbers between commas" in refuse(tool, *common, "--calibration", text)
    assert "-1 is no whole number from 1 on" in refuse(tool, *common, "--images=-1")
    assert "data.unseen 'cra': no such class" in refuse(tool, *common, "data.unseen=[cra]")
    other = refuse(tool, *common, "data.unseen=[car]")
    seen = ", ".join(name for name in TOY_CLASSES if name not in UNSEEN)
    assert f"was trained for the 7 classes {seen}; the data set of the config has the 8 classes" in other
    missing = refuse(tool, *common, "--fusion", "select", "--cache", root / "nothing")
    assert "no eigensegments in" in missing and "tools/compute_segments.py" in missing
    assert "was trained for the 7 classes" in refuse(
        "eval.py", "--config", config, "--checkpoint", root / "runs" / "tiny", "data.unseen=[]"
    )
    assert "data.unseen 'cra': no such class" in refuse("train.py", "--config", config, "data.unseen=[cra]")


def test_predictions_by_name(run):
    root, config = run
    common = ["--config", config, "--checkpoint", root / "runs" / "tiny", "--input", root / "photo0.png"]
    succeed("predict.py", *common, "--output", root / "named", "--classes", "road, zebra crossing,car")
    assert json.loads((root / "named" / "classes.json").read_text())["names"] == ["road", "zebra crossing", "car"]
    wrong = refuse("predict.py", *common, "--output", root / "no", "--classes", "road,zebra crosing")
    assert "no embedding for 'zebra crosing' (nearest: zebra crossing)" in wrong
    other = ["--model", "x.mindir", "--input", root / "photo0.png", "--output", root / "no"]
    assert "--classes needs --config" in refuse("predict.py", *other, "--classes", "road")


def test_exports_by_name_predict_the_same(run):
    root, config = run
    file = root / "named.mindir"
    common = ["--config", config, "--checkpoint", root / "runs" / "tiny"]
    succeed("export.py", *common, "--output", file, "--classes", "road, zebra crossing,car")
    assert json.loads(read_info(file)["classes"]) == ["road", "zebra crossing", "car"]
    for source, folder in ((["--model", file], "a"), ([*common, "--classes", "road,zebra crossing,car"], "b")):
        succeed("predict.py", *source, "--input", root / "photo1.png", "--output", root / folder, *overrides(source))
    first, second = (cv2.imread(str(root / folder / "photo1_labels.png"), 0) for folder in "ab")
    np.testing.assert_array_equal(first, second)


def overrides(source: list) -> list:
    return [] if "--model" in source else ["eval.mode=resize"]


@pytest.mark.slow
def test_the_projected_export_is_that_of_evaluation(run):
    root, config = run
    file, plain = root / "projected.mindir", root / "plain.mindir"
    common = ["--config", config, "--checkpoint", root / "runs" / "tiny", "--kind", "logits"]
    succeed("export.py", *common, "--output", file, "--fusion", "project")
    succeed("export.py", *common, "--output", plain)
    model, vectors, degree = MindIR(file), *draw_spectrum()
    assert (model.info["fusion"], model.info["uses_ground_truth"]) == ("project", "False")
    assert len(model.more_inputs) == 2
    image = draw_scene(5, 1, (48, 64))[0]
    stored = Segments(np.zeros(4), vectors, degree, {"patch": 8, "image_size": (48, 64), "skip_trivial": False})
    shares = softmax(MindIR(plain).make((48, 64))(image))
    found = model.graph(Tensor(image[None, :, :, ::-1].copy()), Tensor(vectors), Tensor(degree)).asnumpy()[0]
    np.testing.assert_allclose(found, project_shares(shares, stored), atol=1e-5)
    told = refuse("predict.py", "--model", file, "--input", root / "photo0.png", "--output", root / "no")
    assert "takes eigenvectors" in told


@pytest.mark.parametrize(("name", "nearest"), [
    ("vit_tiny_camvid", {"pavement": ("road", 0.865), "fence": ("pole", 0.817), "bicyclist": ("pedestrian", 0.858)}),
    ("vit_tiny_camvid_far", {"pole": ("fence", 0.817), "tree": ("building", 0.835),
                             "pedestrian": ("bicyclist", 0.858)}),
])  # fmt: skip
def test_the_unseen_classes_of_camvid_are_as_near_as_their_configs_say(name, nearest, data_root):
    file = ROOT / "config" / "sazs" / f"{name}.yaml"
    config = load_config(file)
    assert set(config.data.unseen) == set(nearest)
    table = data_root / "clip_text_embeddings" / config.model.text.table
    seen, unseen = load_classes(config.data).names, tuple(nearest)
    cosines = unit_rows(rows_of(read_table(table), unseen)) @ unit_rows(rows_of(read_table(table), seen)).T
    for row, (neighbour, cosine) in zip(cosines, nearest.values(), strict=True):
        assert seen[row.argmax()] == neighbour and row.max() == pytest.approx(cosine, abs=5e-4)
        assert f"{cosine:.3f} ({neighbour})" in file.read_text()


def test_the_script_hands_its_settings_on(tmp_path):
    """Evaluated with other settings than trained with, scores would be of another task."""
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    fake.chmod(0o755)
    settings = ["data.unseen=[car]", "data.root=here", "model.head.temperature=0.1"]
    script = ["bash", str(ROOT / "scripts" / "zero_shot_camvid.sh"), "config/sazs/vit_tiny_camvid.yaml", str(tmp_path)]
    subprocess.run([*script, *settings], check=True, env={**os.environ, "PYTHON": str(fake)})
    calls = {line.split()[0]: line for line in log.read_text().splitlines()}
    for command in ("train.py", "tools/evaluate_zero_shot.py"):
        assert all(setting in calls[command] for setting in settings)
    told = calls["tools/compute_segments.py"]  # another network, and all classes
    assert "data.root=here" in told and "data.unseen" not in told and "temperature" not in told
