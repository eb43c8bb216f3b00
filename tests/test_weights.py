"""Weights files: what a path means, every way in which a file can fail to fit, other classes, MindSpore's .ckpt."""

import json
import random
import shutil

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import save_file

import train
from src.config import load_config
from src.data import load_classes
from src.engine import checkpoint, weights
from src.engine.checkpoint_files import MARKER
from src.engine.optimizer import create_optimizer
from src.models import create_model
from tests.checkpoint_writer import names
from tests.tiny import equal, tiny_network, weights_of, with_optimizer, write_config
from tools.convert_weights import main as convert


def test_what_a_path_means(tmp_path):
    network, optimizer = with_optimizer()
    first = checkpoint.save_checkpoint(tmp_path, 1, network, optimizer, {}, best=False)
    assert weights.weights_file(tmp_path).resolve() == first / "weights.safetensors"  # no best yet: the latest
    best = checkpoint.save_checkpoint(tmp_path, 2, network, optimizer, {}, best=True)
    latest = checkpoint.save_checkpoint(tmp_path, 3, network, optimizer, {}, best=False)
    assert weights.weights_file(tmp_path).resolve() == best / "weights.safetensors"
    assert weights.weights_file(latest) == latest / "weights.safetensors"
    assert weights.weights_file(latest / "weights.safetensors") == latest / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match="no weights at .*nothing; looked for .*/weights.safetensors, .*"):
        weights.weights_file(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing.safetensors; tools/convert_weights.py makes such a file"):
        weights.weights_file(tmp_path / "nothing.safetensors")
    shutil.rmtree(best)
    with pytest.raises(FileNotFoundError, match=f"best points at {best.name}, which is gone"):
        weights.weights_file(tmp_path)  # not the latest instead


def test_another_number_of_classes_is_said_first(tmp_path):
    network, optimizer = with_optimizer()
    folder = checkpoint.save_checkpoint(tmp_path, 1, network, optimizer, {}, best=True)
    with pytest.raises(ValueError) as caught:
        weights.load_weights(tiny_network(head="fcn", num_classes=6), folder)
    first, *rest = str(caught.value).splitlines()
    assert "trained for 4 classes, the data set of the config has 6; use the config" in first
    assert sorted(line.split(":")[1].split()[0] for line in rest) == ["head.classifier.bias", "head.classifier.weight"]


def test_all_that_does_not_fit_is_listed(tmp_path):
    network = tiny_network(head="fcn")
    tensors = weights_of(network)
    tensors["head.fusion.weight"] = tensors["head.fusion.weight"][:3]
    tensors["surplus"] = np.zeros((2, 3), np.float32)
    del tensors["backbone.blocks.1.mlp.fc1.bias"], tensors["head.classifier.bias"]
    file = tmp_path / "odd.safetensors"
    save_file(tensors, file)
    before = weights_of(network)
    with pytest.raises(ValueError) as caught:
        weights.load_weights(network, file)
    first, *rest = str(caught.value).splitlines()
    assert str(file) in first
    assert sorted(map(str.strip, rest)) == [
        "missing: backbone.blocks.1.mlp.fc1.bias (64,)",
        "missing: head.classifier.bias (4,)",
        "shape: head.fusion.weight is (3, 32, 3, 3) in the file, (8, 32, 3, 3) in the network",
        "unexpected: surplus (2, 3)",
    ]
    assert equal(weights_of(network), before)  # nothing was loaded halfway


def cubic_resize(values: np.ndarray, target: int, axis: int) -> np.ndarray:
    """Cubic convolution, coefficient -0.75, half-pixel centres, edges repeated; float64."""
    values = np.moveaxis(values.astype(np.float64), axis, 0)
    source, result = len(values), []
    for i in range(target):
        place = (i + 0.5) * source / target - 0.5
        low, total = int(np.floor(place)), 0.0
        for j in range(low - 1, low + 3):
            d = abs(place - j)
            near = (1.25 * d - 2.25) * d * d + 1.0
            far = -0.75 * (((d - 5.0) * d + 8.0) * d - 4.0)
            total = total + (near if d <= 1 else far) * values[min(max(j, 0), source - 1)]
        result.append(total)
    return np.moveaxis(np.array(result), 0, axis)


def test_pretrained_backbone_for_another_image_size(tmp_path):
    source, target = tiny_network(size=(64, 64)), tiny_network(size=(96, 128))
    tensors = {
        name: np.random.default_rng(len(name)).random(value.shape).astype(np.float32)
        for name, value in weights_of(source).items()
        if not name.startswith("backbone.norms.")  # public files have no norms for the taps
    }
    file = tmp_path / "backbone.safetensors"
    save_file(tensors, file, source.weight_metadata())
    before = weights_of(target)
    weights.load_pretrained(target, file)
    for name, value in weights_of(target).items():
        if name == "backbone.pos_embed":
            grid = tensors[name].reshape(4, 4, 16)
            expected = cubic_resize(cubic_resize(grid, 6, 0), 8, 1).reshape(1, 48, 16)
            np.testing.assert_allclose(value, expected, atol=1e-5)
        else:
            fresh = name.startswith(("head.", "backbone.norms."))
            np.testing.assert_array_equal(value, (before if fresh else tensors)[name], err_msg=name)


def test_pretrained_file_must_hold_the_whole_backbone(tmp_path):
    network, file = tiny_network(head="fcn"), tmp_path / "part.safetensors"
    tensors = weights_of(network)
    save_file({name: value for name, value in tensors.items() if name.startswith("head.")}, file)
    with pytest.raises(ValueError, match="holds no 'backbone.' weights; make it with tools/convert_weights.py"):
        weights.load_pretrained(network, file)
    del tensors["backbone.blocks.0.norm1.gamma"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"missing: backbone.blocks.0.norm1.gamma \(16,\)"):
        weights.load_pretrained(network, file)


@pytest.mark.parametrize("content", [b"", b"no tensors at all, but long enough to have a header", "cut"])
def test_an_unreadable_file_is_named(content, tmp_path):
    network, file = tiny_network(head="fcn"), tmp_path / "weights.safetensors"
    if content == "cut":
        save_file(weights_of(network), file)
        content = file.read_bytes()[:-100]
    file.write_bytes(content)
    with pytest.raises(ValueError, match="weights.safetensors: not a readable .safetensors file .*; write it again"):
        weights.load_weights(network, file)


def damage(file) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(tmp_path):
    network, optimizer = with_optimizer()
    first, second = (checkpoint.save_checkpoint(tmp_path, i, network, optimizer, {}, i == 1, keep=2) for i in (1, 2))
    damage(first / "weights.safetensors")
    best = tmp_path / "checkpoints" / "best"
    for path in (tmp_path, best, first, first / "weights.safetensors", best / "weights.safetensors"):
        with pytest.raises(ValueError, match="checkpoint .* is not usable: weights.safetensors has other content"):
            weights.load_weights(network, path)
    damage(second / "optimizer.safetensors")  # which only training needs
    weights.load_weights(network, second)
    (second / MARKER).unlink()
    with pytest.raises(ValueError, match="step_00000002 is not usable: complete.json is missing"):
        weights.load_weights(network, second)
    weights.load_weights(network, second / "weights.safetensors")  # asked for as a mere file
    (first / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="looked for .*/checkpoints/best/weights.safetensors$"):
        weights.load_weights(network, tmp_path)  # the latest is there, but was not meant


def test_mindspore_loads_a_ckpt_of_ours(tmp_path):
    network, file = with_optimizer(1)[0], tmp_path / "x.ckpt"
    metadata = {"position_grid": "2x3", "classes": json.dumps({"names": ["Straße", "sky"]})}
    weights.write_weights(file, weights_of(network), metadata)
    assert names(tmp_path) == {"x.ckpt"} and file.stat().st_mode & 0o777 == 0o644
    fresh = with_optimizer(2)[0]
    missing, surplus = ms.load_param_into_net(fresh, ms.load_checkpoint(str(file)))
    assert missing == [] and set(surplus) == set(metadata)
    assert equal(weights_of(fresh), weights_of(network))
    assert weights.read_metadata(file) == metadata
    with pytest.raises(ValueError, match="trained for the 2 classes Straße, sky; the data set"):
        weights.require_classes(file, ("sky", "Straße"))


def test_a_ckpt_of_mindspore_is_read(tmp_path):
    network, file = with_optimizer(1)[0], tmp_path / "x.ckpt"
    ms.save_checkpoint(network, str(file))
    fresh = with_optimizer(2)[0]
    assert weights.load_weights(fresh, file) == file
    assert equal(weights_of(fresh), weights_of(network))
    halves = [{"name": p.name, "data": ms.Tensor(p.asnumpy(), ms.bfloat16)} for p in network.get_parameters()]
    ms.save_checkpoint(halves, str(file))
    assert {array.dtype.name for array in weights.read_tensors(file)[0].values()} == {"float32"}
    weights.load_weights(fresh, file)
    for name, value in weights_of(fresh).items():
        np.testing.assert_allclose(value, weights_of(network)[name], rtol=2**-8)


def test_a_ckpt_for_another_image_size_and_as_backbone(tmp_path):
    source, file = tiny_network(size=(64, 64)), tmp_path / "x.ckpt"
    weights.write_weights(file, weights_of(source), source.weight_metadata())
    save_file(weights_of(source), tmp_path / "x.safetensors", source.weight_metadata())
    for load in (weights.load_weights, weights.load_pretrained):
        first, second = tiny_network(size=(96, 128)), tiny_network(size=(96, 128))
        load(first, file)
        load(second, tmp_path / "x.safetensors")
        assert equal(weights_of(first), weights_of(second))


def test_a_damaged_ckpt_is_refused(tmp_path):
    network, file = tiny_network(head="fcn"), tmp_path / "x.ckpt"
    weights.write_weights(file, weights_of(network), {})
    content, rng = file.read_bytes(), random.Random(0)
    for place in [rng.randrange(len(content) - 17) for _ in range(12)]:  # the last 17 bytes are the checksum
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(ValueError, match="x.ckpt: not a readable .ckpt file"):
            weights.load_weights(network, file)
    file.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="x.ckpt: not a readable .ckpt file"):
        weights.load_weights(network, file)


def test_the_tool_converts_there_and_back(tmp_path, capsys):
    network, optimizer = with_optimizer(1)
    described = {"names": ["a", "b", "c", "d"], "palette": []}
    folder = checkpoint.save_checkpoint(tmp_path / "run", 1, network, optimizer, {}, True, described)
    there, back = str(tmp_path / "x.ckpt"), tmp_path / "y.safetensors"
    assert convert(["--source", "checkpoint", "--input", str(tmp_path / "run"), "--output", there]) == 0
    assert convert(["--source", "checkpoint", "--input", there, "--output", str(back)]) == 0
    assert back.read_bytes() == (folder / "weights.safetensors").read_bytes()
    assert f"{there}: {len(weights_of(network))} parameters" in capsys.readouterr().out
    damage(folder / "weights.safetensors")
    bad = ["--source", "checkpoint", "--input", str(tmp_path / "run"), "--output", str(tmp_path / "z.ckpt")]
    assert convert(bad) == 1
    assert "has other content than was written" in capsys.readouterr().err
    assert names(tmp_path) == {"run", "x.ckpt", "y.safetensors"}


CLASS_LAYERS = {
    "fcn": {"classifier.weight", "classifier.bias"},
    "segvit": {"tokens", "classifier.weight", "classifier.bias"},
    "alignseg": {f"{cell}.classifier.{name}" for cell in ("main", "auxiliary") for name in ("weight", "bias")},
    "ecenet": {
        "classifier.weight", "classifier.bias", "confidence.weight", "confidence.bias", "class_mask.classify.weight",
    },
}  # fmt: skip
DESCRIPTORS = {f"embeddings.{i}.linear.{name}" for i in (0, 1) for name in ("weight", "bias")}


@pytest.mark.parametrize("head, count, fresh", [
    ("fcn", 9, CLASS_LAYERS["fcn"]),
    ("segvit", 9, CLASS_LAYERS["segvit"]),
    ("alignseg", 9, CLASS_LAYERS["alignseg"]),
    ("ecenet", 4, CLASS_LAYERS["ecenet"]),  # as many classes, but others
    ("ecenet", 9, CLASS_LAYERS["ecenet"]),  # L stays 3
    ("ecenet", 16, CLASS_LAYERS["ecenet"] | DESCRIPTORS),  # L becomes 5, P 75
])  # fmt: skip
def test_another_class_count_resets_what_depends_on_it(head, count, fresh, tmp_path):
    file = tmp_path / "w.safetensors"
    source, target = tiny_network(head=head), tiny_network(head=head, num_classes=count)
    tensors = {name: np.full_like(value, 7.0) for name, value in weights_of(source).items()}
    save_file(tensors, file, source.weight_metadata())
    before = weights_of(target)
    found, told = weights.load_except_classes(target, file)
    assert found == file and set(told) == {f"head.{name}" for name in fresh}
    for name, value in weights_of(target).items():
        np.testing.assert_array_equal(value, (before if name in told else tensors)[name], err_msg=name)


def test_nothing_else_may_differ(tmp_path):
    source, file = tiny_network(), tmp_path / "w.safetensors"
    tensors = weights_of(source)
    tensors["head.surplus"] = tensors["head.fusion.weight"][:1]
    del tensors["backbone.blocks.0.norm1.gamma"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match="(?s)missing: backbone.blocks.0.norm1.gamma .*unexpected: head.surp") as error:
        weights.load_except_classes(tiny_network(num_classes=16), file)
    assert len(str(error.value).splitlines()) == 3
    save_file({name: value for name, value in tensors.items() if name.startswith("backbone.")}, file)
    with pytest.raises(ValueError, match="holds no 'head.' weights, model.reset_classifier=true needs"):
        weights.load_except_classes(tiny_network(num_classes=16), file)


def test_a_run_starts_from_a_network_of_other_classes(tmp_path, capsys):
    file = tmp_path / "w.safetensors"
    settings = [f"model.pretrained={file}", "model.reset_classifier=true"]
    config = load_config(write_config(tmp_path), settings)
    save_file(weights_of(create_model(config.model, 5, (32, 48))), file, {"position_grid": "2x3"})
    classes = load_classes(config.data)
    network = create_model(config.model, len(classes), config.data.crop_size)
    optimizer = create_optimizer(network, config.optimizer)
    assert train.start(config, tmp_path / "runs" / "tiny", network, optimizer, classes, 0, 1) == {}
    told = " ".join(capsys.readouterr().out.split())
    assert "fresh because they depend on the classes: head.class_mask.classify.weight, " in told
    with pytest.raises(ValueError, match="model.reset_classifier needs model.pretrained"):
        load_config(tmp_path / "tiny.yaml", settings[1:])
