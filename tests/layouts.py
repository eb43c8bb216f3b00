"""Small files in the layouts of the published data sets."""

from pathlib import Path

import numpy as np
from PIL import Image

from src.data.classes import Colour

SIZE = (6, 8)  # H, W


def save_photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    """A JPEG or PNG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def save_mask(path: Path, values: list[int], palette: tuple[Colour, ...] | None = None) -> np.ndarray:
    """An 8-bit PNG whose columns hold the values in turn, of palette mode if there is a palette; returns (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.array(values, np.uint8), SIZE[1])[None].repeat(SIZE[0], axis=0)
    mask = Image.fromarray(array)
    if palette is not None:
        mask.putpalette([part for colour in palette for part in colour])
    mask.save(path)
    return array


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_voc(base: Path, splits: dict[str, list[str]], values: list[int], palette: tuple[Colour, ...]) -> None:
    """JPEGImages, SegmentationClass and ImageSets/Segmentation of a VOC devkit."""
    for split, names in splits.items():
        write_lines(base / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        for name in names:
            save_photo(base / "JPEGImages" / f"{name}.jpg")
            save_mask(base / "SegmentationClass" / f"{name}.png", values, palette)
