"""Training augmentation: settings -> f(sample, rng) -> sample.

Every array of a sample with two or more axes is per pixel, (H, W) or (H, W, C), and is resized, cropped, flipped and
padded together with the image. A transform that adds a column to the batch names it in its attribute `columns`.
The recipe is the common one of semantic segmentation (spec, section 8: random resize, crop with a limit on the share of
one class, flip, photometric distortion, pad).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import cv2
import numpy as np

from src.constants import IGNORE, MEAN_PIXEL
from src.data.reading import DECODERS, Sample, Size
from src.data.windows import cut_bilinear, cut_nearest, nearest_places

Transform = Callable[[Sample, np.random.Generator], Sample]

CROP_TRIES = 10
HUES = 180  # OpenCV's 8-bit hue counts steps of two degrees


def declared_columns(transforms: Iterable[Transform]) -> tuple[str, ...]:
    """Names of the columns that the transforms add to image, label and valid, in their order."""
    return tuple(column for transform in transforms for column in getattr(transform, "columns", ()))


def _per_pixel(sample: Sample, function: Callable[[str, np.ndarray], np.ndarray]) -> Sample:
    return {key: function(key, array) if array.ndim >= 2 else array for key, array in sample.items()}


def random_window(
    base_size: Size | None, scale_range: tuple[float, float], size: Size, max_class_share: float, reduced: bool = False
) -> Transform:
    """Resizes by a random factor and cuts a random window of it; nothing but the window is computed.

    base_size, scale_range: see `draw_size`. Image bilinear, everything else nearest.
    The window is of `size` (height, width), or of the whole edge where the resized image is smaller. Up to 10 are drawn
    until one holds more than one class and none with max_class_share or more of the labelled pixels; failing that, the
    last is taken. A share of 1 sets no limit.
    reduced: says in its attribute `reduction` how many times smaller an image may be decoded, see `SampleStream`.
    """

    draw = partial(draw_size, base_size=base_size, scale_range=scale_range)

    def choose_reduction(full: Size, rng: np.random.Generator) -> int:
        shrinking = min(edge / new for edge, new in zip(full, draw(full, rng), strict=True))
        return max(factor for factor in DECODERS if factor <= shrinking or factor == 1)

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        label, reduction = sample["label"], int(sample.get("reduction", 1))
        resized = draw(label.shape, rng)
        rows, columns = (nearest_places(*edges) for edges in zip(label.shape, resized, strict=True))
        height, width = min(size[0], resized[0]), min(size[1], resized[1])
        for _ in range(CROP_TRIES if max_class_share < 1.0 else 1):
            top = int(rng.integers(resized[0] - height + 1))
            left = int(rng.integers(resized[1] - width + 1))
            places = rows[top : top + height], columns[left : left + width]
            cut = cut_nearest(label, *places)
            if max_class_share == 1.0 or largest_class_share(cut) < max_class_share:
                break

        def crop(key: str, array: np.ndarray) -> np.ndarray:
            if key == "image":
                return cut_bilinear(array, label.shape, resized, (top, left, height, width), reduction)
            return cut if key == "label" else cut_nearest(array, *places)

        return _per_pixel({key: array for key, array in sample.items() if key != "reduction"}, crop)

    if reduced:
        apply.reduction = choose_reduction
    return apply


def draw_size(
    full: Size, rng: np.random.Generator, base_size: Size | None, scale_range: tuple[float, float]
) -> Size:
    """What an image of `full` (H, W) is resized to, by a factor drawn uniformly from scale_range; the ratio stays.

    base_size: limits in pixels for the (long, short) edge at factor 1; the image becomes as large as both limits times
    the factor allow. None: the image's own size times the factor.
    """
    scale = rng.uniform(*scale_range)
    if base_size is not None:
        # whole pixels, so that the limits are those which the usual implementations draw
        long_limit, short_limit = (int(edge * scale) for edge in (max(base_size), min(base_size)))
        scale = min(long_limit / max(full), short_limit / min(full))
    return tuple(max(1, int(edge * scale + 0.5)) for edge in full)


def class_counts(label: np.ndarray) -> np.ndarray:
    """Pixels of every class in (H, W) uint8, those without a label left out: (255,) int64."""
    # unlike NumPy's it leaves the interpreter lock and makes no integers of 8 bytes; counts are exact up to 2 ** 24
    return cv2.calcHist([label], [0], None, [IGNORE + 1], [0, IGNORE + 1])[:IGNORE, 0].astype(np.int64)


def largest_class_share(label: np.ndarray) -> float:
    """Share of the most frequent class among the labelled pixels of (H, W) uint8; 1.0 where nothing is labelled."""
    counts = class_counts(label)
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
    return cv2.addWeighted(image, gain, image, 0.0, shift)  # vectorised, which a table is not


def change_colours(image: np.ndarray, saturation: float, turn: int) -> np.ndarray:
    """Scales the HSV saturation and turns the hue by `turn` steps of two degrees; image (H, W, 3) uint8 RGB."""
    if saturation == 1.0 and turn == 0:
        return image
    hue, colour, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    if turn:
        hue = cv2.LUT(hue, ((np.arange(256) + turn) % HUES).astype(np.uint8))
    return cv2.cvtColor(cv2.merge((hue, change_levels(colour, saturation, 0.0), value)), cv2.COLOR_HSV2RGB)


def pad(
    size: tuple[int, int], pixel: tuple[int, int, int] = MEAN_PIXEL, fills: Mapping[str, float] | None = None
) -> Transform:
    """Pads right and below to size (height, width): image with `pixel` (R, G, B), label with 255.

    Adds `valid` (height, width) uint8: 1 for real pixels, 0 for padding. fills: the value for further per-pixel keys.
    Raises ValueError for a larger image, KeyError for a key without value.
    """
    values = {"image": pixel, "label": IGNORE, **(fills or {})}

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

        valid = np.zeros(size, np.uint8)
        valid[:height, :width] = 1
        padded = sample if (height, width) == tuple(size) else _per_pixel(sample, extend)
        return {**padded, "valid": valid}

    apply.columns = ("valid",)
    return apply


def present_classes(max_classes: int, column: str = "present") -> Transform:
    """Adds a column (max_classes,) int32: ids of the classes in the label, ascending, then -1.

    The class that a sample asks for comes first, even where the crop has lost it.
    Raises ValueError where there are more classes than that.
    """

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        ids = np.flatnonzero(class_counts(sample["label"]))
        if "category" in sample:
            ids = np.append(sample["category"], ids[ids != sample["category"]])
        if len(ids) > max_classes:
            raise ValueError(
                f"{len(ids)} classes in one crop, but at most {max_classes} have room; raise data.max_classes"
            )
        present = np.full(max_classes, -1, np.int32)
        present[: len(ids)] = ids
        return {**sample, column: present}

    apply.columns = (column,)
    return apply
