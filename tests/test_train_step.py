"""The compiled training step: clipping, micro-batches, noise, one compilation."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.engine.optimizer import SGD
from src.engine.train_step import TrainStep, draw_noise, run_step
from src.losses import batch_counts
from tests.running import draw, to_arrays
from tests.tiny import draw_batch, split, tiny_network, tiny_step, weights_of

RATE = 0.02


class Plane(nn.Cell):
    """value = a * x + b * y of inputs (B, 2): gradients that can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.array([1.0, 2.0], np.float32)), name="weight")

    def construct(self, image, noise):
        return {"logits": (image * self.weight * noise).sum(-1)}


class Total(nn.Cell):
    """The sum of all values, and twice that sum, each over the images of the global batch."""

    terms = ("once", "twice")

    def construct(self, outputs, batch, counts):
        once = outputs["logits"].sum() / counts[2]
        return once, 2.0 * once


def plane_step(**options) -> TrainStep:
    network = Plane()
    optimizer = SGD(network.trainable_params(), [0.0], [1.0], momentum=0.0)
    return TrainStep(network, Total(), optimizer, ("image",), **options)


def run_plane(step: TrainStep, images: list, rate: float = 0.1):
    """One step on micro-batches of images (b, 2); returns terms, norm, weight."""
    batches = [{"image": np.array(image, np.float32)} for image in images]
    noise = np.ones((len(batches), *batches[0]["image"].shape[:1], 1), np.float32)
    counts = np.array([0, 0, sum(len(batch["image"]) for batch in batches)], np.float32)
    terms, norm, _ = run_step(step, np.array([rate], np.float32), noise, batches, counts)
    return terms, norm, step.network.weight.asnumpy().copy()


def test_a_step_by_hand():
    # values 1 + 4 and 3 - 2, mean 3; terms 3 and 6; gradient 3 * mean of (1, 2) and (3, -1)
    terms, norm, weight = run_plane(plane_step(), [[[1, 2], [3, -1]]])
    assert terms == {"once": 3.0, "twice": 6.0}
    np.testing.assert_allclose(norm, np.hypot(6.0, 1.5), rtol=1e-6)
    np.testing.assert_allclose(weight, [1.0 - 0.6, 2.0 - 0.15], rtol=1e-6)


@pytest.mark.parametrize(("clip_norm", "factor"), [(0.0, 1.0), (20.0, 1.0), (1.5, 0.1)])
def test_clipping_by_hand(clip_norm, factor):
    # gradient 3 * (3, 4) of norm 15
    step = plane_step(clip_norm=clip_norm)
    _, norm, weight = run_plane(step, [[[3, 4]]])
    np.testing.assert_allclose(norm, 15.0, rtol=1e-6)  # before clipping
    np.testing.assert_allclose(weight, [1.0 - 0.9 * factor, 2.0 - 1.2 * factor], rtol=1e-6)
    _, norm, _ = run_plane(step, [[[0, 0]]])
    assert norm == 0.0 and np.isfinite(step.network.weight.asnumpy()).all()


def test_clipping_bounds_the_sum_of_micro_batches():
    step = plane_step(clip_norm=1.5, accumulate=2)
    _, norm, weight = run_plane(step, [[[6, 0]], [[0, 8]]])  # mean gradient 3 * (3, 4)
    np.testing.assert_allclose(norm, 15.0, rtol=1e-6)
    np.testing.assert_allclose(weight, [1.0 - 0.09, 2.0 - 0.12], rtol=1e-6)


def test_a_second_compilation_would_be_counted():
    step = plane_step()
    run_plane(step, [[[1, 2]]])
    run_plane(step, [[[3, 4]]])
    assert len(step.compile_cache) == 1
    run_plane(step, [[[1, 2], [3, 4]]])
    assert len(step.compile_cache) == 2


def network_away_from_kinks():
    """The gate of Feature Reconstruction sees the mean of a normalised map: 0 and then a ReLU, unless beta moves it."""
    network = tiny_network("one_block")
    for parameter in network.get_parameters():
        if parameter.name.endswith("diverse_norm.beta"):
            parameter.set_data(Tensor(draw(*parameter.shape)))
    return network


def train(accumulate: int, steps: int = 5) -> tuple[TrainStep, list]:
    """Steps on batches of 4, the second without any valid pixel in one image, cut into micro-batches."""
    network = network_away_from_kinks()
    step = tiny_step(network, optimizer={"momentum": 0.9}, clip_norm=0.5, accumulate=accumulate)
    logged = []
    for i in range(steps):
        batch = draw_batch(4, seed=i)
        if i == 1:
            batch["label"][2], batch["present"][2] = 255, -1
        noise = draw_noise(network.noise_rates, 5, i, 4 // accumulate, accumulate=accumulate)
        groups = [batch] if accumulate == 1 else split(batch)
        assert len({batch_counts(part)[0] for part in split(batch)}) == 4  # valid pixels of the micro-batches
        logged.append(run_step(step, np.array([RATE], np.float32), noise, groups, batch_counts(batch))[:2])
    return step, logged


@pytest.fixture(scope="module")
def whole():
    return train(accumulate=1)


@pytest.fixture(scope="module")
def parts():
    return train(accumulate=4)


def test_micro_batches_add_up(whole, parts):
    (step, logged), (other, other_logged) = whole, parts
    for (terms, norm), (other_terms, other_norm) in zip(logged, other_logged, strict=True):
        assert terms.keys() == other_terms.keys() == {"ce", "mask", "dice", "diversity"}
        np.testing.assert_allclose([*terms.values()], [*other_terms.values()], rtol=1e-5)
        np.testing.assert_allclose(norm, other_norm, rtol=5e-5)
    norms = [norm for _, norm in logged]
    assert min(norms) > 0.5, norms  # so clipping took part
    start, weights = weights_of(network_away_from_kinks()), weights_of(step.network)
    other_weights = weights_of(other.network)
    for name, value in weights.items():
        np.testing.assert_allclose(other_weights[name], value, atol=1e-6, err_msg=name)
    # in this network every parameter has a gradient except those that a normalisation cancels
    moved = [name for name, value in weights.items() if np.abs(value - start[name]).max() > 1e-5]
    assert len(moved) > 0.8 * len(weights)


def test_nothing_recompiles(whole, parts):
    assert len(whole[0].compile_cache) == 1
    assert len(parts[0].compile_cache) == 1


def test_noise_is_a_function_of_seed_and_step():
    rates = np.full(40, 0.5, np.float32)
    first = draw_noise(rates, 1, 7, 3)
    assert first.shape == (1, 3, 40) and first.dtype == np.float32
    np.testing.assert_array_equal(draw_noise(rates, 1, 7, 3), first)
    for other in (draw_noise(rates, 1, 8, 3), draw_noise(rates, 2, 7, 3), draw_noise(rates, 7, 1, 3)):
        assert (other != first).mean() > 0.3
    assert (first[0, 0] != first[0, 1]).mean() > 0.2  # samples differ


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_interleave_to_the_draw_of_one_device(world_size, accumulate):
    rates = np.full(9, 0.4, np.float32)
    together = draw_noise(rates, 3, 11, 2 * accumulate * world_size)[0]
    for rank in range(world_size):
        own = draw_noise(rates, 3, 11, 2, accumulate=accumulate, rank=rank, world_size=world_size)
        assert own.shape == (accumulate, 2, 9)
        np.testing.assert_array_equal(own.reshape(-1, 9), together[rank::world_size])


def test_noise_has_its_rates_and_keeps_the_mean():
    rates, count = np.array([0.0, 0.1, 0.5, 0.9], np.float32), 20_000
    noise = draw_noise(rates, 0, 0, count)[0]
    for column, rate in zip(noise.T, rates, strict=True):
        np.testing.assert_allclose(np.unique(column), [1.0] if rate == 0 else [0.0, 1 / (1 - rate)], rtol=1e-6)
        assert abs((column == 0).mean() - rate) < 4 * np.sqrt(0.25 / count)


def drop_each_column(network, counts: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of one image repeated: sample i without noise column i, the last one whole; and that image."""
    network.set_train(False)
    rates, columns = network.noise_rates, sum(counts)  # two branches a block, channels before the classifier
    assert len(rates) == columns
    np.testing.assert_allclose([*rates[:2], *rates[counts[0] - 2 :]], [0.0] * 2 + [0.3] * (2 + counts[1]), rtol=1e-6)
    noise = np.ones((columns + 1, columns), np.float32)
    noise[range(columns), range(columns)] = 0.0
    image = draw_batch(1)["image"]
    return to_arrays(network(Tensor(image.repeat(columns + 1, axis=0)), Tensor(noise)))["logits"], image


@pytest.mark.parametrize(("backbone", "head", "counts"), [("vit", "ecenet", (4, 16)), ("swin", "fcn", (10, 8))])
def test_every_noise_column_drops_something(backbone, head, counts):
    logits, _ = drop_each_column(tiny_network(backbone, head), counts)
    assert [i for i in range(sum(counts)) if np.abs(logits[i] - logits[-1]).max() < 1e-5] == []


def test_keeping_everything_changes_nothing():
    network = tiny_network("vit", "fcn")
    logits, image = drop_each_column(network, (4, 8))
    without = to_arrays(network(Tensor(image)))["logits"]
    np.testing.assert_allclose(without[0], logits[-1], atol=1e-6)


def test_dropping_a_branch_is_leaving_it_out():
    network = tiny_network("vit", "fcn")
    network.set_train(False)
    block, x = network.backbone.blocks[1], draw(2, 6, 16)
    noise = np.ones((2, 4), np.float32)
    noise[1, 2:] = 0.0, 2.0  # the second sample drops the attention of this block and doubles its MLP
    result = block(Tensor(x), Tensor(noise)).asnumpy()
    mlp = block.mlp(block.norm2(Tensor(x))).asnumpy()
    np.testing.assert_allclose(result[1], (x + 2.0 * mlp)[1], rtol=1e-5, atol=1e-6)
    assert np.abs(result[0] - x[0] - mlp[0]).max() > 1e-4


def test_noise_in_training_is_that_of_the_step(whole):
    step, _ = whole
    batch = draw_batch(4, seed=9)
    ones = np.ones((1, 4, len(step.network.noise_rates)), np.float32)
    still = np.zeros(1, np.float32)  # learning rate 0, so that the weights stay
    rates = step.network.noise_rates
    results = [
        run_step(step, still, noise, [batch], batch_counts(batch))[0]["ce"]
        for noise in (ones, ones, draw_noise(rates, 5, 0, 4), draw_noise(0.0 * rates, 5, 0, 4))
    ]
    assert results[0] == results[1] == results[3] != results[2]
    assert len(step.compile_cache) == 1
