"""Bilinear sampling of a map at places that a network moves (AlignSeg spec, section 4).

Letters: B batch, C channels, H x W sampled map, h x w offsets and result.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.functional import check_choice, spread

SAMPLERS = ("standard", "legacy")
PADDINGS = ("zeros", "border")


@ms.ops.constexpr
def _base_grid(height: int, width: int) -> Tensor:
    """(1, 2, h, w): x then y of the places without offset, from -1 to 1 with both edges; -1 alone for one place."""
    y, x = np.linspace(-1.0, 1.0, height), np.linspace(-1.0, 1.0, width)
    return Tensor(np.stack(np.broadcast_arrays(x[None, :], y[:, None]))[None].astype(np.float32))


class Sampler(nn.Cell):
    """Map (B, C, H, W) and offsets (B, 2, h, w), channel 0 along the width, 1 along the height -> (B, C, h, w).

    Places lie on a grid over the map from corner to corner, and offsets move them: to larger x is to the right, so that
    what is seen moves left. Computed in float32, whatever comes in: half precision near the edge is off by up to a
    tenth of a pixel.

    Args:
        mode: `standard`: offsets in pixels of the result. `legacy`: offsets as shares of half the map, divided by its
            sides, as the released code executes it; for its checkpoints alone. A network trained with one does not work
            with the other.
        padding: what lies outside of the map, `zeros` or the `border` pixels.
        align_corners: whether -1 and 1 are the centres of the corner pixels (True) or the map's edges. Standard has
            only True: offsets 0 would not return the map otherwise.
    """

    def __init__(self, mode: str = "standard", padding: str = "zeros", align_corners: bool = True) -> None:
        super().__init__()
        check_choice("sampler", mode, SAMPLERS)
        check_choice("sampler_padding", padding, PADDINGS)
        if mode == "standard" and not align_corners:
            raise ValueError("sampler_align_corners false belongs to sampler 'legacy'; 'standard' has only true")
        self.standard, self.padding, self.align_corners = mode == "standard", padding, align_corners

    def construct(self, x, offset):
        _, _, height, width = offset.shape
        if self.standard:
            step_x, step_y = 2.0 / max(width - 1, 1), 2.0 / max(height - 1, 1)
        else:
            step_x, step_y = 1.0 / x.shape[3], 1.0 / x.shape[2]
        offset = offset.astype(ms.float32)
        moved = ops.concat((offset[:, 0:1] * step_x, offset[:, 1:2] * step_y), 1)
        places = (spread(_base_grid(height, width), moved.shape) + moved).transpose(0, 2, 3, 1)
        sampled = ops.grid_sample(x.astype(ms.float32), places, "bilinear", self.padding, self.align_corners)
        return sampled.astype(x.dtype)
