"""Graphs of the spec's numeric cases (sazs, section 12)."""

import numpy as np


def blocks(sizes: tuple[int, ...], between: float) -> np.ndarray:
    """Ones inside the blocks, self links included, `between` elsewhere."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(owner[:, None] == owner, 1.0, between)


def path(nodes: int) -> np.ndarray:
    """Each node linked to the next, no self links."""
    return np.diag(np.ones(nodes - 1), 1) + np.diag(np.ones(nodes - 1), -1)


def random_features(nodes: int, width: int = 48, groups: int = 3, seed: int = 0) -> np.ndarray:
    """Features of a few groups in a row, with noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, width))
    return centres[np.arange(nodes) * groups // nodes] + rng.normal(size=(nodes, width))


def split_image(height=8, width=8) -> np.ndarray:
    """Left half red, right half blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = image[:, width // 2 :, 2] = 255
    return image
