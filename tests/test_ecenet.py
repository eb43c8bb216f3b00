"""ECENet's head and whole network: released values, every switch, odd sizes, errors."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from src.engine.weights import assign, load_weights, read_tensors
from src.models.backbones.swin import SwinTransformer
from src.models.heads.ecenet import ECENetHead
from src.models.heads.fcn import FCNHead
from src.models.segmentor import Segmentor
from tests.running import draw, randomise, run
from tools.convert_weights import main as convert_weights

EQUAL = ((4, 6),) * 4
FALLING = ((8, 12), (4, 6), (2, 3), (1, 2))


def golden(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as values:
        return dict(values)


def converted(folder: Path, name: str, output: Path) -> Path:
    """The golden file's weights, through the command."""
    output = output / f"{name}.safetensors"
    arguments = ["--source", "released_ecenet", "--input", str(folder / f"{name}.npz"), "--output", str(output)]
    assert convert_weights(arguments) == 0
    return output


@pytest.mark.parametrize("q_act", ["none", "relu"])
def test_head_equals_the_release(q_act, golden_root, tmp_path):
    values = golden(golden_root, f"ecenet_head_q_{q_act}")
    features = tuple(values[f"input/{i}"] for i in range(4))
    grids = tuple(f.shape[2:] for f in features)
    head = ECENetHead(tuple(f.shape[1] for f in features), grids, 19, channels=32, num_heads=4, q_act=q_act)
    weights, metadata = read_tensors(converted(golden_root, f"ecenet_head_q_{q_act}", tmp_path))
    assign(head, {name.removeprefix("head."): value for name, value in weights.items()}, "golden")
    assert metadata == {"source": "released_ecenet"}
    head.set_train(False)
    outputs = run(head, features)
    np.testing.assert_allclose(outputs["logits"], values["output/logits"], atol=1e-4)
    assert len(outputs["masks"]) == 3 and len(outputs["finest_mask"]) == 1
    np.testing.assert_allclose(sum(outputs["masks"]), values["output/mask_sup"], atol=1e-4)
    for i, gated in enumerate(outputs["diverse"]):
        share = softmax(gated.astype(np.float64).reshape(*gated.shape[:2], -1), -1)
        np.testing.assert_allclose(share.max(1), values[f"output/div_max/{i}"], atol=1e-5)


def test_whole_network_equals_the_release(golden_root, tmp_path):
    values = golden(golden_root, "swin_ecenet")
    backbone = SwinTransformer((96, 160), embed_width=24, depths=(2, 2, 2, 2), num_heads=(3, 3, 6, 6), window=7)
    head = ECENetHead(backbone.channels, backbone.grids, 19, channels=32, num_heads=4)
    network = Segmentor(backbone, head, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # the golden input is normalised already
    load_weights(network, converted(golden_root, "swin_ecenet", tmp_path))
    network.set_train(False)
    outputs = run(network, values["input"])
    np.testing.assert_allclose(outputs["logits"], values["output/logits"], atol=1e-4)
    np.testing.assert_allclose(sum(outputs["masks"]), values["output/mask_sup"], atol=1e-4)



# Together these cover every value of every switch; each graph costs seconds.
SWITCHES = {
    "iso16": {
        "preset": "iso16", "fr_gate": "sigmoid", "norm": "group", "attn_sign": "standard", "num_rounds": 3,
        "updater": "add", "mask_prior": "full", "init_linear": "trunc02",
    },
    "iso8": {
        "preset": "iso8", "fr_gate": "one_plus", "norm": "batch", "q_act": "relu", "num_rounds": 2,
        "updater": "replace", "mask_prior": "none",
    },
    "pyr-plain": {
        "preset": "pyr", "num_rounds": 1, "updater": "none", "ghost_up": False, "embed_from": "pooled_feature",
    },
    "pyr-ghost": {"preset": "pyr", "fr_ratio": 0.25, "pool_ratio": 2.0},
    "hierarchical": {"preset": "hierarchical", "fr": False, "num_rounds": 0},
    "last": {"aggregate": "last", "ghost_up": False},
}  # fmt: skip
OUTPUT_GRIDS = {"iso16": (4, 6), "iso8": (8, 12), "pyr-plain": (16, 24), "pyr-ghost": (16, 24)}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_build_and_run(name):
    options, grids = SWITCHES[name], EQUAL if name in OUTPUT_GRIDS else FALLING
    head = ECENetHead((8,) * 4, grids, 5, channels=8, num_heads=2, **options)
    randomise(head)
    features = tuple(draw(2, 8, *grid, seed=i) for i, grid in enumerate(grids))
    outputs = run(head, features, np.full((2, 8), 1.25, np.float32))
    output_grid, rounds = OUTPUT_GRIDS.get(name, (8, 12)), options.get("num_rounds", 3)
    assert head.output_grid == output_grid
    assert head.fusion.in_channels == (8 if options.get("aggregate") == "last" else 4 * 8)
    assert outputs["logits"].shape == (2, 5, *output_grid)
    assert len(outputs["finest_mask"]) == (rounds == 3)
    assert len(outputs["masks"]) == min(rounds + 1, 3)  # level 4 and those of the rounds, but never level 1
    assert {m.shape for m in outputs["masks"] + outputs["finest_mask"]} == {(2, 5, *output_grid)}
    width = int(8 * options.get("fr_ratio", 0.5))
    assert [d.shape for d in outputs["diverse"]] == [(2, width, *g) for g in head.grids if options.get("fr", True)]
    for value in (outputs["logits"], *outputs["masks"], *outputs["finest_mask"]):
        assert np.isfinite(value).all() and np.abs(value[0] - value[1]).max() > 1e-3


def test_noise_drops_channels_before_the_classifier():
    head = ECENetHead((8, 8), EQUAL[:2], 5, channels=8, num_heads=2, mask_prior="none", dropout=0.25)
    p = randomise(head)
    features, noise = (draw(2, 8, 4, 6), draw(2, 8, 4, 6, seed=1)), np.zeros((2, 8), np.float32)
    noise[1] = 1.0
    np.testing.assert_array_equal(head.noise_rates, np.full(8, 0.25, np.float32))
    logits, plain = (run(head, features, each)["logits"] for each in (noise, np.ones_like(noise)))
    np.testing.assert_allclose(logits[0], np.broadcast_to(p["classifier.bias"][:, None, None], (5, 4, 6)), atol=1e-6)
    np.testing.assert_allclose(logits[1], plain[1], atol=1e-6)


def test_odd_grids():
    grids = ((50, 67), (25, 34), (13, 17), (7, 9))
    head = ECENetHead((4, 4, 4, 4), grids, 3, channels=4, num_heads=2)
    randomise(head)
    outputs = run(head, tuple(draw(1, 4, *grid) for grid in grids))
    for value in (outputs["logits"], *outputs["masks"], *outputs["finest_mask"]):
        assert value.shape == (1, 3, 50, 67) and np.isfinite(value).all()


def test_auto_preset_follows_the_grids():
    presets = [ECENetHead((4,) * 4, grids, 3, channels=4).preset for grids in (EQUAL, FALLING)]
    assert presets == ["iso16", "hierarchical"]


@pytest.mark.parametrize("options, message", [
    *[({name: "other"}, f"{name} 'other' is not known") for name in (
        "preset", "fr_gate", "norm", "embed_from", "attn_sign", "q_act", "updater", "aggregate", "mask_prior",
        "init_linear", "init_classifier",
    )],
    ({"num_rounds": 4}, "num_rounds 4: 4 levels allow 0 to 3"),
    ({"num_rounds": -1}, "num_rounds -1"),
    ({"num_heads": 3}, "channels 8 is not a multiple of num_heads 3"),
    ({"fr_ratio": 0.1}, "fr_ratio 0.1 of 8 channels gives 0"),
    ({"grids": FALLING, "preset": "iso8"}, "needs levels of one grid"),
    ({"preset": "hierarchical"}, "'hierarchical' with ghost_up needs falling grids.*use 'iso16'"),
    ({"channels": 0}, "channels is 0; give at least 1"),
    ({"num_heads": 0}, "num_heads is 0; give at least 1"),
    ({"pool_ratio": 0.0}, "pool_ratio is 0.0; give a number above 0"),
    ({"grids": EQUAL[:3], "in_channels": (8,) * 3, "preset": "pyr"}, "needs 4 levels, got 3"),
])  # fmt: skip
def test_wrong_arguments(options, message):
    arguments = {"in_channels": (8,) * 4, "grids": EQUAL, "num_classes": 5, "channels": 8, "num_heads": 2}
    with pytest.raises(ValueError, match=message):
        ECENetHead(**{**arguments, **options})


@pytest.mark.parametrize(("grids", "options", "steps"), [
    (EQUAL[:2], {"ghost_up": False}, (0, 0)),
    (EQUAL[:1], {}, (0,)),
    (((1, 1),) * 2, {}, (0, 1)),
])  # fmt: skip
def test_equal_grids_that_hierarchical_takes(grids, options, steps):
    head = ECENetHead((8,) * len(grids), grids, 5, channels=8, preset="hierarchical", **options)
    assert (head.preset, head.ghost_steps) == ("hierarchical", steps)


def test_fcn_head_needs_channels():
    with pytest.raises(ValueError, match="channels is 0; give at least 1"):
        FCNHead((8,), EQUAL[:1], 5, channels=0)
