"""The plain formulations of what `written.py` writes out for CPU: for Ascend and GPU, and to test against."""

from mindspore import nn, ops


class AttentionCore(nn.Cell):
    """softmax(q k^T) v of queries, keys and values (B, h, N, d) -> ((B, h, N, d), softmax)."""

    def __init__(self) -> None:
        super().__init__()
        self.similarity = ops.BatchMatMul(transpose_b=True)
        self.weigh = ops.BatchMatMul()

    def construct(self, q, k, v):
        share = ops.softmax(self.similarity(q, k), -1)
        return self.weigh(share, v), share


class BiasedAttentionCore(AttentionCore):
    """AttentionCore of windows (B G, h, N, d) whose scores get a bias (h, N, N) and a constant mask (G, 1, N, N)."""

    def construct(self, q, k, v, bias, mask):
        bias = bias + mask
        if mask.shape[0] > 1:
            bias = ops.tile(bias, (q.shape[0] // mask.shape[0], 1, 1, 1))
        share = ops.softmax(self.similarity(q, k) + bias, -1)
        return self.weigh(share, v), share
