"""Training augmentation: settings -> f(sample, rng) -> sample.

Every array of a sample with two or more axes is per pixel, (H, W) or (H, W, C), and is resized, cropped, flipped and
padded together with the image. A transform that adds a column to the batch names it in its attribute `columns`.
The recipe is the common one of semantic segmentation (spec, section 8: random resize, crop with a limit on the share of
one class, flip, photometric distortion, pad).
"""

from collections.abc import Callable, Iterable, Mapping

import cv2
import numpy as np

from src.constants import IGNORE, MEAN_PIXEL
from src.data.reading import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]

CROP_TRIES = 10
LEVELS = np.arange(256, dtype=np.float32)
HUES = 180  # OpenCV's 8-bit hue counts steps of two degrees


def declared_columns(transforms: Iterable[Transform]) -> tuple[str, ...]:
    """Names of the columns that the transforms add to image, label and valid, in their order."""
    return tuple(column for transform in transforms for column in getattr(transform, "columns", ()))


def _per_pixel(sample: Sample, function: Callable[[str, np.ndarray], np.ndarray]) -> Sample:
    return {key: function(key, array) if array.ndim >= 2 else array for key, array in sample.items()}


def random_resize(base_size: tuple[int, int] | None, scale_range: tuple[float, float]) -> Transform:
    """Scales by a factor drawn uniformly from scale_range and keeps the ratio of height to width.

    base_size: limits in pixels for the (long, short) edge at factor 1; the image becomes as large as both limits times
    the factor allow. None: the image's own size times the factor. Image bilinear, everything else nearest.
    """

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample["image"].shape[:2]
        scale = rng.uniform(*scale_range)
        if base_size is not None:
            # whole pixels, so that the limits are those which the usual implementations draw
            long_limit, short_limit = (int(edge * scale) for edge in (max(base_size), min(base_size)))
            scale = min(long_limit / max(height, width), short_limit / min(height, width))
        size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))  # OpenCV counts (W, H)

        def resize(key: str, array: np.ndarray) -> np.ndarray:
            # the exact form samples at pixel centres like the bilinear one; the plain form is off by half a pixel
            method = cv2.INTER_LINEAR if key == "image" else cv2.INTER_NEAREST_EXACT
            return cv2.resize(array, size, interpolation=method)

        return _per_pixel(sample, resize)

    return apply


def random_crop(size: tuple[int, int], max_class_share: float) -> Transform:
    """Cuts a window of size (height, width), or of the whole edge where the image is smaller.

    Up to 10 windows are drawn until one holds more than one class and none with max_class_share or more of the labelled
    pixels; failing that, the last is taken. A share of 1 sets no limit.
    """

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        label = sample["label"]
        height, width = min(size[0], label.shape[0]), min(size[1], label.shape[1])
        for _ in range(CROP_TRIES if max_class_share < 1.0 else 1):
            top = int(rng.integers(label.shape[0] - height + 1))
            left = int(rng.integers(label.shape[1] - width + 1))
            rows, columns = slice(top, top + height), slice(left, left + width)
            if largest_class_share(label[rows, columns]) < max_class_share:
                break

        def crop(key: str, array: np.ndarray) -> np.ndarray:
            return array[rows, columns]

        return _per_pixel(sample, crop)

    return apply


def largest_class_share(label: np.ndarray) -> float:
    """Share of the most frequent class among the labelled pixels of (H, W) uint8; 1.0 where nothing is labelled."""
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return counts.max() / counts.sum() if counts.any() else 1.0


def random_flip(probability: float) -> Transform:
    """Mirrors left and right with this probability."""

    def mirror(key: str, array: np.ndarray) -> np.ndarray:
        return cv2.flip(array, 1)

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        return _per_pixel(sample, mirror) if rng.random() < probability else sample

    return apply


def photometric_distortion(
    brightness: float = 32.0,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: int = 18,
) -> Transform:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2, in the order of the SSD detector.

    Brightness comes first; contrast follows directly or comes last, with equal chance. brightness: largest shift in
    levels of 0..255; contrast, saturation: range of the factor; hue: largest shift in steps of two degrees.
    """

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        shift = rng.uniform(-brightness, brightness) if rng.random() < 0.5 else 0.0
        gain = rng.uniform(*contrast) if rng.random() < 0.5 else 1.0
        gain_first = rng.random() < 0.5
        colour_gain = rng.uniform(*saturation) if rng.random() < 0.5 else 1.0
        turn = int(rng.integers(-hue, hue + 1)) if rng.random() < 0.5 else 0
        image = change_levels(sample["image"], 1.0, shift)
        if gain_first:
            image = change_levels(image, gain, 0.0)
        image = change_colours(image, colour_gain, turn)
        if not gain_first:
            image = change_levels(image, gain, 0.0)
        return {**sample, "image": image}

    return apply


def change_levels(image: np.ndarray, gain: float, shift: float) -> np.ndarray:
    """gain * level + shift, rounded and clipped, for uint8 images of any shape."""
    if gain == 1.0 and shift == 0.0:
        return image
    return cv2.LUT(image, _as_levels(gain * LEVELS + shift))


def change_colours(image: np.ndarray, saturation: float, turn: int) -> np.ndarray:
    """Scales the HSV saturation and turns the hue by `turn` steps of two degrees; image (H, W, 3) uint8 RGB."""
    if saturation == 1.0 and turn == 0:
        return image
    hues = ((np.arange(256) + turn) % HUES).astype(np.uint8)
    tables = np.stack([hues, _as_levels(saturation * LEVELS), LEVELS.astype(np.uint8)], axis=-1)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _as_levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def pad(
    size: tuple[int, int], pixel: tuple[int, int, int] = MEAN_PIXEL, fills: Mapping[str, float] | None = None
) -> Transform:
    """Pads right and below to size (height, width): image with `pixel` (R, G, B), label with 255, valid with 0.

    fills: the value for further per-pixel keys. Raises ValueError for a larger image, KeyError for a key without value.
    """
    values = {"image": pixel, "label": IGNORE, "valid": 0, **(fills or {})}

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample["image"].shape[:2]
        if height > size[0] or width > size[1]:
            raise ValueError(f"cannot pad {height} x {width} pixels to {size[0]} x {size[1]}; crop before padding")

        def extend(key: str, array: np.ndarray) -> np.ndarray:
            if key not in values:
                raise KeyError(f"pad has no value for {key!r}; known: {', '.join(values)}. Name it in `fills`")
            padded = np.empty((*size, *array.shape[2:]), array.dtype)
            padded[:] = values[key]
            padded[:height, :width] = array
            return padded

        return sample if (height, width) == tuple(size) else _per_pixel(sample, extend)

    return apply


def present_classes(max_classes: int, column: str = "present") -> Transform:
    """Adds a column (max_classes,) int32: ids of the classes in the label, ascending, then -1.

    The class that a sample asks for is among them even where the crop has lost it.
    Raises ValueError where there are more classes than that.
    """

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        ids = np.flatnonzero(np.bincount(sample["label"].ravel(), minlength=IGNORE + 1)[:IGNORE])
        ids = np.union1d(ids, sample["category"]) if "category" in sample else ids
        if len(ids) > max_classes:
            raise ValueError(
                f"{len(ids)} classes in one crop, but at most {max_classes} have room; raise data.max_classes"
            )
        present = np.full(max_classes, -1, np.int32)
        present[: len(ids)] = ids
        return {**sample, column: present}

    apply.columns = (column,)
    return apply
