"""Feature Reconstruction (ECENet spec, section 2): rebuilds a backbone map from intrinsic and diverse halves.

Letters: B batch, C channels of the level, m = ratio * C, H x W grid.
"""

from mindspore import nn, ops

from src.functional import check_choice, mean_positions, spread
from src.models.layers import LayerNorm2d, conv2d, create_norm, depthwise3x3, linear

FR_GATES = ("linear", "sigmoid", "one_plus")


class FeatureReconstruction(nn.Cell):
    """(B, C, H, W) -> rebuilt map (B, C, H, W) and gated diverse map (B, m, H, W), which the diversity loss reads.

    Args:
        channels: C.
        norm: normalisation after both convolutions, see `create_norm`.
        gate: `linear` multiplies by the raw gate g as released; `sigmoid` by sigmoid(g); `one_plus` by 1 + g. The
            linear gate starts near zero, because the mean of a normalised map is near zero.
        ratio: share m / C of the intrinsic branch; the release has one half.
    """

    def __init__(self, channels: int, *, norm: str = "sync_batch", gate: str = "linear", ratio: float = 0.5) -> None:
        super().__init__()
        check_choice("fr_gate", gate, FR_GATES)
        width = int(channels * ratio)
        if width < 2 or width > channels:
            raise ValueError(f"fr_ratio {ratio} of {channels} channels gives {width}; need 2 to {channels}")
        self.gate = gate
        self.intrinsic = conv2d(channels, width, 1, bias=False)
        self.intrinsic_norm = create_norm(norm, width)
        self.diverse = depthwise3x3(width)
        self.diverse_norm = create_norm(norm, width)
        self.gate_reduce = linear(width, width // 2, bias=False)
        self.gate_expand = linear(width // 2, width, bias=False)
        self.combine = conv2d(2 * width, channels, 1, bias=False)
        self.norm = LayerNorm2d(channels)
        self.channels, self.width = channels, width

    def construct(self, x):
        intrinsic = self.intrinsic_norm(self.intrinsic(x))  # (B, m, H, W)
        diverse = self.diverse_norm(self.diverse(intrinsic))
        gate = self.gate_expand(ops.relu(self.gate_reduce(mean_positions(diverse))))  # (B, m)
        if self.gate == "sigmoid":
            gate = ops.sigmoid(gate)
        elif self.gate == "one_plus":
            gate = 1.0 + gate
        diverse = diverse * spread(gate.expand_dims(-1).expand_dims(-1), diverse.shape)
        return self.norm(self.combine(ops.concat((diverse, intrinsic), 1))), diverse

    def count_macs(self, positions: int) -> int:
        """Multiply-accumulates of one map of `positions` = H * W."""
        width = self.width
        return positions * (3 * self.channels * width + 9 * width) + 2 * width * (width // 2)
