"""Fusion `project` in the served graph: class shares moved to what is smooth on an image's graph (SAZS spec, 7).

Letters: K classes, H x W image, V eigenvectors with the trivial one, h x w grid of nodes, N = h w.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.engine.predict_net import PredictNet

MORE_INPUTS = {"eigenvectors (V, h, w), the trivial one among them": 3, "degrees (h, w)": 2}  # and their axes
ALPHA = 0.5  # share of the smooth part


class ProjectNet(nn.Cell):
    """uint8 BGR image (1, H, W, 3), vectors (V, h, w), degree (h, w) float32 -> label map or shares (1, K, H, W).

    (1 - alpha) p + alpha V V^T D p, as `fused.project_shares` has it. The vectors are D-orthonormal, and their grid is
    taken to cover the image.

    Args:
        graph: gives logits.
        kind: `labels` or `logits`, which here are shares: they add up to 1 over the classes.
        alpha: see above.
    """

    def __init__(self, graph: PredictNet, kind: str, alpha: float = ALPHA) -> None:
        super().__init__(auto_prefix=False)
        self.graph, self.labels, self.alpha = graph, kind == "labels", alpha
        self.resize = ops.ResizeBilinearV2(align_corners=False, half_pixel_centers=True)
        self.to_basis, self.from_basis = ops.MatMul(transpose_b=True), ops.MatMul()
        self.argmax = ops.Argmax(axis=1, output_type=ms.int32)
        inputs = (Tensor(shape=[None] * axes, dtype=ms.float32) for axes in MORE_INPUTS.values())
        self.set_inputs(Tensor(shape=[1, None, None, 3], dtype=ms.uint8), *inputs)
        self.set_train(False)

    def construct(self, image, vectors, degree):
        shares = ops.softmax(self.graph(image), 1)
        count, height, width = shares.shape[1], shares.shape[2], shares.shape[3]
        h, w = vectors.shape[1], vectors.shape[2]
        nodes = self.resize(shares, (h, w)).reshape(count, h * w) * degree.reshape(1, h * w)
        basis = vectors.reshape(-1, h * w)
        smooth = self.from_basis(self.to_basis(nodes, basis), basis).reshape(1, count, h, w)
        fused = (1.0 - self.alpha) * shares + self.alpha * self.resize(smooth, (height, width))
        return self.argmax(fused).astype(ms.uint8) if self.labels else fused


def draw_spectrum() -> tuple[np.ndarray, np.ndarray]:
    """Smooth vectors (4, 5, 7), orthonormal in random degrees (5, 7), and these: any image's graph may be tried out."""
    rng = np.random.default_rng(0)
    degree = rng.uniform(1.0, 2.0, 35)
    y, x = np.mgrid[0:5, 0:7].reshape(2, -1)
    waves = np.stack([np.ones(35), np.cos(x / 2), np.cos(y / 2), np.cos((x + y) / 2)], 1)
    basis = np.linalg.qr(np.sqrt(degree)[:, None] * waves)[0] / np.sqrt(degree)[:, None]
    return basis.T.reshape(4, 5, 7).astype(np.float32), degree.reshape(5, 7).astype(np.float32)
