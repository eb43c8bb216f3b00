"""Learning rates, parameter groups and optimisers.

An optimiser is a Cell that is handed gradients and the numbers of its step. Those numbers come from the host, in
float64: nothing in the compiled step counts, so a resumed run continues exactly.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

BACKBONE = "backbone."  # what its parameters' names begin with in a network
NO_DECAY = (".gamma", ".beta", "pos_embed", "cls_token", "relative_position_bias_table")


def learning_rates(
    lr: float, steps: int, *, warmup_steps: int = 0, warmup_ratio: float = 1e-6, power: float = 1.0, min_lr: float = 0.0
) -> np.ndarray:
    """Learning rate of every step: (steps,) float64.

    Polynomial decay from lr to min_lr, (1 - t / steps) ** power; for t < warmup_steps multiplied by a factor that
    grows linearly from warmup_ratio to 1 (mmsegmentation's schedule, spec section 8.2).
    """
    t = np.arange(steps, dtype=np.float64)
    rates = min_lr + (lr - min_lr) * (1.0 - t / steps) ** power
    if warmup_steps:
        rates *= np.where(t < warmup_steps, 1.0 - (1.0 - t / warmup_steps) * (1.0 - warmup_ratio), 1.0)
    return rates


def batch_factor(name: str, images: int, reference: int | None) -> float:
    """Factor of learning rates meant for steps of `reference` images where a step has `images`; 1 without reference.

    The ratio for `sgd` (Goyal et al., "Accurate, Large Minibatch SGD", 2017), its square root for `adamw`, whose step
    length does not grow with the gradient's (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms", 2022).
    """
    ratio = images / (reference or images)
    return ratio if name == "sgd" else ratio**0.5


def has_decay(name: str) -> bool:
    """Whether weight decay applies: not to norms, position embeddings, class tokens and relative bias tables."""
    return not name.endswith(NO_DECAY)


# Loops over all parameters are maps: an unrolled loop makes the compilation of a step minutes long.
adamw_update = ops.MultitypeFuncGraph("adamw_update")
sgd_update = ops.MultitypeFuncGraph("sgd_update")
square_sum = ops.MultitypeFuncGraph("square_sum")
move = ops.MultitypeFuncGraph("move")


@adamw_update.register("Function", "Tuple", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor")
def _adamw_update(update, betas, inputs, decay, multiplier, parameter, moment, square, gradient):
    return update(
        parameter, moment, square, inputs[0] * multiplier, betas[0], betas[1], inputs[1], inputs[2] * decay, gradient
    )


@sgd_update.register("Number", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor")
def _sgd_update(momentum, inputs, decay, multiplier, parameter, velocity, gradient):
    fresh = ops.assign(velocity, momentum * velocity + gradient + decay * parameter)
    return ops.assign(parameter, parameter - inputs[0] * multiplier * fresh)


@move.register("Tensor", "Tensor", "Tensor")
def _move(share, average, parameter):
    return ops.assign(average, average + share * (parameter - average))


@square_sum.register("Tensor")
def _square_sum(gradient):
    return ops.L2Loss()(gradient)


class AdamW(nn.Cell):
    """Adam with bias correction and decoupled weight decay (Loshchilov and Hutter, 2019).

    Runs on the fused kernel `AdamWeightDecay`, which has no bias correction, through the substitution
    lr' = lr * sqrt(c2) / c1, epsilon' = epsilon * sqrt(c2), decay' = decay * c1 / sqrt(c2), with c_i = 1 - beta_i ** t:
    then lr' * (m / (sqrt(v) + epsilon') + decay' * p) is AdamW's update.
    t counts updates, not steps: one that was skipped leaves the moments as they were, so it must not count.

    Args:
        parameters: what is trained.
        decays, multipliers: weight decay and learning-rate multiplier of each parameter.
    """

    def __init__(
        self, parameters: Sequence[Parameter], decays: Sequence[float], multipliers: Sequence[float],
        betas: tuple[float, float], epsilon: float,
    ) -> None:  # fmt: skip
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.moments = self.parameters.clone("adam_m", "zeros")
        self.squares = self.parameters.clone("adam_v", "zeros")
        self.averages = ()  # see Averaged
        self.decays, self.multipliers = tuple(map(float, decays)), tuple(map(float, multipliers))
        self.betas, self.epsilon = betas, epsilon
        self.update = ops.AdamWeightDecay()
        self.map = ops.HyperMap()

    def inputs(self, updates: int, rate: float) -> np.ndarray:
        """Numbers of a step at learning rate `rate`, after `updates` updates, for `construct`: (3,) float32."""
        correction1, correction2 = (1.0 - beta ** (updates + 1) for beta in self.betas)
        root = correction2**0.5
        return np.array([rate * root / correction1, self.epsilon * root, correction1 / root], np.float32)

    def construct(self, gradients, inputs):
        update = ops.partial(adamw_update, self.update, self.betas, inputs)
        return self.map(update, self.decays, self.multipliers, self.parameters, self.moments, self.squares, gradients)


class SGD(nn.Cell):
    """SGD with momentum; weight decay is added to the gradient: u = momentum * u + g + decay * p; p = p - lr * u."""

    def __init__(
        self, parameters: Sequence[Parameter], decays: Sequence[float], multipliers: Sequence[float], momentum: float
    ) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.velocities = self.parameters.clone("velocity", "zeros")
        self.averages = ()  # see Averaged
        self.decays, self.multipliers = tuple(map(float, decays)), tuple(map(float, multipliers))
        self.momentum = momentum
        self.map = ops.HyperMap()

    def inputs(self, updates: int, rate: float) -> np.ndarray:
        """Numbers of a step for `construct`: (1,) float32, the learning rate."""
        return np.array([rate], np.float32)

    def construct(self, gradients, inputs):
        update = ops.partial(sgd_update, self.momentum, inputs)
        return self.map(update, self.decays, self.multipliers, self.parameters, self.velocities, gradients)


class Averaged(nn.Cell):
    """An optimiser that also keeps `averages` of its parameters: average = average + share * (parameter - average).

    The share is 1 - decay, at first more, 9 / (10 + updates): so the weights of the start are soon forgotten. A step
    that updates nothing leaves the averages. They begin as the parameters are when weights have been loaded, see
    `weights.begin_averages`.
    """

    def __init__(self, optimizer: AdamW | SGD, decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer, self.decay = optimizer, decay
        self.parameters = optimizer.parameters
        self.averages = self.parameters.clone("ema", "zeros")
        self.place = len(optimizer.inputs(0, 0.0))  # of the share among the inputs
        self.map = ops.HyperMap()

    def inputs(self, updates: int, rate: float) -> np.ndarray:
        """The optimiser's numbers of a step, then the share: float32."""
        share = max(1.0 - self.decay, 9.0 / (10.0 + updates))
        return np.append(self.optimizer.inputs(updates, rate), np.float32(share))

    def construct(self, gradients, inputs):
        updated = self.optimizer(gradients, inputs)
        return ops.depend(updated, self.map(ops.partial(move, inputs[self.place]), self.averages, self.parameters))


def layer_scale(backbone: nn.Cell, name: str, decay: float) -> float:
    """Share of the learning rate that a backbone's parameter gets: decay ** (num_layers + 1 - its layer).

    Layers are the backbone's to tell: 0 for embeddings, 1 .. num_layers for blocks, num_layers + 1 for what belongs to
    the head's side (layer-wise decay of Bao et al., "BEiT", 2021, and He et al., "Masked Autoencoders", 2021).
    Raises ValueError for a backbone that has no layers.
    """
    if not hasattr(backbone, "layer_of"):
        raise ValueError(
            f"optimizer.layer_decay is {decay}, but the backbone {type(backbone).__name__} does not tell the layers of "
            "its parameters; give null, or a vit or swin backbone"
        )
    return decay ** (backbone.num_layers + 1 - backbone.layer_of(name))


def multiplier_of(network: nn.Cell, name: str, settings) -> float:
    """Factor of the learning rate for a parameter of a network."""
    if name.startswith("head."):
        return settings.head_lr_multiplier
    if settings.layer_decay is None or not name.startswith(BACKBONE):
        return 1.0
    return layer_scale(network.backbone, name.removeprefix(BACKBONE), settings.layer_decay)


def create_optimizer(network: nn.Cell, settings, ema_decay: float | None = None) -> AdamW | SGD | Averaged:
    """The optimiser of `settings` (OptimizerConfig) over the network's trainable parameters, which keeps their averages
    where `ema_decay` is given."""
    parameters = network.trainable_params()
    decays = [settings.weight_decay if has_decay(p.name) else 0.0 for p in parameters]
    multipliers = [multiplier_of(network, p.name, settings) for p in parameters]
    if settings.name == "adamw":
        optimizer = AdamW(parameters, decays, multipliers, settings.betas, settings.epsilon)
    else:
        optimizer = SGD(parameters, decays, multipliers, settings.momentum)
    return optimizer if ema_decay is None else Averaged(optimizer, ema_decay)


def global_norm(gradients):
    """L2 norm over a tuple of gradients, a float32 scalar."""
    return ops.sqrt(2.0 * ops.addn(ops.HyperMap()(square_sum, gradients)))
