"""The network as it is served: raw image in, label map or logits out, every step in between in one graph.

Letters: H x W image as given, h x w network size, K classes.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

KINDS = ("labels", "logits")


class PredictNet(nn.Cell):
    """uint8 BGR image (1, H, W, 3) of any size -> label map (1, H, W) uint8 or logits (1, K, H, W) float32.

    The image is resized to the network's size and the logits back to the image's (bilinear, half-pixel centres, logits
    of a network with `align_corners` corner to corner); a size that fits already is left as it is. Evaluation, export
    and prediction all run this graph.

    Args:
        network: uint8 RGB (1, 3, h, w) -> dict with `logits`.
        size: (h, w).
        kind: `labels` or `logits`.
    """

    def __init__(self, network: nn.Cell, size: tuple[int, int], kind: str) -> None:
        super().__init__(auto_prefix=False)
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        self.network, self.size, self.labels = network, tuple(size), kind == "labels"
        # Sizes known only at run time do not export through ops.interpolate.
        self.resize = ops.ResizeBilinearV2(align_corners=False, half_pixel_centers=True)
        corners = getattr(network, "align_corners", False)
        self.restore = ops.ResizeBilinearV2(align_corners=corners, half_pixel_centers=not corners)
        self.argmax = ops.Argmax(axis=1, output_type=ms.int32)
        self.set_inputs(Tensor(shape=[1, None, None, 3], dtype=ms.uint8))
        self.set_train(False)

    def construct(self, image):
        height, width = image.shape[1], image.shape[2]
        image = image.transpose(0, 3, 1, 2).astype(ms.float32)
        image = ops.concat((image[:, 2:3], image[:, 1:2], image[:, 0:1]), 1)  # BGR to RGB
        logits = self.network(self.resize(image, self.size))["logits"]
        logits = self.restore(logits, (height, width))  # (1, K, H, W)
        if self.labels:
            return self.argmax(logits).astype(ms.uint8)
        return logits
