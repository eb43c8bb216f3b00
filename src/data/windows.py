"""The part of a resized array that a crop keeps, computed without the rest.

Letters: H x W source, h x w what the whole of it would be resized to. A window is (top, left, height, width) in h x w.
"""

import cv2
import numpy as np

Size = tuple[int, int]
Window = tuple[int, int, int, int]

# In pixels of the source: how far from its place in the whole a pixel may be sampled. A step from 0 to 255 moves by one
# level.
TOLERANCE = 1 / 256


def nearest_places(source: int, resized: int) -> np.ndarray:
    """Which pixel of an edge of `source` each of `resized` pixels shows: (resized,) indices.

    The one whose middle is nearest, decided as OpenCV's INTER_NEAREST_EXACT does, in 16-bit fixed point.
    """
    step = ((source << 16) + resized // 2) // resized
    return np.minimum((np.arange(resized) * step + step // 2 - source % 2) >> 16, source - 1)


def cut_nearest(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """array[rows][:, columns] for (H, W) or (H, W, C) and ascending indices."""
    span = slice(int(rows[0]), int(rows[-1]) + 1)
    if span.stop - span.start < len(rows):  # rows come up repeatedly: they are shortened first
        return array[span].take(columns, axis=1).take(rows - span.start, axis=0)
    return array.take(rows, axis=0).take(columns, axis=1)


def cut_bilinear(image: np.ndarray, full: Size, resized: Size, window: Window, reduction: int = 1) -> np.ndarray:
    """The window of an image (H, W, C) resized by cv2.INTER_LINEAR, a few levels at most from the window of the whole.

    full: (H, W) before the image was decoded `reduction` times smaller; its last row and column need not be whole then.
    The resizing starts at lines of the source that fall, to TOLERANCE, on lines of the result, and ends with the
    window.
    """
    top, left, height, width = window
    scale = [reduction * new / edge for new, edge in zip(resized, full, strict=True)]
    row, y = first_line(top, full[0], reduction * resized[0])
    column, x = first_line(left, full[1], reduction * resized[1])
    bottom = min(image.shape[0], int((top + height) / scale[0]) + 2)
    right = min(image.shape[1], int((left + width) / scale[1]) + 2)
    part = cv2.resize(image[y:bottom, x:right], None, fx=scale[1], fy=scale[0], interpolation=cv2.INTER_LINEAR)
    return part[top - row : top - row + height, left - column : left - column + width]


def first_line(wanted: int, source: int, resized: int) -> tuple[int, int]:
    """The last line of the result, up to `wanted`, on which a line of the source falls, and that line.

    Bilinear weights of `wanted` must not reach beyond it. The first lines fall on each other whatever the sizes.
    """
    last = wanted - -(-resized // (2 * source))  # line i lies at (i + 1/2) source / resized - 1/2 of the source
    if last <= 0:
        return 0, 0
    rest = np.arange(last + 1) * source % resized  # times 1 / resized: beyond a line of the source
    near = np.minimum(rest, resized - rest) <= TOLERANCE * resized
    line = int(np.flatnonzero(near)[-1])
    return line, round(line * source / resized)
