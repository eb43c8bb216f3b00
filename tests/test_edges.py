"""Boundaries of labels, made in the graph, against values worked out by hand and the distances of the release."""

from functools import cache

import numpy as np
import pytest
from mindspore import Tensor, nn
from scipy.ndimage import distance_transform_edt

from src.losses.edges import distance_edges, half_widths, reduce_edges, sobel_edges


class Edges(nn.Cell):
    def __init__(self, grid=None, frame=True, scope="all", downsample="nearest", radius=2, sobel=False) -> None:
        super().__init__()
        self.grid, self.frame, self.scope, self.downsample, self.sobel = grid, frame, scope, downsample, sobel
        self.widths = half_widths(radius)

    def construct(self, label):
        edge = distance_edges(label, self.widths, self.frame, self.scope)
        if self.sobel:
            edge = sobel_edges(label, self.scope)
        return edge if self.grid is None else reduce_edges(edge, self.grid, self.downsample)


edges_of = cache(Edges)


def edges(label, **options) -> np.ndarray:
    return edges_of(**options)(Tensor(np.asarray(label, np.int32)[None])).asnumpy()[0]


def square() -> np.ndarray:
    label = np.zeros((16, 16), np.int32)
    label[5:11, 5:11] = 1
    return label


def test_edges_by_hand():
    found = edges(square())
    assert found.sum() == 196 and not found[7:9, 7:9].any()
    assert edges(square(), grid=(2, 2)).tolist() == [[1, 1], [1, 0]]
    assert edges(square(), grid=(2, 2), downsample="max").tolist() == [[1, 1], [1, 1]]
    inside = edges(square(), frame=False)
    assert not inside[:3].any() and inside[3, 5:11].all() and inside.sum() == 84


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_edges_are_the_distances_of_the_release(radius):
    label = np.random.default_rng(0).integers(0, 3, (5, 6)).repeat(8, 0).repeat(8, 1)
    wanted = np.zeros(label.shape, bool)
    for value in range(3):
        region = np.pad(label == value, 1)
        distance = (distance_transform_edt(region) + distance_transform_edt(~region))[1:-1, 1:-1]
        wanted |= (distance > 0) & (distance <= radius)
    assert (edges(label, radius=radius) == wanted).all() and 0 < wanted.mean() < 1


def test_ignored_pixels_make_no_boundary_in_scope_seen():
    label = square()
    label[:, :8] = 255
    found = edges(label, scope="seen", frame=False)
    whole = edges(square(), frame=False)
    assert not found[:, :8].any() and (found[:, 10:] == whole[:, 10:]).all() and not found[0:3, 8:].any()
    assert found.any() and edges(label, frame=False)[0, 8]  # scope all: void is a region like any other


def test_sobel():
    found = edges(square(), sobel=True)
    ring = np.zeros((16, 16), bool)
    ring[4:12, 4:12], ring[6:10, 6:10] = True, False
    assert (found == ring).all()
    label = square()
    label[:, :8] = 255
    assert not edges(label, sobel=True, scope="seen")[:, :9].any()
