"""Drawn street scenes with exact labels: the data that needs no download.

A street seen along its axis: the sky, house fronts and pavements running to a vanishing point, and things standing on
the ground, painted back to front. Every shape is filled with the same integer geometry in the image and in the label,
so labels are exact. Light, texture and noise are applied afterwards, to the image alone.

Colours carry little: most classes choose from shared palettes, object by object, and the light of every scene differs.
What separates the classes is place, shape and texture (see benchmarks/colour_classifier.py for the measurement).

Letters: H x W image height and width; coordinates and `depth` as in toy_canvas.
"""

import cv2
import numpy as np

from src.constants import IGNORE
from src.data.toy_canvas import GREYS, LEAVES, PAINTS, SKIES, Street, choose, fill, fill_box, fill_disc

TOY_CLASSES: tuple[str, ...] = (
    "sky", "building", "road", "sidewalk", "vegetation", "car", "person", "pole", "sign",
)  # fmt: skip
TOY_PALETTE: tuple[tuple[int, int, int], ...] = (
    (96, 164, 220), (150, 105, 90), (110, 84, 130), (226, 128, 200), (80, 150, 50), (30, 50, 190), (214, 40, 60),
    (190, 190, 190), (240, 216, 40),
)  # fmt: skip
SKY, BUILDING, ROAD, SIDEWALK, VEGETATION, CAR, PERSON, POLE, SIGN = range(len(TOY_CLASSES))

BASE_SIZE = (96, 128)  # H, W at which the pixel sizes below hold; other sizes scale them
SMALLEST_SIDE = 32

# Relative strength of the fine and of the blotchy texture, by class; the rest gets REST.
FINE = {SKY: 0.0, BUILDING: 0.04, ROAD: 0.13, SIDEWALK: 0.03, VEGETATION: 0.12}
BLOTCHES = {SKY: 0.0, BUILDING: 0.03, ROAD: 0.03, SIDEWALK: 0.03, VEGETATION: 0.22}
REST = 0.04


def draw_scene(seed: int, index: int, size: tuple[int, int] = BASE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw scene `index` of the set `seed`; the same arguments always give the same scene.

    Args:
        seed: number of the set, >= 0.
        index: number of the scene in the set, >= 0.
        size: (H, W) in pixels, both at least 32.

    Returns:
        image (H, W, 3) uint8 RGB and label (H, W) uint8: an index into TOY_CLASSES, or 255 where a pixel belongs to
        none of them (the bonnet of the own car, bins on the pavement).

    Raises:
        ValueError: a negative seed or index, or a size below the smallest.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"draw_scene: seed={seed}, index={index}; both must be 0 or larger")
    if min(size) < SMALLEST_SIDE:
        raise ValueError(f"draw_scene: size={tuple(size)} (H, W); both sides must be at least {SMALLEST_SIDE} pixels")
    street = plan_street(np.random.default_rng((seed, index)), size)
    draw_sky(street)
    draw_ground(street)
    for side in (0, 1):
        draw_fronts(street, side)
    draw_street_end(street)
    draw_things(street)
    draw_bonnet(street)
    return light(street), street.label


def plan_street(rng: np.random.Generator, size: tuple[int, int]) -> Street:
    """Empty arrays and a random perspective."""
    height, width = size
    horizon = height * rng.uniform(0.38, 0.48)
    return Street(
        image=np.zeros((height, width, 3), np.float32),
        label=np.full((height, width), IGNORE, np.uint8),
        rng=rng,
        unit=min(height / BASE_SIZE[0], width / BASE_SIZE[1]),
        vanish=(width * rng.uniform(0.38, 0.62), horizon),
        kerbs=(width * rng.uniform(0.0, 0.22), width * rng.uniform(0.78, 1.0)),
        fronts=(horizon + height * rng.uniform(0.13, 0.24), horizon + height * rng.uniform(0.13, 0.24)),
    )


def draw_sky(street: Street) -> None:
    """A vertical gradient with soft clouds."""
    height, width = street.label.shape
    top, bottom = choose(street.rng, SKIES), choose(street.rng, SKIES)
    share = np.linspace(0.0, 1.0, height)[:, None, None]
    clouds = cv2.resize(street.rng.normal(0.0, 0.07, (5, 6)), (width, height), interpolation=cv2.INTER_CUBIC)
    street.image[:] = top * (1 - share) + bottom * share + clouds[:, :, None]
    street.label[:] = SKY


def draw_ground(street: Street) -> None:
    """Paved ground with slab joints, the road on it, lane marks on the road."""
    rng, vanish, bottom = street.rng, street.vanish, street.label.shape[0] + 2
    width = street.label.shape[1]
    pavement = choose(rng, GREYS[2:], PAINTS[:2])
    fill_box(street, (0, vanish[1], width, bottom), SIDEWALK, pavement)
    joint = pavement * rng.uniform(0.55, 0.75)
    for depth in np.geomspace(0.12, 1.0, 9):
        cv2.line(street.image, (0, round(street.row(depth))), (width, round(street.row(depth))), joint.tolist(), 1)
    for x in np.linspace(-1.5 * width, 2.5 * width, 22):
        cv2.line(street.image, (round(vanish[0]), round(vanish[1])), (round(x), bottom), joint.tolist(), 1)
    tarmac = choose(rng, GREYS[:3])
    fill(street, (vanish, (street.kerbs[1], bottom), (street.kerbs[0], bottom)), ROAD, tarmac)
    mark = np.clip(tarmac + rng.uniform(0.2, 0.4), 0, 1)
    for start in np.arange(0.15, 1.0, 0.25) + rng.uniform(0.0, 0.1):
        ends = [(street.kerb(0, d) + street.kerb(1, d)) / 2 for d in (start, start + 0.12)]
        rows, half = [street.row(start), street.row(start + 0.12)], 2.5 * street.unit * start
        fill(street, ((ends[0] - half, rows[0]), (ends[0] + half, rows[0]), (ends[1] + half, rows[1]),
                      (ends[1] - half, rows[1])), ROAD, mark)  # fmt: skip


def draw_fronts(street: Street, side: int) -> None:
    """A row of house fronts along one side, now and then a hedge in place of a house."""
    rng, horizon = street.rng, street.vanish[1]
    count = int(rng.integers(2, 4))
    reach = street.vanish[0] - street.border(side)
    edges = street.border(side) + reach * np.linspace(0.0, 0.93, count + 1)
    for near, far in zip(edges[:-1], edges[1:], strict=True):
        rise = rng.uniform(0.55, 1.2) * horizon
        hedge = rng.random() < 0.2
        tops = [horizon - (0.3 if hedge else 1.0) * rise * (street.vanish[0] - x) / reach for x in (near, far)]
        feet = [street.front_foot(side, x) for x in (near, far)]
        colour = choose(rng, LEAVES) if hedge else choose(rng, PAINTS, GREYS)
        quad = np.array(((near, tops[0]), (far, tops[1]), (far, feet[1]), (near, feet[0])))
        fill(street, quad, VEGETATION if hedge else BUILDING, colour)
        if not hedge:
            draw_windows(street, quad, colour)


def draw_windows(street: Street, quad: np.ndarray, wall: np.ndarray) -> None:
    """Rows of windows on a house front; `quad` (4, 2) holds its corners from top left, clockwise."""
    glass = np.clip(wall * street.rng.choice((0.45, 0.6, 1.5)), 0.0, 1.0)
    columns = max(2, int(abs(quad[1, 0] - quad[0, 0]) / (9 * street.unit)))
    rows = max(2, int((quad[3, 1] - quad[0, 1]) / (13 * street.unit)))

    def at(u: float, v: float) -> np.ndarray:
        return (1 - v) * ((1 - u) * quad[0] + u * quad[1]) + v * ((1 - u) * quad[3] + u * quad[2])

    for column in range(columns):
        u0, u1 = (column + 0.25) / columns, (column + 0.75) / columns
        for row in range(rows):
            v0, v1 = (row + 0.25) / rows, (row + 0.75) / rows
            fill(street, (at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)), BUILDING, glass)


def draw_street_end(street: Street) -> None:
    """What closes the view where the street vanishes: a house or a group of trees."""
    rng, unit, (x, y) = street.rng, street.unit, street.vanish
    foot, half = y + 5 * unit, rng.uniform(14, 22) * unit
    if rng.random() < 0.5:
        wall = choose(rng, PAINTS, GREYS)
        box = np.array(((x - half, y - rng.uniform(10, 20) * unit), (x + half, foot)))
        fill_box(street, (*box[0], *box[1]), BUILDING, wall)
        draw_windows(street, np.array((box[0], (box[1, 0], box[0, 1]), box[1], (box[0, 0], box[1, 1]))), wall)
        return
    leaf = choose(rng, LEAVES)
    for offset in np.linspace(-half, half, 5):
        fill_disc(street, (x + offset, y - rng.uniform(2, 7) * unit), 7 * unit, VEGETATION, leaf)
    fill_box(street, (x - half, y - 4 * unit, x + half, foot), VEGETATION, leaf)


def draw_things(street: Street) -> None:
    """Place things on both pavements and on the road, then draw them from far to near."""
    rng, margin, things = street.rng, 8 * street.unit, []
    for side in (0, 1):
        kinds = [(draw_pole, 0.15), (draw_person, 0.45)]
        if rng.random() < 0.6:
            kinds.append((draw_tree, 0.85) if rng.random() < 0.8 else (draw_person, 0.75))
        if rng.random() < 0.2:
            kinds.append((draw_bin, 0.85))
        depths = np.linspace(0.35, 0.92, len(kinds)) + rng.uniform(-0.06, 0.06, len(kinds))
        for (draw, place), depth in zip(kinds, rng.permutation(depths), strict=True):
            kerb = street.kerb(side, depth)
            x = kerb + (place + rng.uniform(-0.1, 0.1)) * (street.wall(side, depth) - kerb)
            things.append((depth, np.clip(x, margin, street.label.shape[1] - margin), draw))
    for depth in np.array((0.3, 0.62))[: rng.integers(1, 3)] + rng.uniform(0.0, 0.2):
        left, right = street.kerb(0, depth), street.kerb(1, depth)
        things.append((depth, left + rng.choice((0.27, 0.73)) * (right - left), draw_car))
    for depth, x, draw in sorted(things, key=lambda thing: thing[0]):
        draw(street, (x, street.row(depth)), street.scale(depth))


def draw_tree(street: Street, foot: tuple[float, float], scale: float) -> None:
    """A trunk and a crown of overlapping discs, all of it vegetation."""
    rng, (x, y) = street.rng, foot
    fill_box(street, (x - 3 * scale, y - 26 * scale, x + 3 * scale, y), VEGETATION, choose(rng, LEAVES[3:4]))
    leaf = choose(rng, LEAVES)
    for angle in np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1):
        centre = (x + 9 * scale * np.cos(angle), y - (34 + 7 * np.sin(angle)) * scale)
        fill_disc(street, centre, rng.uniform(7, 11) * scale, VEGETATION, leaf * rng.uniform(0.85, 1.1))


def draw_pole(street: Street, foot: tuple[float, float], scale: float) -> None:
    """A post that carries a traffic sign, or now and then a lamp on an arm."""
    rng, (x, y) = street.rng, foot
    colour, half = choose(rng, GREYS, PAINTS[3:6]), max(2.5 * street.unit, 3.2 * scale)
    height = rng.uniform(58, 72) * scale
    fill_box(street, (x - half, y - height, x + half - 1, y), POLE, colour)
    fill_box(street, (x, y - height, x + half - 1, y), POLE, colour * 0.7)  # the side in shade
    if rng.random() < 0.85:
        draw_sign(street, (x, y - height + rng.uniform(6, 14) * scale), scale)
        return
    arm = rng.choice((-1, 1)) * 16 * scale
    fill_box(street, (min(x, x + arm), y - height, max(x, x + arm), y - height + 2 * half - 1), POLE, colour)


def draw_sign(street: Street, centre: tuple[float, float], scale: float) -> None:
    """A disc, triangle or square with a rim and a bar."""
    rng, (x, y) = street.rng, centre
    rim, face, radius = choose(rng, PAINTS), choose(rng, PAINTS, GREYS), rng.uniform(9.5, 12) * scale
    shape = rng.integers(3)
    for reach, colour in ((radius, rim), (0.68 * radius, face)):
        if shape == 0:
            fill_disc(street, centre, reach, SIGN, colour)
        elif shape == 1:
            low = y + reach
            fill(street, ((x, y - 1.1 * reach), (x + 1.1 * reach, low), (x - 1.1 * reach, low)), SIGN, colour)
        else:
            fill_box(street, (x - reach, y - 0.9 * reach, x + reach, y + 0.9 * reach), SIGN, colour)
    fill_box(street, (x - 0.35 * radius, y, x + 0.35 * radius, y + 0.2 * radius), SIGN, rim * 0.6)


def draw_person(street: Street, foot: tuple[float, float], scale: float) -> None:
    """Head, coat and two legs."""
    rng, (x, y) = street.rng, foot
    coat, trousers, stride = choose(rng, PAINTS), choose(rng, PAINTS, GREYS), rng.uniform(1.0, 3.0) * scale
    for way in (-1, 1):
        hip, ankle = x + way * 2.6 * scale, x + way * (2.6 * scale + stride)
        fill(street, ((hip - 2.5 * scale, y - 18 * scale), (hip + 2.5 * scale, y - 18 * scale),
                      (ankle + 2.5 * scale, y), (ankle - 2.5 * scale, y)), PERSON, trousers)  # fmt: skip
    fill(street, ((x - 6 * scale, y - 31 * scale), (x + 6 * scale, y - 31 * scale), (x + 6.5 * scale, y - 15 * scale),
                  (x - 6.5 * scale, y - 15 * scale)), PERSON, coat)  # fmt: skip
    skin = np.array((0.8, 0.62, 0.5)) * rng.uniform(0.45, 1.1)
    fill_disc(street, (x, y - 35 * scale), 4.2 * scale, PERSON, skin)


def draw_car(street: Street, foot: tuple[float, float], scale: float) -> None:
    """A car from behind, or crossing and seen from its side."""
    rng, (x, y) = street.rng, foot
    paint, across = choose(rng, PAINTS, GREYS), rng.random() < 0.35
    half = (25 if across else 17) * scale
    tyre, glass, lamp = np.full(3, 0.12), paint * rng.uniform(0.35, 0.6), np.array((0.75, 0.25, 0.2))
    for way in (-1, 1):
        if across:
            fill_disc(street, (x + way * 0.58 * half, y - 4 * scale), 4.5 * scale, CAR, tyre)
        else:
            wheel = x + way * 0.72 * half
            fill_box(street, (wheel - 3 * scale, y - 6 * scale, wheel + 3 * scale, y), CAR, tyre)
    fill_box(street, (x - half, y - 16 * scale, x + half, y - 4 * scale), CAR, paint)
    for inset, colour in ((0.0, paint), (2.5 * scale, glass)):
        top, low = y - 27 * scale + inset, y - 15 * scale - inset / 2
        fill(street, ((x - 0.6 * half + inset, top), (x + 0.6 * half - inset, top), (x + 0.85 * half - inset, low),
                      (x - 0.85 * half + inset, low)), CAR, colour)  # fmt: skip
    for way in (-1, 1):
        edge = x + way * 0.88 * half
        fill_box(street, (edge - 1.5 * scale, y - 13 * scale, edge + 1.5 * scale, y - 9 * scale), CAR, lamp)


def draw_bin(street: Street, foot: tuple[float, float], scale: float) -> None:
    """A bin: a thing of no class."""
    colour, (x, y) = choose(street.rng, PAINTS, LEAVES), foot
    fill_box(street, (x - 5 * scale, y - 15 * scale, x + 5 * scale, y), IGNORE, colour)
    fill_box(street, (x - 6 * scale, y - 17 * scale, x + 6 * scale, y - 14 * scale), IGNORE, colour * 0.6)


def draw_bonnet(street: Street) -> None:
    """The bonnet of the own car, in half of the scenes: of no class."""
    rng, (height, width) = street.rng, street.label.shape
    if rng.random() < 0.5:
        return
    colour, axes = choose(rng, PAINTS, GREYS), (round(0.42 * width), round(rng.uniform(0.06, 0.11) * height))
    for target, value in ((street.image, colour.tolist()), (street.label, IGNORE)):
        cv2.ellipse(target, (width // 2, height), axes, 0.0, 180.0, 360.0, value, -1)


def by_class(strengths: dict[int, float]) -> np.ndarray:
    """Table (256,) float32 from label to texture strength."""
    table = np.full(256, REST, np.float32)
    table[list(strengths)] = list(strengths.values())
    return table


def light(street: Street) -> np.ndarray:
    """Texture, a band of shadow, uneven tinted light and sensor noise: the image (H, W, 3) uint8."""
    rng, label, (height, width) = street.rng, street.label, street.label.shape
    cells = (max(2, round(height / (3 * street.unit))), max(2, round(width / (3 * street.unit))))
    blotches = cv2.resize(rng.standard_normal(cells, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    fine = rng.standard_normal((height, width), np.float32)
    shade = 1 + by_class(FINE)[label] * fine + by_class(BLOTCHES)[label] * blotches
    rows, columns = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None, :]
    angle, middle = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4, 0.4)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    band = (np.abs(along - middle) < rng.uniform(0.06, 0.15)) & (label != SKY)
    shade = shade * np.where(band, rng.uniform(0.55, 0.85), 1.0)
    shade = shade * (rng.uniform(0.7, 1.15) + rng.uniform(-0.3, 0.3) * columns + rng.uniform(-0.3, 0.3) * rows)
    tint = rng.uniform(0.9, 1.1, 3)
    noise = rng.standard_normal((height, width, 3), np.float32) * rng.uniform(0.01, 0.03)
    return (np.clip(street.image * shade[:, :, None] * tint + noise, 0.0, 1.0) * 255).round().astype(np.uint8)
