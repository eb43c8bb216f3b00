"""Features from networks, and the command lines that make and show eigensegments."""

import json
from time import process_time

import cv2
import numpy as np
import pytest

from src.config import ModelConfig
from src.data.reading import read_image
from src.engine.weights import write_weights
from src.models.conversion import convert
from src.spectral.cache import read_segments
from src.spectral.options import SpectralOptions
from src.spectral.segments import decompose
from src.spectral_features import FeatureMaker
from tests.commands import refuse, succeed
from tests.tiny import write_config
from tests.vit_reference import layer_norm, timm_forward, timm_weights
from tools.inspect_spectrum import draw as draw_spectrum

MAKE, SHOW = "tools/compute_segments.py", "tools/inspect_spectrum.py"


def vit(**options) -> ModelConfig:
    backbone = {"name": "vit", "width": 16, "depth": 2, "num_heads": 2, "taps": [2], "tap_norm": False, **options}
    return ModelConfig(backbone=backbone, head={"name": "fcn", "channels": 8, "norm": "group"})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of one network with and without its class token."""
    files = {}
    for class_token in (False, True):
        converted = convert("timm_vit", timm_weights(), class_token=class_token)
        files[class_token] = tmp_path_factory.mktemp("weights") / "vit.safetensors"
        write_weights(files[class_token], converted.weights, {"source": "timm_vit", "position_grid": "2x2"})
    return files


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 33, 3), dtype=np.uint8)


def normalised(image: np.ndarray, model: ModelConfig) -> np.ndarray:
    return ((image - np.array(model.mean)) / np.array(model.std)).transpose(2, 0, 1)[None]


@pytest.mark.parametrize("class_token", [False, True])
def test_keys_are_the_middle_third_of_the_last_block(weights, image, class_token):
    model, public = vit(class_token=class_token), timm_weights()
    found = FeatureMaker(model, weights[class_token], SpectralOptions("backbone_k", 16))(image)
    tokens = timm_forward(public, normalised(image[:32, :32], model), class_token)[0]  # after the first block
    keys = layer_norm(tokens, public, "blocks.1.norm1") @ public["blocks.1.attn.qkv.weight"][16:32].T
    wanted = (keys + public["blocks.1.attn.qkv.bias"][16:32])[0]  # without the class token
    assert found.shape == (4, 16)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_maps_and_patches_of_another_size(weights, image):
    model, public = vit(), timm_weights()
    maker = FeatureMaker(model, weights[False], SpectralOptions("backbone_map", 8))
    small = image[:16, :16]
    large = cv2.resize(small, (32, 32), interpolation=cv2.INTER_LINEAR)
    wanted = timm_forward(public, normalised(large, model), False)[1][0]
    np.testing.assert_allclose(maker(small), wanted, atol=1e-4 * np.abs(wanted).max())


def test_weights_that_saw_masks_and_other_backbones_are_refused(weights, tmp_path):
    converted = convert("timm_vit", timm_weights())
    tuned = tmp_path / "tuned.safetensors"
    write_weights(tuned, converted.weights, {"classes": json.dumps({"names": ["a"]}), "position_grid": "2x2"})
    options = SpectralOptions("backbone_k", 16)
    with pytest.raises(ValueError, match="was trained on masks.*--allow-finetuned"):
        FeatureMaker(vit(), tuned, options)
    assert FeatureMaker(vit(), tuned, options, allow_finetuned=True).stride == 16
    resnet = {"name": "resnet", "depths": [1, 1, 1, 1], "bottleneck": False, "norm": "group"}
    with pytest.raises(ValueError, match="needs a Vision Transformer; use backbone_map"):
        FeatureMaker(ModelConfig(backbone=resnet, head={"name": "fcn"}), weights[False], options)


def test_random_readouts_make_no_features(weights, image):
    """A readout that no file holds is drawn anew by every process: a map through it is another one every time."""
    model = vit(class_token=True, readout="project")
    with pytest.raises(ValueError, match="lacks readouts.0.linear.weight, which --features backbone_map goes through"):
        FeatureMaker(model, weights[True], SpectralOptions("backbone_map", 16))
    keys = FeatureMaker(model, weights[True], SpectralOptions("backbone_k", 16))(image)  # not through it
    plain = FeatureMaker(vit(class_token=True), weights[True], SpectralOptions("backbone_k", 16))(image)
    np.testing.assert_array_equal(keys, plain)
    normed = SpectralOptions("backbone_map", 16)  # fresh normalisations are ones and zeros
    maps = [FeatureMaker(vit(tap_norm=True), weights[False], normed)(image) for _ in range(2)]
    np.testing.assert_array_equal(*maps)


def test_a_cache_knows_all_that_decides_the_features(weights, tmp_path):
    options = SpectralOptions("backbone_k", 16)
    models = [vit(), vit(num_heads=4), vit().model_copy(update={"mean": (0.0, 0.0, 0.0)}), vit(tap_norm=True)]
    models += [vit().model_copy(update={"std": (1.0, 1.0, 1.0)})]
    found = {options.digest(FeatureMaker(model, weights[False], options).facts) for model in models}
    assert len(found) == 5 and options.digest(FeatureMaker(vit(), weights[False], options).facts) in found


def test_the_segments_of_a_split_are_made_once(tmp_path):
    config, cache = write_config(tmp_path), tmp_path / "cache"
    common = ("--config", config, "--cache", cache, "--patch", 8, "--num-eigenvectors", 2, "--workers", 1)
    assert "2 made, 0 there already, largest residual" in succeed(MAKE, *common)
    files = sorted(cache.rglob("*.npz"))
    assert len(files) == 2 and all(file.parent.name == "val" for file in files)
    found = read_segments(files[0])
    assert found.meta["features"] == "color" and len(found.values) == 2 and found.meta["max_residual"] <= 1e-6
    assert json.loads((files[0].parents[1] / "settings.json").read_text())["patch"] == 8
    assert "0 made, 1 there already" in succeed(MAKE, *common, "--images", 1)


def test_wrong_use_of_the_tools_is_refused(tmp_path):
    config = write_config(tmp_path)
    assert "required: --cache" in refuse(MAKE, "--config", config)
    needs = refuse(MAKE, "--config", config, "--cache", tmp_path / "c", "--features", "dino_k")
    assert "--features dino_k needs pretrained weights" in needs
    assert "--workers is 0" in refuse(MAKE, "--config", config, "--cache", tmp_path / "c", "--workers", 0)
    idle = refuse(MAKE, "--config", config, "--cache", tmp_path / "c", "--weights", "/nothing")
    assert "--features color takes no network: leave --weights and --allow-finetuned out" in idle
    show = ("--input", tmp_path / "a.png", "--output", tmp_path)
    assert "needs --config" in refuse(SHOW, *show, "--features", "backbone_k")
    assert "a.png" in refuse(SHOW, *show)


@pytest.mark.slow
def test_camvid_at_60_by_45_nodes_takes_less_than_half_a_second(data_root):
    files = sorted((data_root / "camvid_480x360" / "images" / "val").glob("*.jpg"))[:4]
    if not files:
        pytest.skip(f"no CamVid images in {data_root}")
    rng, seconds = np.random.default_rng(0), []
    mix = rng.normal(size=(3, 384))
    for file in files:
        image = read_image(file)
        colours = cv2.resize(image, (60, 45), interpolation=cv2.INTER_AREA).reshape(-1, 3) / 255
        features = colours @ mix + 0.3 * rng.normal(size=(2700, 384))
        start = process_time()  # of all threads together: seconds of one core
        assert decompose(image, features, SpectralOptions("backbone_k", 8)).vectors.shape == (5, 45, 60)
        seconds.append(process_time() - start)
    assert np.median(seconds) < 0.5, seconds


def test_the_spectrum_of_an_image_is_drawn(tmp_path, image):
    cv2.imwrite(str(tmp_path / "a.png"), image)
    said = succeed(SHOW, "--input", tmp_path / "a.png", "--output", tmp_path, "--patch", 4, "--num-eigenvectors", 2)
    assert str(tmp_path / "a_spectrum.png") in said
    height, width = read_image(tmp_path / "a_spectrum.png").shape[:2]
    assert width > 900 and height > 400


@pytest.mark.parametrize("size", [(20, 400), (400, 20)])
@pytest.mark.filterwarnings("error")
def test_long_images_are_drawn_without_warnings(tmp_path, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    draw_spectrum(image, decompose(image, None, SpectralOptions("color", 8)), tmp_path / "a.png")
    height, width = read_image(tmp_path / "a.png").shape[:2]
    assert 300 < height < 2500 and width > 1500
