"""Products in 16-bit types: which one a device gets, and the dynamic scale of the loss that float16 needs.

Gradients that pass through float16 are lost below 6e-8 and infinite above 65504. So the loss is multiplied by a scale,
and the gradients, once in float32, are divided by it. bfloat16 has the range of float32 and needs none.
"""

import math

import mindspore as ms
from mindspore import Tensor, nn, ops

# Keys of a checkpoint's state: the scale, and steps since it last changed.
LOSS_SCALE, GOOD_STEPS = "loss_scale", "good_steps"
FIRST, LEAST, MOST = 2.0**16, 1.0, 2.0**24  # powers of 2: scaling changes no digit
PATIENCE = 2000  # good steps, after which the scale is doubled


class Product(nn.Cell):
    """A product of small matrices in a type."""

    def construct(self, x):
        return ops.MatMul()(x, x)


def multiplies(dtype) -> bool:
    """Whether this device has a matrix product in a type."""
    try:
        Product()(Tensor([[1.0, 2.0], [3.0, 4.0]], dtype)).asnumpy()
    except (RuntimeError, TypeError):
        return False
    return True


def half_type(level: str, target: str):
    """The 16-bit type of a network's products; None for float32.

    level: `O0` float32, `O2` 16 bit, `auto` 16 bit except on CPU, where it is slower; target: CPU, GPU or Ascend. Of
    16-bit types bfloat16 where the device multiplies in it, else float16.
    Raises ValueError for O2 on CPU.
    """
    if level == "O0" or (level == "auto" and target == "CPU"):
        return None
    if target == "CPU":
        raise ValueError(
            "train.amp_level O2 with device.target CPU: products in 16 bit are slower there than in float32, or do not "
            "exist; give O0, or auto, which means O0 on CPU"
        )
    return ms.bfloat16 if multiplies(ms.bfloat16) else ms.float16


def carry_scale(state: dict, scaled: bool) -> dict:
    """A state to go on with: with the first scale where it has none, without any where nothing is scaled.

    A run may go on on another device, which multiplies in another type.
    """
    first = {LOSS_SCALE: FIRST, GOOD_STEPS: 0}
    return first | state if scaled else {key: value for key, value in state.items() if key not in first}


def overflowed(state: dict, loss: float, norm: float) -> bool:
    """Whether a step's gradients are not finite because of the scale: a smaller one is to be tried.

    Not where the loss itself, which is not scaled, is not finite, and not at the smallest scale.
    """
    return LOSS_SCALE in state and state[LOSS_SCALE] > LEAST and math.isfinite(loss) and not math.isfinite(norm)


def next_scale(state: dict, loss: float, norm: float) -> dict:
    """The entries of a state after another step; none where nothing is scaled.

    Halved at once where the gradients overflow, doubled after PATIENCE steps since the last change without overflow
    (Micikevicius et al., "Mixed Precision Training", 2018). A bad step that is no overflow starts the count anew.
    """
    if LOSS_SCALE not in state:
        return {}
    if overflowed(state, loss, norm):
        return {LOSS_SCALE: max(state[LOSS_SCALE] / 2.0, LEAST), GOOD_STEPS: 0}
    good = state[GOOD_STEPS] + 1 if math.isfinite(norm) else 0
    if good < PATIENCE:
        return {LOSS_SCALE: state[LOSS_SCALE], GOOD_STEPS: good}
    return {LOSS_SCALE: min(state[LOSS_SCALE] * 2.0, MOST), GOOD_STEPS: 0}
