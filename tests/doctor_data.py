"""Small data sets for the doctor: clean ones of every kind. What can be wrong with one is in doctor_cases.py.

A clean set has 6 training and 4 validation pairs of 24 x 32 pixels; every mask holds road 0, sky 1 and tree 2.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from src.config import Config, load_config
from src.doctor import data
from src.doctor.finding import Finding
from tests.tiny import CONFIG

NAMES = ("road", "sky", "tree")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 128, 0))
SIZE = (24, 32)
COUNTS = {"train": 6, "val": 4}
SPLITS = tuple(COUNTS)
ONE_BASED = "{names: [road, sky, tree], table: {0: ignore, 1: road, 2: sky, 3: tree}}\n"


def write_clean(root: Path, classes: str = "names: [road, sky, tree]\n", size: tuple[int, int] = SIZE) -> Path:
    """The clean set; images are noise, so that no two are equal."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.integers(0, 256, (*size, 3), np.uint8)
            mask = np.repeat(rng.permutation(3).astype(np.uint8), -(-size[1] // 3))[: size[1]]
            Image.fromarray(image).save(root / "images" / split / f"{split}_{i}.png")
            Image.fromarray(np.tile(mask, (size[0], 1))).save(root / "labels" / split / f"{split}_{i}.png")
    (root / "classes.yaml").write_text(classes, encoding="utf-8")
    return root


def label(root: Path, number: int = 1, split: str = "train") -> Path:
    return root / "labels" / split / f"{split}_{number}.png"


def image(root: Path, number: int = 1, split: str = "train") -> Path:
    return root / "images" / split / f"{split}_{number}.png"


def labels(root: Path) -> list[Path]:
    return sorted((root / "labels").rglob("*.png"))


def values(file: Path) -> np.ndarray:
    return np.array(Image.open(file))


def change_labels(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replaces every mask by what `change` makes of its values."""
    for file in labels(root):
        Image.fromarray(change(values(file))).save(file)


def look_up(*to: int, dtype: type = np.uint8) -> Callable[[Path], None]:
    """Replaces indices 0, 1, 2 by others in all masks."""
    return lambda root: change_labels(root, lambda mask: np.array(to, dtype)[mask])


def as_jpeg(root: Path, i: int = 1, drop: int = 0) -> Path:
    """Replaces an image by a JPEG of 96 x 128 pixels, its mask by one of that size; returns the image.

    drop: bytes that are missing at the end; the end marker takes two.
    """
    photo = image(root, i).with_suffix(".jpg")
    Image.open(image(root, i)).resize((128, 96)).save(photo, quality=90)
    image(root, i).unlink()
    Image.open(label(root, i)).resize((128, 96), Image.NEAREST).save(label(root, i))
    photo.write_bytes(photo.read_bytes()[:-drop] if drop else photo.read_bytes())
    return photo


def save_all(root: Path, mode: str, suffix: str = ".png") -> None:
    for file in labels(root):
        mask = Image.open(file).convert(mode)
        file.unlink()
        mask.save(file.with_suffix(suffix))


def palette_masks(root: Path, order=(0, 1, 2)) -> None:
    """Palette PNG files; order: index -> whose colour it is shown in."""
    for file in labels(root):
        mask = Image.fromarray(values(file), mode="P")
        mask.putpalette([part for k in order for part in PALETTE[k]])
        mask.save(file)


def rename(file: Path, name: str) -> None:
    file.rename(file.with_name(name))


def put_value(root: Path, value: int) -> None:
    mask = values(label(root))
    mask[0, :5] = value
    Image.fromarray(mask).save(label(root))


def only(root: Path, split: str, values_kept: tuple[int, ...], other: int) -> None:
    """In a split all other values become `other`."""
    for file in (root / "labels" / split).iterdir():
        mask = values(file)
        Image.fromarray(np.where(np.isin(mask, values_kept), mask, other).astype(np.uint8)).save(file)


def with_ignore(root: Path) -> None:
    only(root, "train", (0, 1, 2), 0)
    for file in labels(root):
        mask = values(file)
        mask[:3] = 255
        Image.fromarray(mask).save(file)


def odd_sizes(root: Path) -> None:
    """Every pair of another size, down to three pixels."""
    for i, file in enumerate(labels(root)):
        size = (3 + 4 * i, 5 + 3 * i)
        Image.open(file).resize(size, Image.NEAREST).save(file)
        photo = root / "images" / file.relative_to(root / "labels")
        Image.open(photo).resize(size).save(photo)


def unicode_names(root: Path) -> None:
    for kind in ("images", "labels"):
        for split in COUNTS:
            for file in sorted((root / kind / split).iterdir()):
                rename(file, f"Stra\u00dfe \u65e5\u672c {file.stem}.png")
    names = "names: [Stra\u00dfe, \u7a7a, '\u0434\u0435\u0440\u0435\u0432\u043e: 1']\n"
    (root / "classes.yaml").write_text(names, "utf-8")


def nested(root: Path) -> None:
    for kind in ("images", "labels"):
        for file in sorted((root / kind / "train").iterdir()):
            (file.parent / "city" / "a").mkdir(parents=True, exist_ok=True)
            file.rename(file.parent / "city" / "a" / file.name)


def other_photos(root: Path) -> None:
    """Grey, 16-bit, palette and transparent photos, JPEG with notes behind its end, WebP."""
    Image.open(image(root, 0)).convert("L").save(image(root, 0))
    Image.open(image(root, 1)).convert("P").save(image(root, 1))
    Image.open(image(root, 2)).convert("RGBA").save(image(root, 2))
    photo = as_jpeg(root, 3)
    photo.write_bytes(photo.read_bytes() + b"notes of the camera")
    Image.open(image(root, 4)).save(image(root, 4).with_suffix(".webp"))
    image(root, 4).unlink()


def pack(file: Path) -> None:
    """The mask as a grey PNG of 2 bits a pixel."""
    mask = values(file)
    rows = [b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 6:].ravel()).tobytes() for row in mask]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], 2, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


CLEAN = {
    "grey PNG": lambda root: None,
    "palette PNG": palette_masks,
    "palette PNG in the data set's colours": lambda r: (palette_masks(r), (r / "classes.yaml").write_text(
        f"{{names: {list(NAMES)}, palette: {[list(colour) for colour in PALETTE]}}}\n")),
    "16-bit PNG": look_up(0, 1, 2, dtype=np.uint16),
    "with ignored pixels": with_ignore,
    "two-bit PNG": lambda r: [pack(file) for file in labels(r)],
    "BMP masks": lambda r: save_all(r, "L", ".bmp"),
    "odd sizes": odd_sizes,
    "names beyond ASCII": unicode_names,
    "nested folders": nested,
    "photos of other kinds": other_photos,
    "one-based, as the table says": lambda r: (look_up(1, 2, 3)(r), (r / "classes.yaml").write_text(ONE_BASED)),
    "one-based with 0 unlabelled, as the table says": lambda r: (
        look_up(1, 2, 3)(r), put_value(r, 0), (r / "classes.yaml").write_text(ONE_BASED)),
    "black and white, as the table says": lambda r: (look_up(0, 255, 255)(r), (r / "classes.yaml").write_text(
        "{names: [road, sky], table: {0: road, 255: sky}}\n")),
    "several values of one class": lambda r: (look_up(7, 8, 300, dtype=np.uint16)(r), (r / "classes.yaml").write_text(
        "{names: [road, sky], table: {7: road, 8: road, 300: sky, 0: ignore}}\n")),
    "other files beside them": lambda r: [
        (r / "images/train" / name).write_text("x") for name in ("notes.txt", ".hidden.png", "Thumbs.db")
    ],
}  # fmt: skip


def write_config(root: Path) -> str:
    """A config file that reads the data set in `root`."""
    lines = [line for line in CONFIG.format(root=root / "runs").splitlines() if "options:" not in line]
    file = root / "doctor.yaml"
    file.write_text("\n".join(lines).replace("dataset: toy_scenes", f"dataset: folder\n  root: {root}"), "utf-8")
    return str(file)


def configure(root: Path, *overrides: str) -> Config:
    """The config of `write_config`."""
    return load_config(write_config(root), overrides)


def examine(root: Path, *overrides: str) -> list[Finding]:
    """What the doctor says of the data set in `root`."""
    return data.examine(configure(root, *overrides), SPLITS, Console(quiet=True))[0]
