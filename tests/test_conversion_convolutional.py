"""Conversion of convolutional networks: values, channel order, every released name once, MobileNetV2's real weights."""

import re

import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters
from safetensors.numpy import save_file

from src.engine.weights import load_pretrained, load_weights, read_tensors
from src.models.backbones.mobilenet_v2 import GROUPS, REPEATS, MobileNetV2, mobilenet_v2
from src.models.backbones.resnet import ResNet, resnet_101
from src.models.conversion import convert
from src.models.conversion_matching import rename
from src.models.conversion_names import ALIGNSEG_MODULES, DEEP_STEM_MODULES, RESNET_MODULES
from src.models.heads.alignseg import AlignSegHead
from src.models.heads.fcn import FCNHead
from src.models.segmentor import Segmentor
from tests.network_reference import convolve
from tests.running import draw, run
from tools.convert_weights import main

NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def torch_resnet_name(name: str) -> str:
    """torchvision's name of a parameter of ours; in CSAIL's stem the convolutions are conv1, conv2, conv3."""
    module, _, parameter = name.rpartition(".")
    module = re.sub(r"stem\.(\d)\.(conv|bn)", lambda found: f"{found[2]}{int(found[1]) + 1}", module)
    return f"{module.replace('downsample.conv', 'downsample.0').replace('downsample.bn', 'downsample.1')}." + NORM.get(
        parameter, parameter
    )


def random_values(network, name_of) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name_of(name): (rng.normal(size=p.shape) / np.sqrt(np.prod(p.shape[1:]))).astype(np.float32)
        if p.ndim == 4 else rng.uniform(0.5, 1.5, p.shape).astype(np.float32)
        for name, p in network.parameters_and_names()
    }  # fmt: skip


@pytest.mark.parametrize(("stem", "bottleneck"), [("plain7x7", False), ("deep128", True)])
def test_resnet_in_either_channel_order(stem, bottleneck, tmp_path):
    network = ResNet((33, 48), depths=(1, 2, 1, 1), bottleneck=bottleneck, stem=stem)
    weights = random_values(network, torch_resnet_name)
    assert "conv1.weight" in weights and "layer2.0.downsample.1.running_var" in weights
    extra = {"fc.weight": np.zeros((3, 4), np.float32), "bn1.num_batches_tracked": np.array(3)}
    save_file({**weights, **extra}, tmp_path / "public.safetensors")
    image, maps = draw(1, 3, 33, 48), {}
    for source in ("resnet", "resnet_bgr"):
        output = tmp_path / f"{source}.safetensors"
        assert main(["--source", source, "--input", str(tmp_path / "public.safetensors"), "--output", str(output)]) == 0
        head = FCNHead(network.channels, network.grids, 3, channels=4)
        load_pretrained(Segmentor(network, head, (0.0,) * 3, (1.0,) * 3), output)
        for name, parameter in network.parameters_and_names():
            if name != "stem.0.conv.weight":
                np.testing.assert_array_equal(parameter.asnumpy(), weights[torch_resnet_name(name)])
        network.set_train(False)
        maps[source] = run(network, image if source == "resnet" else np.ascontiguousarray(image[:, ::-1]))
    for found, wanted in zip(maps["resnet_bgr"], maps["resnet"], strict=True):
        assert np.ptp(wanted) > 0.1
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def released_names(depths: tuple[int, ...]) -> list[str]:
    """Names of the released AlignSeg as its repository defines them (spec, sections 2.1 and 13)."""
    modules = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]
    for layer, depth in enumerate(depths, 1):
        for i in range(depth):
            modules += [f"layer{layer}.{i}.{kind}{n}" for n in (1, 2, 3) for kind in ("conv", "bn")]
        modules += [f"layer{layer}.0.downsample.{n}" for n in (0, 1)]
    blocks = [f"RRB{k}a" for k in (1, 2, 3, 4, 5)] + [f"RRB{k}b" for k in (2, 3, 4, 5)]
    modules += [f"{block}.{n}" for block in blocks for n in ("unify", "residual.0", "residual.1", "residual.2", "norm")]
    modules += [f"CAB{k}.delta_gen{n}.{i}" for k in (2, 3, 4, 5) for n in (1, 2) for i in (0, 1, 2)]
    modules += [f"CAM.pool.{i}" for i in (1, 2, 3, 4)] + [f"CAM.adapt.{i}" for i in (0, 1, 2, 3)]
    modules += [f"CAM.delta_gen.{i}" for i in (0, 1, 2)]
    modules += [f"{head}.{i}" for head in ("head", "dsn") for i in (0, 1, 3)]
    norms = r".*(bn\d|downsample\.1|residual\.1|norm|gen\d?\.1|pool\.[24]|adapt\.[13]|(head|dsn)\.1)"
    names = []
    for module in modules:
        if re.fullmatch(norms, module):
            names += [f"{module}.{name}" for name in NORM.values()]
        else:
            names += [f"{module}.weight"] + ([f"{module}.bias"] if module.startswith(("head.", "dsn.")) else [])
    return names


def test_every_released_name_of_alignseg_has_one_of_ours():
    with no_init_parameters():
        backbone = resnet_101((64, 64))
        head = AlignSegHead(backbone.channels, backbone.grids, 19)
    rules = [("", "backbone.", {**DEEP_STEM_MODULES, **RESNET_MODULES}), ("", "head.", ALIGNSEG_MODULES)]
    names = released_names((3, 4, 23, 3))
    ours = [rename(name, rules) for name in names]
    cells = {"backbone": backbone, "head": head}
    wanted = {f"{prefix}.{p.name}" for prefix, cell in cells.items() for p in cell.get_parameters()}
    assert set(ours) == wanted and len(ours) == len(wanted)
    trainable = [name for name in names if not name.endswith(("running_mean", "running_var"))]
    assert len(trainable) == 441


def test_released_alignseg(tmp_path):
    backbone = ResNet((33, 33), depths=(1, 1, 1, 1), bottleneck=True)
    head = AlignSegHead(backbone.channels, backbone.grids, 5, channels=8)
    rules = [("", "backbone.", {**DEEP_STEM_MODULES, **RESNET_MODULES}), ("", "head.", ALIGNSEG_MODULES)]
    public = {rename(name, rules): name for name in released_names((1, 1, 1, 1))}
    weights = random_values(backbone, lambda name: public[f"backbone.{name}"])
    weights |= random_values(head, lambda name: public[f"head.{name}"])
    weights["RRB2b.norm.weight"][1] = -0.75
    converted = convert("alignseg", {f"model.{name}": value for name, value in weights.items()})
    found = converted.weights
    assert len(found) == len(weights) and converted.dropped == ()
    np.testing.assert_allclose(found["head.smooths.0.norm2.gamma"][1], 0.75 + 1e-5, rtol=1e-7)
    np.testing.assert_array_equal(found["backbone.stem.0.conv.weight"], weights["conv1.weight"][:, [2, 1, 0]])
    np.testing.assert_array_equal(found["head.sums.1.offset_acc.offset.weight"], weights["CAB3.delta_gen2.2.weight"])
    np.testing.assert_array_equal(found["head.sums.3.offset_up.reduce.weight"], weights["CAB5.delta_gen1.0.weight"])
    np.testing.assert_array_equal(found["head.context.local.norm2.beta"], weights["CAM.adapt.3.bias"])
    np.testing.assert_array_equal(found["head.laterals.4.conv2.weight"], weights["RRB5a.residual.2.weight"])
    np.testing.assert_array_equal(found["head.auxiliary.classifier.bias"], weights["dsn.3.bias"])
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(weights, theirs)
    assert main(["--source", "alignseg", "--input", str(theirs), "--output", str(ours)]) == 0
    network = Segmentor(backbone, head, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=(
        "ours.safetensors: the weights were trained with sampler 'legacy' of the head, the network has 'standard', "
        "with which they do not work; set model.head.sampler=legacy"
    )):  # fmt: skip
        load_weights(network, ours)
    network.head = AlignSegHead(backbone.channels, backbone.grids, 5, channels=8, sampler="legacy")
    load_weights(network, ours)
    del weights["CAM.pool.3.weight"]
    with pytest.raises(ValueError, match=r"missing \(1\):\n  head.context.pooled.conv2.weight"):
        convert("alignseg", weights)


def same(x, weight, bias, stride: int, groups: int = 1):
    """TensorFlow's SAME: the result has ceil(n / stride) places, and of an odd number of zeros most stand behind."""
    kernel, sides = weight.shape[-1], []
    for side in x.shape[2:]:
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        sides.append((total // 2, total - total // 2))
    return convolve(x, weight, stride, tuple(sides), groups, bias)


def mobilenet_reference(w: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """Outputs of all blocks from the public names: features.N.conv with ReLU6 after all but the last convolution."""
    def layer(x, name, stride, groups=1, act=True):
        y = same(x, w[f"{name}.weight"].astype(np.float64), w[f"{name}.bias"].astype(np.float64), stride, groups)
        return np.clip(y, 0.0, 6.0) if act else y

    x, outputs, n = layer(image, "features.0.0", 2), [], 0
    for (_, channels, first), repeats in zip(GROUPS, REPEATS, strict=True):
        for i in range(repeats):
            n += 1
            name, stride, y = f"features.{n}.conv", 1 if i else first, x
            if f"{name}.2.weight" in w:
                y = layer(y, f"{name}.0.0", 1)
                y = layer(y, f"{name}.1.0", stride, y.shape[1])
                y = layer(y, f"{name}.2", 1, act=False)
            else:
                y = layer(layer(y, f"{name}.0.0", stride, y.shape[1]), f"{name}.1", 1, act=False)
            x = x + y if stride == 1 and x.shape[1] == channels else y
            outputs.append(x)
    return outputs


@pytest.mark.parametrize("size", [(64, 96), (45, 71)])
def test_real_mobilenet_computes_what_the_public_one_does(size, data_root, tmp_path):
    source = data_root / "mobilenetv2_imagenet_int8" / "mobilenetv2_1.0_float16.npz"
    if not source.is_file():
        pytest.skip(f"no weights at {source}")
    output = tmp_path / "ours.safetensors"
    assert main(["--source", "mobilenet_v2", "--input", str(source), "--output", str(output)]) == 0
    assert read_tensors(output)[1] == {"source": "mobilenet_v2"}
    backbone = mobilenet_v2(size)
    head = FCNHead(backbone.channels, backbone.grids, 3, channels=4)
    load_pretrained(Segmentor(backbone, head, (127.5,) * 3, (127.5,) * 3), output)
    backbone.set_train(False)
    image = np.clip(0.5 * draw(1, 3, *size), -1.0, 1.0)
    with np.load(source) as file:
        outputs = mobilenet_reference(dict(file), image)
    found = run(backbone, image)
    assert backbone.taps == (3, 6, 13, 17)
    for tap, value, grid in zip(backbone.taps, found, backbone.grids, strict=True):
        wanted = outputs[tap - 1]
        assert value.shape[2:] == grid
        np.testing.assert_allclose(value, wanted, atol=2e-4 * np.abs(wanted).max())


def test_mobilenet_sizes():
    with no_init_parameters():
        network = mobilenet_v2((224, 224))
    total = sum(p.size for p in network.trainable_params())
    # All 3,489,097 public numbers but the last convolution 320 -> 1280 and the classifier 1280 -> 1001.
    assert total == 3_489_097 - (320 * 1280 + 1280) - (1280 * 1001 + 1001)
    last, classifier = 320 * 1280 * 49, 1280 * 1001
    assert (network.count_macs() + last + classifier) / 1e6 == pytest.approx(300.8, abs=0.5)
    assert network.grids == ((56, 56), (28, 28), (14, 14), (7, 7))
    with pytest.raises(ValueError, match="give 7 numbers"):
        MobileNetV2((32, 32), repeats=(1, 2))
