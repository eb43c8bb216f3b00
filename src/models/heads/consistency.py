"""The feature consistency head beside any other head (DFR spec, section 2.4).

The paper (arXiv 2108.01296) says that such a head trains the relations of pairs of features; its layers are ours.

Letters: B batch, D embedding width, S levels, C_s and H_s x W_s channels and grid of level s.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import nn, ops

from src.functional import resize_bilinear
from src.models.layers import conv2d

WIDTHS = (64, 128, 256)  # of the levels that are read, from the finest on


class ConsistencyHead(nn.Cell):
    """Another head's outputs and, in training, an `embedding` of every position, which only the loss reads.

    The last three levels go through 1x1 convolutions to 64, 128 and 256 channels, ELU, are resized to the finest of
    their grids, concatenated and brought to D channels. Of Swin these are strides 8 to 32, so the embedding has 8.

    Args:
        main: the head whose outputs are passed on.
        in_channels, grids: C_s and (H_s, W_s) of the levels, finest first.
        channels: D.
        detach_backbone: keep the embedding's gradient from the backbone.
    """

    def __init__(
        self, main: nn.Cell, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], *, channels: int = 64,
        detach_backbone: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels is {channels}; give at least 1")
        self.main, self.detach_backbone = main, detach_backbone
        self.count = min(len(WIDTHS), len(in_channels))
        self.grid = tuple(grids[-self.count])
        widths = WIDTHS[-self.count :]
        pairs = zip(in_channels[-self.count :], widths, strict=True)
        self.reductions = nn.CellList([conv2d(width, reduced, 1) for width, reduced in pairs])
        self.embed = conv2d(sum(widths), channels, 1)
        self.keys = tuple(main.outputs)
        self.outputs = (*main.outputs, "embedding")
        self.noise_rates: np.ndarray = main.noise_rates
        self.align_corners = getattr(main, "align_corners", False)
        self.channels, self.output_grid = main.channels, getattr(main, "output_grid", grids[0])

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise of the other head or None -> its dict, in training with embedding
        (B, D, h, w), on the finest grid of the levels that are read."""
        outputs = self.main(features, noise)
        if not self.training:
            return outputs
        maps = ()
        for i in range(self.count):
            feature = features[len(features) - self.count + i]
            feature = ops.stop_gradient(feature) if self.detach_backbone else feature
            maps += (resize_bilinear(ops.elu(self.reductions[i](feature)), self.grid),)
        embedding = self.embed(ops.concat(maps, 1) if self.count > 1 else maps[0])
        values = ()
        for key in self.keys:
            values += (outputs[key],)
        values += (embedding,)
        # Not dict(zip(...)), whose entries get gradients of zero, nor an assignment, which has none.
        return {key: values[i] for i, key in enumerate(self.outputs)}

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes."""
        own = {name.removeprefix("main."): shape for name, shape in shapes.items() if name.startswith("main.")}
        return tuple(f"main.{name}" for name in self.main.class_parameters(own))

    def count_macs(self) -> int:
        """Multiply-accumulates of one image, of the other head, whose outputs are served, alone."""
        return self.main.count_macs()
