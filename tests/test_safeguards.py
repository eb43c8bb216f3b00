"""Refusals that keep a long run from ending in a silently wrong result."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import train
from predict import predict_files
from src.config import load_config
from src.engine.checkpoint_files import WEIGHTS
from src.engine.weights import CLASSES, require_classes
from src.models.layers import create_norm, synchronise_norms
from src.predictor import Predictor
from tests.tiny import write_config


def test_weights_of_other_classes_are_refused(tmp_path):
    described = {CLASSES: json.dumps({"names": ["road", "sky"], "palette": [[0, 0, 0], [1, 1, 1]]})}
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / WEIGHTS, described)
    require_classes(tmp_path / WEIGHTS, ("road", "sky"))
    for names in (("sky", "road"), ("road", "sky", "car")):
        with pytest.raises(ValueError, match="trained for the 2 classes road, sky; the data set of the config has"):
            require_classes(tmp_path / WEIGHTS, names)


def test_weights_that_name_no_classes_are_accepted(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / WEIGHTS)
    require_classes(tmp_path / WEIGHTS, ("road",))


def test_plain_batch_norm_is_refused_on_several_devices():
    synchronise_norms(create_norm("batch", 4), 1)
    with pytest.raises(ValueError, match="norm=sync_batch"):
        synchronise_norms(create_norm("batch", 4), 2)


def test_a_bad_image_is_named_and_the_others_are_labelled(tmp_path):
    Image.new("L", (9, 7)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    predictor = Predictor(lambda image: np.zeros(image.shape[:2], np.uint8), ("road",), ((1, 2, 3),), {})
    files = [(tmp_path / f"{name}.png", tmp_path / "out" / name) for name in ("bad", "good")]
    with pytest.raises(ValueError, match="1 of 2 images were left out:\n.*bad.png"):
        predict_files(predictor, files, tmp_path)
    labels = Image.open(tmp_path / "out" / "good_labels.png")
    assert (labels.mode, labels.size) == ("P", (9, 7))


@pytest.mark.parametrize("place", ["name", "output_dir"])
def test_a_file_in_the_place_of_the_folder(place, tmp_path):
    config = load_config(write_config(tmp_path), [f"output_dir={tmp_path / 'runs'}"])
    taken = tmp_path / "runs" / ("tiny" if place == "name" else "")
    taken.parent.mkdir(exist_ok=True)
    taken.write_text("a file")
    with pytest.raises(PermissionError, match="cannot make the run's folder .*tiny: .*; set output_dir"):
        train.train(config)
