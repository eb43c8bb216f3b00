"""Optimisers against float64 references written from their papers, learning rates by hand, parameter groups."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import train
from src.config import OptimizerConfig, load_config
from src.engine.optimizer import create_optimizer, global_norm, has_decay, learning_rates
from src.models.backbones.swin import SwinTransformer
from src.models.backbones.vit import VisionTransformer
from src.models.heads.ecenet import ECENetHead
from src.models.segmentor import Segmentor
from tests.running import draw
from tests.tiny import write_config

STEPS = 50
SHAPES = {  # name: shape; the names decide decay and multiplier
    "backbone.fc.weight": (3, 5),
    "backbone.norm.gamma": (5,),
    "backbone.pos_embed": (1, 4, 5),
    "head.fc.weight": (4, 3),
    "head.fc.bias": (1,),
    "head.norm.beta": (3,),
}
DECAYED = ("backbone.fc.weight", "head.fc.weight", "head.fc.bias")
DECAY, MULTIPLIER = 0.3, 10.0


class Parameters(nn.Cell):
    """Holds parameters and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        for i, (name, shape) in enumerate(SHAPES.items()):
            setattr(self, f"p{i}", Parameter(Tensor(draw(*shape, seed=i)), name=name))


def start() -> tuple[Parameters, dict[str, np.ndarray]]:
    cell = Parameters()
    return cell, {p.name: p.asnumpy().astype(np.float64) for p in cell.get_parameters()}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Of very different sizes, and zero at first for one parameter."""
    rng = np.random.default_rng((7, step))
    values = {name: rng.normal(size=shape) * 10.0 ** (i - 3) for i, (name, shape) in enumerate(SHAPES.items())}
    if step < 3:
        values["head.fc.bias"] *= 0.0
    return {name: value.astype(np.float32) for name, value in values.items()}


def settings(**values) -> OptimizerConfig:
    return OptimizerConfig(**{"lr": 1.0, "weight_decay": DECAY, "head_lr_multiplier": MULTIPLIER, **values})


RATES = learning_rates(2e-3, STEPS, warmup_steps=5, warmup_ratio=0.1)


def run_steps(cell: Parameters, optimizer: nn.Cell) -> dict[str, np.ndarray]:
    for step in range(STEPS):
        values = ms.mutable(tuple(Tensor(value) for value in gradients(step).values()))
        optimizer(values, Tensor(optimizer.inputs(step, RATES[step])))
    return {p.name: p.asnumpy() for p in cell.get_parameters()}


def groups(name: str, step: int) -> tuple[float, float]:
    """Learning rate and decay of a parameter."""
    return RATES[step] * (MULTIPLIER if name.startswith("head.") else 1.0), DECAY if name in DECAYED else 0.0


@pytest.mark.parametrize(("betas", "epsilon"), [((0.9, 0.999), 1e-8), ((0.7, 0.9), 1e-2)])
def test_adamw_equals_the_reference(betas, epsilon):
    cell, expected = start()
    moments = {name: (np.zeros(shape), np.zeros(shape)) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            g, (m, v) = gradient.astype(np.float64), moments[name]
            lr, decay = groups(name, step)
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
            moments[name] = m, v
            m_hat, v_hat = m / (1 - betas[0] ** (step + 1)), v / (1 - betas[1] ** (step + 1))
            expected[name] = (1 - lr * decay) * expected[name] - lr * m_hat / (np.sqrt(v_hat) + epsilon)
    actual = run_steps(cell, create_optimizer(cell, settings(name="adamw", betas=betas, epsilon=epsilon)))
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_the_reference(momentum):
    cell, expected = start()
    velocities = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            lr, decay = groups(name, step)
            velocities[name] = momentum * velocities[name] + gradient.astype(np.float64) + decay * expected[name]
            expected[name] = expected[name] - lr * velocities[name]
    actual = run_steps(cell, create_optimizer(cell, settings(name="sgd", momentum=momentum)))
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_learning_rates_of_a_warm_up_and_a_line():
    rates = learning_rates(2.0, 10, warmup_steps=4, warmup_ratio=0.1)
    assert rates.shape == (10,) and rates.dtype == np.float64
    # line 2, 1.8, 1.6, ...; warm-up factors 0.1, 0.325, 0.55, 0.775
    np.testing.assert_allclose(rates[:5], [0.2, 0.585, 0.88, 1.085, 1.2], rtol=1e-12)
    np.testing.assert_allclose(rates[5:], [1.0, 0.8, 0.6, 0.4, 0.2], rtol=1e-12)


def test_learning_rates_of_a_power_end_above_min_lr():
    rates = learning_rates(3.0, 4, power=2.0, min_lr=1.0)
    np.testing.assert_allclose(rates, [3.0, 1 + 2 * 0.5625, 1.5, 1 + 2 * 0.0625], rtol=1e-12)
    np.testing.assert_allclose(learning_rates(3.0, 4, power=0.0), [3.0] * 4)
    np.testing.assert_allclose(learning_rates(6e-5, 160_000, warmup_steps=1500)[0], 6e-11, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "reference", "factor"), [("sgd", 8, 3.0), ("adamw", 6, 2.0), ("sgd", None, 1.0), ("adamw", 96, 0.5)]
)
def test_learning_rates_of_other_batches(name, reference, factor, tmp_path, capsys):
    optimizer = f"optimizer={{name: {name}, lr: 1e-3, min_lr: 1e-4, warmup_steps: 2}}"
    changes = [optimizer, f"optimizer.reference_batch={reference or 'null'}", "train.accumulate=4"]
    config = load_config(write_config(tmp_path), changes)
    plain = learning_rates(1e-3, 6, warmup_steps=2, min_lr=1e-4)
    np.testing.assert_allclose(train.rates(config, 3), factor * plain, rtol=1e-12)  # of steps of 2 * 4 * 3 images
    told = " ".join(capsys.readouterr().out.split())
    if reference:
        images = "24 = 2 x 4 micro-batches x 3 devices"
        assert f"learning rate 0.001 for {reference} images a step is {1e-3 * factor:g} for {images}" in told
    else:
        assert told == ""


def tiny_networks(depths: tuple[int, ...] = (1, 1, 1, 1)) -> dict[str, Segmentor]:
    vit = VisionTransformer((32, 48), width=16, depth=2, num_heads=2, taps=(1, 2), class_token=True)
    swin = SwinTransformer((64, 64), embed_width=8, depths=depths, num_heads=(1, 1, 2, 2), window=4)
    made = {}
    for (name, backbone), norm in zip({"vit": vit, "swin": swin}.items(), ("sync_batch", "group"), strict=True):
        head = ECENetHead(backbone.channels, backbone.grids, 5, channels=16, norm=norm)
        made[name] = Segmentor(backbone, head, (0.0,) * 3, (1.0,) * 3)
    return made


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_groups_of_real_networks(name):
    network = tiny_networks()[name]
    norms = {
        id(parameter)
        for _, cell in network.cells_and_names()
        if isinstance(cell, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm)
        for parameter in cell.get_parameters()
    }
    tables = ("backbone.pos_embed", "backbone.cls_token")
    optimizer = create_optimizer(network, settings(name="adamw"))
    assert len(optimizer.parameters) == len(optimizer.decays) == len(optimizer.multipliers) > 80
    free = set()
    for parameter, decay, multiplier in zip(
        optimizer.parameters, optimizer.decays, optimizer.multipliers, strict=True
    ):
        bias_table = parameter.name.endswith(".relative_position_bias_table")
        exempt = id(parameter) in norms or parameter.name in tables or bias_table
        free |= {parameter.name} if exempt else set()
        assert decay == (0.0 if exempt else DECAY), parameter.name
        assert has_decay(parameter.name) != exempt
        assert multiplier == (MULTIPLIER if id(parameter) in set(map(id, network.head.get_parameters())) else 1.0)
    wanted = {"vit": {*tables, "backbone.norms.1.gamma"}, "swin": {"head.fusion_norm.beta"}}[name]
    assert wanted <= free and ("swin" not in name or any("bias_table" in n for n in free))


LAYERS = {  # of 2 blocks (ViT) and of 1, 2, 1 and 1 (Swin): beginning of the name -> layer, 3 and 6 the head's side
    "vit": {
        "patch_embed.": 0, "pos_embed": 0, "cls_token": 0, "blocks.0.": 1, "blocks.1.": 2, "norms.0.": 3, "norms.1.": 3,
    },
    "swin": {
        "patch_embed.": 0, "stages.0.blocks.0.": 1, "stages.0.downsample.": 1, "stages.1.blocks.0.": 2,
        "stages.1.blocks.1.": 3, "stages.1.downsample.": 3, "stages.2.blocks.0.": 4, "stages.2.downsample.": 4,
        "stages.3.blocks.0.": 5, "norm0.": 6, "norm1.": 6, "norm2.": 6, "norm3.": 6,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "depths"), [("vit", None), ("swin", (1, 2, 1, 1))])
def test_learning_rates_fall_from_layer_to_layer(name, depths):
    network = tiny_networks(depths or (1, 1, 1, 1))[name]
    optimizer = create_optimizer(network, settings(name="adamw", layer_decay=0.5))
    last, met = max(LAYERS[name].values()), set()
    for parameter, multiplier in zip(optimizer.parameters, optimizer.multipliers, strict=True):
        if parameter.name.startswith("head."):
            assert multiplier == MULTIPLIER
            continue
        [begin] = [begin for begin in LAYERS[name] if parameter.name.startswith(f"backbone.{begin}")]
        assert multiplier == 0.5 ** (last - LAYERS[name][begin]), parameter.name
        met.add(begin)
    assert met == set(LAYERS[name])
    assert set(create_optimizer(network, settings(name="adamw", layer_decay=1.0)).multipliers) == {1.0, MULTIPLIER}


def test_layer_decay_needs_a_backbone_with_layers():
    network = Parameters()
    network.backbone = nn.Dense(2, 2)
    with pytest.raises(ValueError, match="optimizer.layer_decay is 0.75, but the backbone Dense does not tell the lay"):
        create_optimizer(network, settings(name="sgd", layer_decay=0.75))
    with pytest.raises(ValueError, match="less than or equal to 1"):
        settings(name="sgd", layer_decay=1.5)


def test_global_norm_is_that_of_all_gradients_together():
    values = [draw(3, 4), draw(5, seed=1) * 100, draw(2, 2, 2, seed=2)]
    expected = np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for value in values))
    cell = GlobalNorm()
    np.testing.assert_allclose(cell(*map(Tensor, values)).asnumpy(), expected, rtol=1e-6)


class GlobalNorm(nn.Cell):
    """`global_norm` as a graph."""

    def construct(self, *gradients):
        return global_norm(gradients)
