"""A contact sheet: samples with their labels over them, and augmented ones as the network sees them.

Letters: H x W image.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.config import Config
from src.constants import IGNORE
from src.data import train_transforms
from src.data.bad_samples import BadSamples
from src.data.classes import Classes
from src.data.loader import SampleStream
from src.data.reading import Item, read_item
from src.doctor.listing import list_split

TILE = 240  # pixels of a tile's longer side
MARGIN, LINE, TEXT = 8, 18, 12  # pixels: between tiles, of a line of text, of its letters
NOTE_LINE = 15  # pixels: of a line of text in the place of a picture
BACKGROUND, INK, GREY = (255, 255, 255), (32, 32, 32), (224, 224, 224)
OPACITY = 0.5
COLUMNS = 6  # tiles beside each other; every sample takes two of them: the image, and its label over it
HATCH = 8  # pixels between the stripes on ignored pixels

Tile = tuple[str, np.ndarray]  # caption, picture (H, W, 3) uint8 RGB


def draw_sheet(config: Config, splits: Sequence[str], classes: Classes, number: int) -> Image.Image:
    """`number` samples of each split, evenly spread, and as many augmented training samples, with a legend."""
    groups: list[tuple[str, list[Tile]]] = []
    for split in dict.fromkeys(splits):
        items = list_split(config.data, split)[0]
        groups.append((f"split {split}", list(sample_tiles(spread_out(items, number), classes))))
        if split == config.data.train_split and items:
            title = f"split {split}, augmented, as the network sees it: {config.data.crop_size} pixels"
            groups.append((title, list(augmented_tiles(config, items, classes, number))))
    return arrange(groups, classes)


def spread_out(items: Sequence[Item], number: int) -> list[Item]:
    """So many items at equal distances."""
    count = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def sample_tiles(items: Sequence[Item], classes: Classes) -> Iterator[Tile]:
    """Two tiles a sample; for one that cannot be read, grey ones with the reason."""
    for item in items:
        try:
            sample = read_item(item, classes.table)
        except (ValueError, OSError) as error:
            yield from note_tiles(item.name, str(error))
            continue
        yield item.name, shrink(sample["image"])
        yield present(sample["label"], classes), overlay(sample["image"], sample["label"], classes)


def augmented_tiles(config: Config, items: Sequence[Item], classes: Classes, number: int) -> Iterator[Tile]:
    """The first training samples of the configured seed, after the whole recipe."""
    data = config.data
    transforms = train_transforms(data, data.max_classes or len(classes))
    bad = BadSamples(items, classes.table, len(items))
    stream = SampleStream(items, classes.table, transforms, config.seed, length=number, bad=bad)
    names = stream.columns
    for i in range(number):
        try:
            sample = dict(zip(names, stream[i], strict=True))
        except ValueError as error:
            yield from note_tiles(f"sample {i}", str(error))
            continue
        image = sample["image"].transpose(1, 2, 0)
        yield items[int(sample["item"])].name, shrink(image)
        yield present(sample["label"], classes), overlay(image, sample["label"], classes)


def note_tiles(caption: str, text: str) -> Iterator[Tile]:
    """Two grey tiles over which a text flows; what both have no room for ends in dots."""
    font, room = load_font(), (TILE - MARGIN) // NOTE_LINE
    lines = wrap(text, font, TILE - MARGIN)
    if len(lines) > 2 * room:
        lines[2 * room - 1 :] = ["..."]
    for title, part in ((caption, lines[:room]), ("not usable", lines[room:])):
        tile = Image.new("RGB", (TILE, TILE), GREY)
        pen = ImageDraw.Draw(tile)
        for i, line in enumerate(part):
            pen.text((MARGIN // 2, MARGIN // 2 + i * NOTE_LINE), line, INK, font)
        yield title, np.asarray(tile)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of a text that are at most `width` pixels long, broken at spaces and slashes where there are any."""
    lines, rest = [], " ".join(text.split())
    while rest:
        end = 1
        while end < len(rest) and font.getlength(rest[: end + 1]) <= width:
            end += 1
        if end < len(rest):
            end = max(rest.rfind(" ", 0, end + 1), rest.rfind("/", 0, end)) + 1 or end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines


def present(label: np.ndarray, classes: Classes) -> str:
    """Names of the classes in a label, the largest first."""
    pixels = np.bincount(label.ravel(), minlength=IGNORE + 1)[: len(classes)]
    order = [k for k in np.argsort(-pixels, kind="stable") if pixels[k]]
    return ", ".join(classes.names[k] for k in order) or "nothing labelled"


def overlay(image: np.ndarray, label: np.ndarray, classes: Classes) -> np.ndarray:
    """A tile of the image with the classes' colours over it; ignored pixels are striped black."""
    image = shrink(np.ascontiguousarray(image))
    label = cv2.resize(label, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = classes.palette
    mixed = cv2.addWeighted(image, 1.0 - OPACITY, colours[label], OPACITY, 0.0)
    stripes = (np.add.outer(np.arange(label.shape[0]), np.arange(label.shape[1])) % HATCH) < 2
    mixed[label == IGNORE] = image[label == IGNORE]
    mixed[(label == IGNORE) & stripes] = 0
    return mixed


def shrink(image: np.ndarray) -> np.ndarray:
    """The image with its longer side made TILE pixels long."""
    scale = TILE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)


def arrange(groups: Sequence[tuple[str, list[Tile]]], classes: Classes) -> Image.Image:
    """Titles, tiles in rows, and the legend."""
    font = load_font()
    width = MARGIN + COLUMNS * (TILE + MARGIN)
    rows: list[tuple[str, list[Tile]]] = []
    for title, tiles in groups:
        rows += [(title if i == 0 else "", tiles[i : i + COLUMNS]) for i in range(0, max(1, len(tiles)), COLUMNS)]
    heights = [max([picture.shape[0] for _, picture in tiles], default=0) for _, tiles in rows]
    legend = -(-len(classes) // COLUMNS)
    total = sum(heights) + len(rows) * (LINE + MARGIN) + sum(LINE for title, _ in rows if title)
    sheet = Image.new("RGB", (width, total + legend * LINE + 2 * MARGIN), BACKGROUND)
    pen, y = ImageDraw.Draw(sheet), MARGIN
    for (title, tiles), height in zip(rows, heights, strict=True):
        if title:
            pen.text((MARGIN, y), title, INK, font)
            y += LINE
        for i, (caption, picture) in enumerate(tiles):
            x = MARGIN + i * (TILE + MARGIN)
            sheet.paste(Image.fromarray(picture), (x, y))
            pen.text((x, y + height + 2), shorten(caption, font), INK, font)
        y += height + LINE + MARGIN
    for k, name in enumerate(classes.names):
        x, line = MARGIN + (k % COLUMNS) * (TILE + MARGIN), y + (k // COLUMNS) * LINE
        pen.rectangle((x, line, x + LINE - 4, line + LINE - 4), classes.palette[k], INK)
        pen.text((x + LINE + 2, line), shorten(f"{k} {name}", font), INK, font)
    return sheet


def load_font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has letters beyond ASCII."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT)


def shorten(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, or as much of its beginning as a tile is wide."""
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(f"{text}...") > TILE:
        text = text[:-1]
    return f"{text}..."
