"""ResNet: maps against float64 NumPy, pooling that rounds up, grids, names and exact sizes of the AlignSeg spec."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from src.models.backbones.resnet import MaxPool, ResNet, resnet_18, resnet_50, resnet_101, stage_grids
from tests.network_reference import convolve, max_pool, normalise, relu
from tests.running import draw, randomise, run

ROUNDING = 0.06  # of a table with one decimal, whose entries are partly rounded up


def reference(p: dict[str, np.ndarray], image: np.ndarray, network: ResNet, ceil: bool) -> list[np.ndarray]:
    """The maps of a network of one block a stage, written from the spec, section 2."""
    x, stride = image, 2
    for i in range(len(network.stem)):
        x = relu(normalise(convolve(x, p[f"stem.{i}.conv.weight"], stride), p, f"stem.{i}.bn"))
        stride = 1
    x, maps = max_pool(x, ceil), []
    for s in range(1, 5):
        name, y, stride = f"layer{s}.0", x, 1 if s == 1 else 2
        convolutions = 3 if network.layer1[0].bottleneck else 2
        for i in range(1, convolutions + 1):
            weight = p[f"{name}.conv{i}.weight"]
            strides = stride if i == convolutions - 1 else 1  # the 3x3 of a bottleneck, the first of two 3x3
            y = normalise(convolve(y, weight, strides), p, f"{name}.bn{i}")
            y = relu(y) if i < convolutions else y
        if f"{name}.downsample.conv.weight" in p:
            x = normalise(convolve(x, p[f"{name}.downsample.conv.weight"], stride), p, f"{name}.downsample.bn")
        x = relu(x + y)
        maps.append(x)
    return maps


@pytest.mark.parametrize(("bottleneck", "stem", "ceil", "size"), [
    (False, "plain7x7", False, (35, 52)), (True, "deep128", True, (33, 64)),
])  # fmt: skip
def test_maps_equal_the_reference(bottleneck, stem, ceil, size):
    network = ResNet(size, depths=(1, 1, 1, 1), bottleneck=bottleneck, stem=stem, maxpool_ceil=ceil)
    p = randomise(network)
    for name, parameter in network.parameters_and_names():
        if name.endswith("weight"):  # of a size that keeps the maps' sizes
            parameter.set_data(Tensor((p[name] / np.sqrt(np.prod(parameter.shape[1:]))).astype(np.float32)))
            p[name] = parameter.asnumpy().astype(np.float64)
    image = draw(2, 3, *size)
    maps = run(network, image)
    assert [m.shape[1:] for m in maps] == [(c, *g) for c, g in zip(network.channels, network.grids, strict=True)]
    for found, wanted in zip(maps, reference(p, image, network, ceil), strict=True):
        assert np.abs(wanted).max() > 0.5
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("size", [(5, 8), (6, 3), (1, 2)])
def test_pooling_and_its_gradient(ceil, size):
    x = np.maximum(draw(2, 3, *size), 0.0) + np.float32(1e-3)  # no ties, whose gradient is a matter of taste
    wanted = max_pool(x.astype(np.float64), ceil)
    weight = draw(*wanted.shape, seed=1)
    pool = MaxPool(ceil)

    def weighed(x, weight):
        y = pool(x)
        return (y * weight).sum(), y

    x = x + np.linspace(0.0, 0.5, x.size, dtype=np.float32).reshape(x.shape)
    wanted = max_pool(x.astype(np.float64), ceil)
    (_, found), gradient = ms.value_and_grad(weighed, 0, has_aux=True)(Tensor(x), Tensor(weight))
    np.testing.assert_allclose(found.asnumpy(), wanted, atol=1e-6)
    expected = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        shifted = x.astype(np.float64)
        shifted[index] += 1e-6
        expected[index] = ((max_pool(shifted, ceil) - wanted) * weight).sum() / 1e-6
    np.testing.assert_allclose(gradient.asnumpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("side", "ceil", "sides"), [
    (33, True, (9, 5, 3, 2)), (64, True, (17, 9, 5, 3)), (480, True, (121, 61, 31, 16)),
    (512, True, (129, 65, 33, 17)), (769, True, (193, 97, 49, 25)), (872, True, (219, 110, 55, 28)),
    (1024, True, (257, 129, 65, 33)), (2048, True, (513, 257, 129, 65)),
    (512, False, (128, 64, 32, 16)), (769, False, (193, 97, 49, 25)), (872, False, (218, 109, 55, 28)),
])  # fmt: skip
def test_grids_of_the_specification(side, ceil, sides):
    assert stage_grids((side, 64), ceil) == tuple(zip(sides, (17, 9, 5, 3) if ceil else (16, 8, 4, 2), strict=True))


def size_of(cell) -> int:
    return sum(p.size for p in cell.trainable_params())


@pytest.mark.parametrize(("builder", "total", "third"), [
    (resnet_50, 23_631_808, 7_098_368), (resnet_101, 42_623_936, 26_090_496),
])  # fmt: skip
def test_parameters_of_the_specification(builder, total, third):
    with no_init_parameters():
        network, plain = builder((64, 64)), builder((64, 64), stem="plain7x7")
    parts = [size_of(part) for part in (network.stem, network.layer1, network.layer2, network.layer3, network.layer4)]
    assert parts == [112_832, 236_288, 1_219_584, third, 14_964_736]
    assert (size_of(network), size_of(plain)) == (total, total - 123_776)


def test_resnet_18_is_the_public_one():
    with no_init_parameters():
        network = resnet_18((64, 64))
    assert size_of(network) == 11_689_512 - 513_000  # without the classifier of 1000 classes
    assert network.channels == (64, 128, 256, 512)


@pytest.mark.parametrize(("builder", "size", "billions"), [
    (resnet_50, (512, 512), 29.6), (resnet_50, (769, 769), 65.9), (resnet_50, (1024, 2048), 231.0),
    (resnet_101, (512, 512), 50.3), (resnet_101, (872, 872), 141.2), (resnet_101, (1024, 1024), 196.1),
])  # fmt: skip
def test_operations_of_the_specification(builder, size, billions):
    with no_init_parameters():
        assert builder(size).count_macs() / 1e9 == pytest.approx(billions, abs=ROUNDING)


def test_names_of_the_specification():
    with no_init_parameters():
        names = {p.name for p in resnet_50((64, 64)).get_parameters()}
    assert {
        "stem.0.conv.weight", "stem.2.bn.gamma", "layer1.0.downsample.conv.weight", "layer3.5.bn2.moving_mean",
        "layer4.0.downsample.bn.moving_variance", "layer2.3.conv3.weight",
    } <= names  # fmt: skip
    assert len([name for name in names if ".downsample.conv" in name]) == 4


def test_wrong_arguments():
    with pytest.raises(ValueError, match="stem 'deep' is not known; allowed: deep128, plain7x7"):
        resnet_50((64, 64), stem="deep")
    with pytest.raises(ValueError, match="give 4 depths"):
        ResNet((64, 64), depths=(1, 1, 1), bottleneck=True)
    network = ResNet((64, 64), depths=(1, 1, 1, 1), bottleneck=False, stem="plain7x7")
    with pytest.raises(ValueError, match=r"image is \(64, 32\), but the network was built for \(64, 64\)"):
        network(Tensor(np.zeros((1, 3, 64, 32), np.float32)))
