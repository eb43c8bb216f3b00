"""From an image to scores and a label map at its own size: resize, whole or slide; scales and horizontal flip.

All of it is NumPy around one function, `logits_of(image) -> logits`, which is made for one network input size; the
network in training, a checkpoint and an exported graph give the same numbers here because only that function differs.

Letters: K classes, H x W size of the image, h x w size of a resized copy. Sizes are (height, width) in pixels. Images
are uint8 RGB (H, W, 3), logits float32 (K, H, W) at the size of the image that they belong to.
"""

from collections.abc import Callable, Iterable
from itertools import product

import cv2
import numpy as np

from src.config import EvalConfig
from src.constants import MEAN_PIXEL

Size = tuple[int, int]
LogitsOf = Callable[[np.ndarray], np.ndarray]  # image (H, W, 3) uint8 -> logits (K, H, W) float32
Make = Callable[[Size], LogitsOf]  # network input size -> its logits function; expected to keep what it has made

SIZE_STEP = 32  # sizes of scaled copies are rounded up to this, the largest stride of the backbones


def predict_label(
    image: np.ndarray,
    settings: EvalConfig,
    make: Make,
    num_classes: int,
    pad_pixel: tuple[int, int, int] = MEAN_PIXEL,
) -> np.ndarray:
    """Label map (H, W) uint8 of an image (H, W, 3): the class with the highest score, the first of equal ones.

    Raises ValueError where the network does not give num_classes classes and as `predict_scores` does.
    """
    scores = predict_scores(image, settings, make, pad_pixel)
    if len(scores) != num_classes:
        raise ValueError(
            f"the network gives {len(scores)} classes, but the data set has {num_classes}; "
            "evaluate it with the config that it was trained with"
        )
    return scores.argmax(axis=0).astype(np.uint8)


def predict_scores(
    image: np.ndarray, settings: EvalConfig, make: Make, pad_pixel: tuple[int, int, int] = MEAN_PIXEL
) -> np.ndarray:
    """Scores (K, H, W) float32 at the image's size: the logits of a single view, else the views' mean probabilities.

    A view is one of settings.scales, mirrored or not. A scale is relative to the image after settings.base_size, and
    each view is resized from the image itself, bilinear and without anti-aliasing as in training.
    Raises ValueError for an image that does not fit in mode whole.
    """
    base = limited_size(image.shape[:2], settings.base_size)
    if settings.mode == "whole":
        _check_fits(image.shape[:2], base, settings)
    views = list(product(settings.scales, (False, True) if settings.flip else (False,)))
    total = None
    for scale, flip in views:
        logits = _logits_of_view(image, scaled_size(base, scale), flip, scale, settings, make, pad_pixel)
        if len(views) == 1:
            return logits
        probabilities = _softmax(logits)
        if flip:
            probabilities = probabilities[:, :, ::-1]
        total = probabilities if total is None else total + probabilities
    return total / np.float32(len(views))


def limited_size(size: Size, limits: tuple[int, int] | None) -> Size:
    """The size with its ratio kept that fits closest into limits (long, short edge); the size itself for None."""
    if limits is None:
        return tuple(size)
    return scaled_size(size, min(max(limits) / max(size), min(limits) / min(size)))


def scaled_size(size: Size, scale: float) -> Size:
    """The size times the scale, rounded to whole pixels, at least 1 x 1."""
    return tuple(max(1, int(edge * scale + 0.5)) for edge in size)


def require_fit(sizes: Iterable[tuple[str, Size]], settings: EvalConfig) -> None:
    """Raises ValueError for the first of the (name, size) of images that mode whole cannot pad to eval.size."""
    for name, size in sizes:
        try:
            _check_fits(size, limited_size(size, settings.base_size), settings)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _check_fits(original: Size, base: Size, settings: EvalConfig) -> None:
    if base[0] <= settings.size[0] and base[1] <= settings.size[1]:
        return
    limits = "" if settings.base_size is None else f", {base[0]} x {base[1]} after eval.base_size,"
    raise ValueError(
        f"the image of {original[0]} x {original[1]} pixels (height x width){limits} is larger than eval.size "
        f"{settings.size[0]} x {settings.size[1]}, to which mode whole pads; set a larger eval.size or eval.mode=slide"
    )


def _logits_of_view(
    image: np.ndarray,
    size: Size,
    flip: bool,
    scale: float,
    settings: EvalConfig,
    make: Make,
    pad_pixel: tuple[int, int, int],
) -> np.ndarray:
    """Logits (K, H, W) at the image's size of its copy at `size`; still mirrored where flip is set."""
    view = image if size == image.shape[:2] else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    if flip:
        view = np.ascontiguousarray(view[:, ::-1])
    if settings.mode == "resize":
        logits = make(settings.size)(view)
    elif settings.mode == "whole":
        network_size = padded_size(settings.size, scale)
        logits = make(network_size)(pad_image(view, network_size, pad_pixel))[:, : size[0], : size[1]]
    else:
        logits = slide(view, settings.size, settings.stride, make(settings.size), pad_pixel)
    return resize_maps(logits, image.shape[:2])


def padded_size(size: Size, scale: float) -> Size:
    """Network input size of a scaled copy in mode whole: `size` itself at 1, else scaled, up to a multiple of 32."""
    if scale == 1.0:
        return size
    return tuple(-(-edge // SIZE_STEP) * SIZE_STEP for edge in scaled_size(size, scale))


def pad_image(image: np.ndarray, size: Size, pixel: tuple[int, int, int]) -> np.ndarray:
    """The image (H, W, 3) with `pixel` (R, G, B) added at the right and below up to `size`, which is not smaller."""
    padded = np.empty((*size, 3), np.uint8)
    padded[:] = pixel
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def slide(
    image: np.ndarray, window: Size, stride: Size, logits_of: LogitsOf, pad_pixel: tuple[int, int, int]
) -> np.ndarray:
    """Logits (K, H, W) of windows, averaged where they overlap; an image smaller than the window is padded to it."""
    height, width = image.shape[:2]
    image = pad_image(image, (max(height, window[0]), max(width, window[1])), pad_pixel)
    total, count = None, np.zeros(image.shape[:2], np.float32)
    tops = window_starts(image.shape[0], window[0], stride[0])
    lefts = window_starts(image.shape[1], window[1], stride[1])
    for top, left in product(tops, lefts):
        part = np.s_[top : top + window[0], left : left + window[1]]
        logits = logits_of(np.ascontiguousarray(image[part]))
        if total is None:
            total = np.zeros((len(logits), *image.shape[:2]), np.float32)
        total[:, part[0], part[1]] += logits
        count[part] += 1
    total /= count
    return total[:, :height, :width]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of ceil((length - window) / stride) + 1 windows; the last is moved back to end at the edge."""
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def resize_maps(maps: np.ndarray, size: Size) -> np.ndarray:
    """Bilinear resize with half-pixel centres and no anti-aliasing: (K, h, w) float32 -> (K, H, W) float32."""
    if maps.shape[1:] == tuple(size):
        return maps
    resized = np.empty((len(maps), *size), np.float32)
    for source, target in zip(maps, resized, strict=True):
        cv2.resize(np.ascontiguousarray(source), size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    powers /= powers.sum(axis=0)
    return powers
