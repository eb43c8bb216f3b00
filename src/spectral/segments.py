"""From an image to its eigensegments (spec sazs, section 6).

Letters: H x W image, P pixels along a node (options.patch), h x w grid of nodes, N = h w, K eigenvectors, D width of
a feature.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from src.spectral.affinity import add_sparse, colour_affinity, connect, feature_affinity, prepare_features
from src.spectral.options import SpectralOptions
from src.spectral.solver import Spectrum, laplacian_spectrum, low_rank_spectrum

FORMAT = 1


class Segments(NamedTuple):
    """Eigenvalues (K,) float64, eigenvectors (K, h, w) and degrees (h, w) float32; facts about them in meta."""

    values: np.ndarray
    vectors: np.ndarray
    degree: np.ndarray
    meta: dict[str, Any]


def grid_of(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Nodes (h, w) of an image (H, W); ValueError for one smaller than a node."""
    grid = size[0] // patch, size[1] // patch
    if 0 in grid:
        raise ValueError(f"an image of {size[0]} x {size[1]} pixels holds no patch of {patch}; set a smaller patch")
    return grid


def crop_to_patches(image: np.ndarray, patch: int) -> np.ndarray:
    """The image without the pixels at its right and bottom that fill no patch."""
    height, width = grid_of(image.shape[:2], patch)
    return image[: height * patch, : width * patch]


def decompose(
    image: np.ndarray, features: np.ndarray | None, options: SpectralOptions, weights_sha256: str = ""
) -> Segments:
    """The eigenvectors of one image (H, W, 3) uint8 RGB with features (N, D) of its cropped part; None for `color`.

    Raises ValueError for features of another number of nodes, and where no solver succeeds.
    """
    grid = grid_of(image.shape[:2], options.patch)
    if (features is None) != (options.features == "color"):
        raise ValueError(f"spectral.features={options.features}: {'no' if features is None else 'needless'} features")
    if features is not None and len(features) != grid[0] * grid[1]:
        raise ValueError(f"{len(features)} features for a grid of {grid[0]} x {grid[1]} nodes; the numbers must agree")
    spectrum, components = _spectrum(crop_to_patches(image, options.patch), grid, features, options)
    meta = {
        "format": FORMAT, "image_size": list(image.shape[:2]), "image_sha256": image_digest(image),
        "patch": options.patch, "features": options.features, "weights_sha256": weights_sha256,
        "color_weight": options.colours, "normalise": options.normalise, "skip_trivial": options.skip_trivial,
        "solver": spectrum.solver, "max_residual": spectrum.residual, "components": components,
    }  # fmt: skip
    first = int(options.skip_trivial)
    vectors = spectrum.vectors.T[first:].reshape(-1, *grid).astype(np.float32)
    return Segments(spectrum.values[first:], vectors, spectrum.degree.reshape(grid).astype(np.float32), meta)


def _spectrum(
    image: np.ndarray, grid: tuple[int, int], features: np.ndarray | None, options: SpectralOptions
) -> tuple[Spectrum, int]:
    """Eigenvectors, and the components of the graph before links were added."""
    if features is None:
        graph = colour_affinity(image, grid)
    else:
        prepared = prepare_features(features, options.center)
        if not options.threshold:
            return low_rank_spectrum(prepared, options.count), 1
        graph = feature_affinity(prepared)
        if options.colours:
            add_sparse(graph, colour_affinity(image, grid), options.colours)
    graph, components = connect(graph, grid, options.link_weight)
    found = laplacian_spectrum(
        graph, options.count, normalise=options.normalise, solver=options.solver, seed=options.seed
    )
    return found, components


def image_digest(image: np.ndarray) -> str:
    """SHA-256 of an image's size and pixels."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def with_trivial_vector(segments: Segments) -> np.ndarray:
    """Eigenvectors (K or K + 1, h, w) with the trivial one first, whether or not it was left out."""
    if not segments.meta["skip_trivial"]:
        return segments.vectors
    level = 1 / np.sqrt(segments.degree.sum(dtype=np.float64))
    constant = np.full((1, *segments.degree.shape), level, segments.vectors.dtype)  # graphs take float32 alone
    return np.concatenate([constant, segments.vectors])


def upsample(maps: np.ndarray, size: tuple[int, int], patch: int) -> np.ndarray:
    """Maps (..., h, w) at the image's size (..., H, W): each node its patch; the rest repeats the edge."""
    maps = maps.repeat(patch, -2).repeat(patch, -1)
    rest = [(0, 0)] * (maps.ndim - 2) + [(0, size[0] - maps.shape[-2]), (0, size[1] - maps.shape[-1])]
    return np.pad(maps, rest, "edge")


def segment_masks(segments: Segments) -> np.ndarray:
    """[v > 0] of every eigenvector at the image's size, (K, H, W) bool."""
    height, width = segments.meta["image_size"]
    return upsample(segments.vectors > 0, (height, width), segments.meta["patch"])
