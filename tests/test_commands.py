"""The command lines on a tiny trained run: every way of evaluating it gives the same numbers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from src.config import load_config
from src.data.toy_scenes import TOY_CLASSES, TOY_PALETTE, draw_scene
from src.engine import weights
from src.engine.checkpoint_files import file_hash
from src.engine.graphs import MindIR
from src.engine.inference import resize_maps
from src.log import read_metrics
from src.models import create_model
from tests.commands import refuse, succeed

CONFIG = """\
name: tiny
output_dir: {root}/runs
data:
  dataset: toy_scenes
  crop_size: [64, 96]
  scale_range: [0.2, 0.4]
  workers: 1
  options: {{train_count: 8, val_count: 2, size: [360, 480]}}
model:
  backbone: {{name: vit, width: 32, depth: 2, num_heads: 2, taps: [2], drop_path: 0.0}}
  head: {{name: ecenet, channels: 16, norm: batch, dropout: 0.0}}
loss: {{name: class_mask}}
optimizer: {{name: adamw, lr: 3e-3}}
train: {{steps: 60, batch_size: 4, log_every: 20, evaluate_every: 60, checkpoint_every: 60}}
eval: {{mode: resize, size: [64, 96]}}
"""
SLIDE = ("eval.mode=slide", "eval.stride=[64,80]")


@dataclass(frozen=True)
class Run:
    """Files of one trained run."""

    config: Path
    folder: Path  # of the run
    labels: Path  # exported models
    logits: Path
    root: Path
    told: str  # by the training

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "latest"

    def evaluate(self, *arguments, name: str) -> dict:
        """The summary that eval.py writes."""
        output = self.root / "summaries" / f"{name}.json"
        text = succeed("eval.py", "--config", self.config, "--output", output, *arguments)
        assert f"summary written to {output}" in text and "pixel accuracy" in text
        return json.loads(output.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("commands")
    config = root / "tiny.yaml"
    config.write_text(CONFIG.format(root=root))
    models = root / "models"
    told = succeed("train.py", "--config", config)
    made = Run(config, root / "runs" / "tiny", models / "labels.mindir", models / "logits.mindir", root, told)
    for kind, file in (("labels", made.labels), ("logits", made.logits)):
        source = made.checkpoint if kind == "labels" else made.folder  # a run's folder means its best
        text = succeed("export.py", "--config", config, "--checkpoint", source, "--output", file, "--kind", kind)
        assert f"{file}: kind {kind}, network size (64, 96); 0.0000% of pixels differ from the network" in text
    return made


def test_the_training_tells_of_itself(run):
    text = " ".join(run.told.replace("│", " ").split())
    files = sum(file.stat().st_size for file in run.checkpoint.iterdir())
    for words in (
        "steps 60: 30.0 epochs of 8 images", "images a step 4 learning rate", "adamw, 0.003 at its highest",
        "checkpoints up to 1 of", "fresh weights",
    ):  # fmt: skip
        assert words in text
    needed = re.search(r"disk ([\d.]+) ([MK])iB more needed, [\d.]+ \w+ free", text)
    unit = {"K": 2**10, "M": 2**20}[needed[2]]
    assert files <= (float(needed[1]) + 0.5) * unit and "at its highest" in text[: text.index("the training step")]
    forecast = re.search(
        r"about (\d+):(\d\d) to go: 60 steps of ([\d.e-]+) s and 1 evaluation of ([\d.e-]+) s, "
        r"if no step waits for data; at most so far: memory (\d+ MiB|[\d.]+ GiB)", text
    )  # fmt: skip
    minutes, seconds, step, evaluation = map(float, forecast.groups()[:4])
    assert 60 * minutes + seconds == pytest.approx(60 * step + evaluation, abs=0.6)
    assert re.search(
        r"train 60/60 100% [\d.]+ (it/s|s/it) took \d+:\d\d loss [\d.]+ "
        r"\(ce [\d.]+ mask [\d.]+ dice [\d.]+ diversity [\d.]+\) "
        r"lr 5.0e-05 [\d.]+ images/s waiting for data [\d.]+% memory (\d+ MiB|[\d.]+ GiB)", text
    )  # fmt: skip


def scores(summary: dict) -> dict:
    """The part of a summary that does not say where it came from."""
    return {key: value for key, value in summary.items() if key not in ("source", "eval")}


@pytest.fixture(scope="module")
def resized(run) -> dict:
    return run.evaluate("--checkpoint", run.checkpoint, name="checkpoint")


def test_the_run_has_learnt_something(resized):
    seen = [row["iou"] for row in resized["classes"] if row["iou"]]
    assert resized["images"] == 2 and len(seen) >= 3  # so that equal numbers mean something
    assert sum(row["pixels"] for row in resized["classes"]) > 0.9 * 2 * 360 * 480


def test_training_logged_the_same_numbers(run, resized):
    record = [record for record in read_metrics(run.folder / "metrics.jsonl") if record["kind"] == "eval"][-1]
    assert record["step"] == 60
    assert record["iou"] == [row["iou"] for row in resized["classes"]]
    for key in ("miou", "pixel_accuracy", "mean_accuracy", "boundary_f"):
        assert record[key] == resized[key]
    state = json.loads((run.checkpoint / "state.json").read_text())
    assert state["miou"] == resized["miou"]


@pytest.mark.parametrize("kind", ["labels", "logits"])
def test_exported_models_give_the_same_numbers(run, resized, kind):
    model = {"labels": run.labels, "logits": run.logits}[kind]
    assert scores(run.evaluate("--model", model, name=kind)) == scores(resized)


def test_the_served_graph_is_the_network_on_rgb(run):
    config = load_config(run.config)
    network = create_model(config.model, len(TOY_CLASSES), (64, 96))
    weights.load_weights(network, run.checkpoint)
    network.set_train(False)
    image, _ = draw_scene(5, 3, (64, 96))
    maps = network(Tensor(image.transpose(2, 0, 1)[None].copy()))["logits"].asnumpy()[0]
    served = MindIR(run.logits).make((64, 96))(image)
    np.testing.assert_allclose(served, resize_maps(maps, (64, 96)), atol=1e-4)


def test_a_ckpt_file_gives_the_same_numbers(run, resized):
    file = run.root / "tiny.ckpt"
    succeed("tools/convert_weights.py", "--source", "checkpoint", "--input", run.folder, "--output", file)
    assert scores(run.evaluate("--checkpoint", file, name="ckpt")) == scores(resized)


def test_a_published_run_gives_the_same_numbers(run, resized):
    folder, output = run.root / "shared", run.root / "summaries" / "published.json"
    succeed("tools/publish.py", run.folder, "--output", folder)
    given = ("--config", folder / "config.yaml", "--checkpoint", folder / "best.safetensors")
    succeed("eval.py", *given, "--output", output)
    assert scores(json.loads(output.read_text())) == scores(resized)
    assert f"| miou | {resized['miou']:.4f} |" in (folder / "README.md").read_text()


def test_windows_of_an_exported_model_give_the_same_numbers(run, resized):
    ours = run.evaluate("--checkpoint", run.checkpoint, *SLIDE, name="slide")
    model = run.evaluate("--model", run.logits, *SLIDE, name="slide_model")
    assert scores(model) == scores(ours) != scores(resized)
    assert model["eval"]["mode"] == "slide" and model["eval"]["stride"] == [64, 80]
    assert model["source"] == str(run.logits)


@pytest.mark.slow
def test_other_sizes_and_views_from_the_checkpoint(run, resized):
    whole = run.evaluate("--checkpoint", run.folder, "eval.mode=whole", "eval.size=[368,480]", name="whole")
    views = run.evaluate("--checkpoint", run.folder, "eval.flip=true", name="flip")
    scaled = run.evaluate("--checkpoint", run.folder, *SLIDE, "eval.scales=[0.25,0.5]", "eval.flip=true", name="scales")
    different = [scores(summary) for summary in (resized, whole, views, scaled)]
    for i, summary in enumerate(different):
        assert summary["images"] == 2 and summary["miou"] > 0.0
        assert summary not in different[:i]


def test_an_exported_model_refuses_what_it_cannot_serve(run):
    model = ("eval.py", "--config", run.config, "--model")
    text = refuse(*model, run.labels, *SLIDE)
    assert "exported as kind 'labels', which serves only eval.mode=resize" in text and "--kind logits" in text
    assert "exported as kind 'labels'" in refuse(*model, run.labels, "eval.flip=true")
    text = refuse(*model, run.logits, "eval.mode=whole", "eval.size=[368,480]")
    assert "exported for size (64, 96), but these eval settings need (368, 480)" in text


def test_inspect_says_what_the_model_is(run):
    text = succeed("export.py", "--inspect", run.labels)
    weights = (run.checkpoint / "weights.safetensors").resolve()
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
    assert lines["kind"] == "labels" and json.loads(lines["size"]) == [64, 96]
    assert tuple(json.loads(lines["classes"])) == TOY_CLASSES
    assert tuple(map(tuple, json.loads(lines["palette"]))) == TOY_PALETTE
    assert lines["weights_sha256"] == file_hash(weights) and len(lines["weights_sha256"]) == 64
    saved = run.root / "inspected.yaml"
    saved.write_text(text.split("config:\n")[1].split("\ninput:")[0].split("\nmindspore:")[0].split("\nweights")[0])
    assert load_config(saved) == load_config(run.config)
    assert "kind: logits" in succeed("export.py", "--inspect", run.logits)


@pytest.fixture(scope="module")
def pictures(run) -> Path:
    """A folder with a colour photo, a grey one and a nested one, and a file that is no image."""
    folder = run.root / "pictures"
    (folder / "nested").mkdir(parents=True)
    scene, _ = draw_scene(5, 0, (120, 90))
    cv2.imwrite(str(folder / "photo.jpg"), scene[..., ::-1])
    cv2.imwrite(str(folder / "grey.png"), draw_scene(5, 1, (70, 101))[0][..., 1])
    cv2.imwrite(str(folder / "nested" / "photo.PNG"), draw_scene(5, 2, (64, 96))[0][..., ::-1])
    (folder / "notes.txt").write_text("no image")
    return folder


SIZES = {"photo": (120, 90), "grey": (70, 101), "nested/photo": (64, 96)}


def test_predictions_of_model_and_checkpoint_are_equal(run, pictures):
    model, other = run.root / "from_model", run.root / "from_checkpoint"
    text = succeed("predict.py", "--model", run.labels, "--input", pictures, "--output", model)
    assert "3 label maps and overlays" in text
    source = ("--config", run.config, "--checkpoint", run.checkpoint)
    succeed("predict.py", *source, "--input", pictures, "--output", other)
    found = set()
    for name, size in SIZES.items():
        files = [folder / f"{name}_labels.png" for folder in (model, other)]
        assert files[0].read_bytes() == files[1].read_bytes()
        picture = Image.open(files[0])
        assert picture.mode == "P" and picture.size == size[::-1]
        assert picture.getpalette()[: 3 * len(TOY_PALETTE)] == [value for colour in TOY_PALETTE for value in colour]
        found |= set(np.unique(np.asarray(picture)).tolist())
        assert cv2.imread(str(model / f"{name}_overlay.jpg")).shape == (*size, 3)
    assert len(found) >= 2 and max(found) < len(TOY_CLASSES)
    assert sorted(path.name for path in model.rglob("*") if path.is_file()) == sorted(
        ["classes.json", *[f"{Path(name).name}_{end}" for name in SIZES for end in ("labels.png", "overlay.jpg")]]
    )
    names = json.loads((model / "classes.json").read_text())
    assert tuple(names["names"]) == TOY_CLASSES and tuple(map(tuple, names["palette"])) == TOY_PALETTE


def test_an_overlay_is_half_image_half_colour(run, pictures):
    output = run.root / "one"
    succeed("predict.py", "--model", run.logits, "--input", pictures / "nested" / "photo.PNG", "--output", output)
    label = np.asarray(Image.open(output / "photo_labels.png"))
    image = cv2.imread(str(pictures / "nested" / "photo.PNG")).astype(float)
    expected = 0.5 * image + 0.5 * np.array(TOY_PALETTE)[label][..., ::-1]
    overlay = cv2.imread(str(output / "photo_overlay.jpg")).astype(float)
    assert np.abs(overlay - expected).mean() < 6.0  # JPEG


def test_predict_names_the_damaged_image(run, pictures):
    folder = run.root / "damaged"
    folder.mkdir()
    (folder / "cut.jpg").write_bytes((pictures / "photo.jpg").read_bytes()[:-200])
    text = refuse("predict.py", "--model", run.labels, "--input", folder, "--output", run.root / "none")
    assert "truncated JPEG" in text and "cut.jpg" in text


def test_another_number_of_classes_is_refused(run, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind / "val").mkdir(parents=True)
    Image.new("RGB", (96, 64)).save(tmp_path / "data" / "images" / "val" / "a.jpg")
    Image.new("L", (96, 64)).save(tmp_path / "data" / "labels" / "val" / "a.png")
    (tmp_path / "data" / "classes.yaml").write_text("names: [road, sky]\n")
    other = tmp_path / "other.yaml"
    text = CONFIG.format(root=tmp_path).replace("dataset: toy_scenes", f"dataset: folder\n  root: {tmp_path / 'data'}")
    other.write_text("".join(line for line in text.splitlines(True) if "options:" not in line))
    text = refuse("eval.py", "--config", other, "--checkpoint", run.checkpoint)
    assert "trained for the 9 classes sky, building" in text and "has the 2 classes road, sky" in text
    text = refuse("eval.py", "--config", other, "--model", run.labels)
    assert "exported for the classes sky, building" in text and "the data set has road, sky" in text
    text = refuse("export.py", "--config", other, "--checkpoint", run.checkpoint, "--output", tmp_path / "x.mindir")
    assert "trained for the 9 classes" in text and not (tmp_path / "x.mindir").exists()
