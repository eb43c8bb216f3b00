"""Learning rates, parameter groups and optimisers.

An optimiser is a Cell that is handed gradients and the numbers of its step. Those numbers come from the host, in
float64: nothing in the compiled step counts, so a resumed run continues exactly.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

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


def has_decay(name: str) -> bool:
    """Whether weight decay applies: not to norms, position embeddings, class tokens and relative bias tables."""
    return not name.endswith(NO_DECAY)


# Loops over all parameters are maps: an unrolled loop makes the compilation of a step minutes long.
adamw_update = ops.MultitypeFuncGraph("adamw_update")
sgd_update = ops.MultitypeFuncGraph("sgd_update")
square_sum = ops.MultitypeFuncGraph("square_sum")


@adamw_update.register("Function", "Tuple", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor")
def _adamw_update(update, betas, inputs, decay, multiplier, parameter, moment, square, gradient):
    return update(
        parameter, moment, square, inputs[0] * multiplier, betas[0], betas[1], inputs[1], inputs[2] * decay, gradient
    )


@sgd_update.register("Number", "Tensor", "Number", "Number", "Tensor", "Tensor", "Tensor")
def _sgd_update(momentum, inputs, decay, multiplier, parameter, velocity, gradient):
    fresh = ops.assign(velocity, momentum * velocity + gradient + decay * parameter)
    return ops.assign(parameter, parameter - inputs[0] * multiplier * fresh)


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
        self.decays, self.multipliers = tuple(map(float, decays)), tuple(map(float, multipliers))
        self.momentum = momentum
        self.map = ops.HyperMap()

    def inputs(self, updates: int, rate: float) -> np.ndarray:
        """Numbers of a step for `construct`: (1,) float32, the learning rate."""
        return np.array([rate], np.float32)

    def construct(self, gradients, inputs):
        update = ops.partial(sgd_update, self.momentum, inputs)
        return self.map(update, self.decays, self.multipliers, self.parameters, self.velocities, gradients)


def create_optimizer(network: nn.Cell, settings) -> AdamW | SGD:
    """The optimiser of `settings` (OptimizerConfig) over the network's trainable parameters."""
    parameters = network.trainable_params()
    decays = [settings.weight_decay if has_decay(p.name) else 0.0 for p in parameters]
    multipliers = [settings.head_lr_multiplier if p.name.startswith("head.") else 1.0 for p in parameters]
    if settings.name == "adamw":
        return AdamW(parameters, decays, multipliers, settings.betas, settings.epsilon)
    return SGD(parameters, decays, multipliers, settings.momentum)


def global_norm(gradients):
    """L2 norm over a tuple of gradients, a float32 scalar."""
    return ops.sqrt(2.0 * ops.addn(ops.HyperMap()(square_sum, gradients)))
