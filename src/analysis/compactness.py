"""How compact a mask is (spec sazs, section 11). The paper's own formula is not known; these are ours.

Letters: A pixels of a component, Q their exposed sides.
"""

import numpy as np
from scipy.ndimage import label as connected_components
from scipy.spatial import ConvexHull

KINDS = ("polsby", "bribiesca", "solidity")


def exposed_sides(mask: np.ndarray) -> int:
    """Q: sides of pixels of the mask (H, W) bool that touch no pixel of it, holes and the image's edge included."""
    padded = np.pad(mask, 1).astype(np.int8)
    return int(np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum())


def polsby(mask: np.ndarray) -> float:
    """4 pi A / Q^2: pi / 4 for a square, less for anything else on a grid."""
    return float(4 * np.pi * mask.sum() / exposed_sides(mask) ** 2)


def bribiesca(mask: np.ndarray) -> float:
    """Sides that pixels share, between 0 for the fewest that hold A pixels together and 1 for a square's."""
    area = int(mask.sum())
    shared = (4 * area - exposed_sides(mask)) / 2
    fewest, most = area - 1, 2 * (area - np.sqrt(area))
    return float((shared - fewest) / (most - fewest)) if area > 1 else 1.0


def solidity(mask: np.ndarray) -> float:
    """A divided by the area of the convex hull of the pixels' corners."""
    rows, columns = np.nonzero(mask)
    corners = np.concatenate([np.stack([rows + i, columns + j], 1) for i in (0, 1) for j in (0, 1)])
    return float(mask.sum() / ConvexHull(corners).volume)  # of two dimensions the volume is the area


def mask_compactness(mask: np.ndarray, kind: str = "polsby") -> float:
    """Mean over the 4-connected components of a mask (H, W) bool, weighted by area.

    Raises ValueError for an unknown kind and for an empty mask.
    """
    measures = {"polsby": polsby, "bribiesca": bribiesca, "solidity": solidity}
    if kind not in KINDS:
        raise ValueError(f"analysis.compactness {kind!r} is not known; allowed: {', '.join(KINDS)}")
    if not mask.any():
        raise ValueError("compactness of an empty mask: leave out images without the class")
    components, count = connected_components(mask)
    parts = [components == i for i in range(1, count + 1)]
    return float(np.average([measures[kind](part) for part in parts], weights=[part.sum() for part in parts]))


def class_compactness(label: np.ndarray, num_classes: int, kind: str = "polsby") -> np.ndarray:
    """Compactness (K,) of each class's mask in a label map (H, W); NaN for classes that it does not show."""
    found = np.full(num_classes, np.nan)
    for k in np.unique(label):
        if k < num_classes:
            found[k] = mask_compactness(label == k, kind)
    return found
