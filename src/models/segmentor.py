"""A backbone and a head behind the normalisation of their input.

Letters: B batch, K classes, H x W image, h x w output grid.
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.models.resizing import BIAS_TABLE, resize_bias_table, resize_position_embedding


class Segmentor(nn.Cell):
    """uint8 RGB images (B, 3, H, W) -> outputs of the head.

    Args:
        backbone: features of a normalised image; has `channels`, `grids`, `noise_rates`.
        head: outputs of the features; has `noise_rates`, and may have `align_corners`.
        mean, std: per RGB channel, in units of uint8.
    """

    def __init__(self, backbone: nn.Cell, head: nn.Cell, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.backbone_columns = len(backbone.noise_rates)
        self.align_corners = getattr(head, "align_corners", False)  # how the logits of this head are to be resized
        self.noise_rates = np.concatenate([backbone.noise_rates, head.noise_rates])
        if (self.noise_rates < 0).any() or (self.noise_rates >= 1).any():
            raise ValueError(
                f"drop rates from {self.noise_rates.min():g} to {self.noise_rates.max():g}; model.backbone.drop_path "
                "and model.head.dropout must be at least 0 and below 1"
            )

    def construct(self, image, noise=None):
        """image (B, 3, H, W) uint8 or float32 in 0..255, noise (B, n) or None -> dict with `logits` (B, K, h, w)."""
        # Channel by channel: numbers neither broadcast, which is slow on CPU, nor become constants of the image's size.
        planes = ()
        for i in range(3):
            planes += ((image[:, i : i + 1].astype(ms.float32) - self.mean[i]) / self.std[i],)
        image = ops.concat(planes, 1)
        if noise is None:
            return self.head(self.backbone(image))
        split = self.backbone_columns
        if split == 0:  # a slice of no columns is no tensor
            return self.head(self.backbone(image), noise)
        return self.head(self.backbone(image, noise[:, :split]), noise[:, split:])

    def weight_metadata(self) -> dict[str, str]:
        """Facts that travel with saved weights: the grid of the position embeddings, and what the head's cells tell."""
        grid = getattr(self.backbone, "position_grid", None)
        return ({} if grid is None else {"position_grid": f"{grid[0]}x{grid[1]}"}) | self.head_facts()

    def head_facts(self) -> dict[str, str]:
        """Settings of the head that its weights do not work without (`weight_facts` of its cells)."""
        cells = [cell for _, cell in self.head.cells_and_names()]
        return {key: value for cell in cells for key, value in getattr(cell, "weight_facts", {}).items()}

    def adapt_weights(self, weights: dict[str, np.ndarray], metadata: dict[str, str]) -> dict[str, np.ndarray]:
        """Weights of other sizes made to fit this network, bicubically.

        Position embeddings are resized to its grid of patches, tables of window biases to the side of its windows.
        Raises ValueError for weights of a head with other settings that they do not work without.
        """
        weights, name = dict(weights), "backbone.pos_embed"
        for key, value in self.head_facts().items() if any(name.startswith("head.") for name in weights) else ():
            trained = metadata.get(key, value)
            if trained != value:
                raise ValueError(
                    f"the weights were trained with {key} {trained!r} of the head, the network has {value!r}, with "
                    f"which they do not work; set model.head.{key}={trained}"
                )
        if name in weights and "position_grid" in metadata:
            source = tuple(int(side) for side in metadata["position_grid"].split("x"))
            weights[name] = resize_position_embedding(weights[name], source, self.backbone.position_grid)
        window = getattr(self.backbone, "window", None)
        for name, value in weights.items():
            if window and name.endswith(BIAS_TABLE) and len(value) != (2 * window - 1) ** 2:
                weights[name] = resize_bias_table(value, window)
        return weights
