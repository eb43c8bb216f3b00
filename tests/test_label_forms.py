"""Published label forms that are no images: .mat files, run lengths, strokes."""

import numpy as np
import pytest
from scipy.io import savemat

from src.data.label_forms import (
    CONTEXT_IDS,
    context_table,
    decode_runs,
    draw_regions,
    draw_scribbles,
    draw_segment,
    read_coco_stuff,
    read_context,
    read_sbd,
)

STROKES = """<annotation><folder>VOC2012</folder><filename>a.jpg</filename>
<size><width>20</width><height>12</height><depth>3</depth></size>
{}</annotation>"""


def stroke(tag: str, *points: tuple[int, int]) -> str:
    return f"<polygon><tag>{tag}</tag>{''.join(f'<point><X>{x}</X><Y>{y}</Y></point>' for x, y in points)}</polygon>"


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("123", [1, 2, 3]),
        ("122O", [1, 2, 2, 1]),  # the fourth is 1 - 2 = -1: all five bits set, the highest is the sign
        ("X1`00", [40, 16, 0]),  # 40 = 8 + 32 * 1; 16 needs a second character, or it would be negative
    ],
)
def test_run_lengths_as_text(text, lengths):
    """By hand from the rule: five bits a character, lowest first, 32 added if more follow, 48 added to all."""
    total = sum(lengths)
    mask = decode_runs({"counts": text, "size": [total, 1]}, (total, 1))
    wanted = [value for i, length in enumerate(lengths) for value in [i % 2] * length]
    assert mask.dtype == bool and mask.ravel().astype(int).tolist() == wanted
    np.testing.assert_array_equal(mask, decode_runs({"counts": lengths, "size": [total, 1]}, (total, 1)))


def encode(mask: np.ndarray) -> str:
    """COCO's text for a mask (H, W), written from the format's description."""
    flat = mask.T.ravel().astype(int)
    bounds = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    lengths = ([0] if flat[0] else []) + np.diff(bounds).tolist()
    text = ""
    for i, length in enumerate(lengths):
        value = length - lengths[i - 2] if i > 2 else length
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def test_run_lengths_of_random_masks():
    rng = np.random.default_rng(0)
    for height, width, share in ((5, 7, 0.5), (40, 3, 0.02), (31, 33, 0.98), (64, 64, 0.0), (1, 1, 1.0)):
        mask = rng.random((height, width)) < share
        got = decode_runs({"counts": encode(mask), "size": [height, width]}, (height, width))
        np.testing.assert_array_equal(got, mask)


def test_regions_go_over_earlier_ones():
    left = {"category_id": 2, "segmentation": {"counts": [0, 6], "size": [2, 3]}}
    column = {"category_id": 458, "segmentation": {"counts": [2, 2, 2], "size": [2, 3]}}  # down the columns
    np.testing.assert_array_equal(draw_regions([left, column], (2, 3)), [[2, 458, 2], [2, 458, 2]])
    with pytest.raises(ValueError, match=r"cover 6 pixels, the image has 3 x 3"):
        draw_regions([left], (3, 3))


def test_mat_files(tmp_path):
    label = np.array([[0, 1, 20], [5, 5, 5]], np.uint8)
    savemat(tmp_path / "sbd.mat", {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": label}})
    np.testing.assert_array_equal(read_sbd(tmp_path / "sbd.mat"), label)
    savemat(tmp_path / "stuff.mat", {"S": label, "names": np.array(["a"] * 183, object), "captions": "x"})
    np.testing.assert_array_equal(read_coco_stuff(tmp_path / "stuff.mat"), label)
    wide = np.array([[0, 2, 459], [258, 1, 458]], np.uint16)
    savemat(tmp_path / "context.mat", {"LabelMap": wide})
    np.testing.assert_array_equal(read_context(tmp_path / "context.mat"), wide)
    savemat(tmp_path / "old.mat", {"S": label, "names": np.array(["a"] * 172, object)})
    with pytest.raises(ValueError, match=r"old.mat is of version 1.0"):
        read_coco_stuff(tmp_path / "old.mat")
    with pytest.raises(ValueError, match=r"old.mat holds no 'GTcls', only S, names"):
        read_sbd(tmp_path / "old.mat")
    (tmp_path / "cut.mat").write_bytes((tmp_path / "stuff.mat").read_bytes()[:150])
    with pytest.raises(ValueError, match="cannot read .*cut.mat"):
        read_coco_stuff(tmp_path / "cut.mat")
    with pytest.raises(FileNotFoundError):
        read_sbd(tmp_path / "none.mat")


def test_context_table_keeps_59_of_459():
    table = context_table()
    assert sorted(table) == list(range(460)) and len([v for v in table.values() if v]) == 59
    assert [table[value] for value in (0, 1, 2, 9, 431, 458, 459)] == [0, 0, 1, 2, 0, 59, 0]
    assert [k for k, v in sorted(table.items()) if v] == list(CONTEXT_IDS)


def test_strokes_are_three_pixels_wide_and_later_ones_win():
    text = STROKES.format(stroke("plane", (3, 2), (16, 2)) + stroke("background", (10, 0), (10, 11)))
    values, size = draw_scribbles(text, 3)
    assert size == values.shape == (12, 20) and values.dtype == np.uint8
    assert set(np.unique(values)) == {0, 1, 255}
    assert (values[1:4, 2:9] == 1).all() and (values[4:, :9] == 255).all() and (values[0, :9] == 255).all()
    assert (values[:, 9:12] == 0).all() and (values == 0).sum() == 36  # also where it crosses the first
    dot, _ = draw_scribbles(STROKES.format(stroke("tvmonitor", (5, 5))), 3)
    assert (dot[4:7, 4:7] == 20).all() and (dot == 20).sum() == 9
    thin, _ = draw_scribbles(text, 1)
    assert (thin == 1).sum() == 13  # 14 pixels long, one of them under the second stroke


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_segments_against_every_pixel_on_its_own(width):
    rng = np.random.default_rng(width)
    for _ in range(4):
        ends = rng.integers(-4, 24, (2, 2))
        values = np.zeros((14, 18), np.uint8)
        draw_segment(values, tuple(ends[0].tolist()), tuple(ends[1].tolist()), width, 1)
        for (y, x), value in np.ndenumerate(values):
            steps = ends[0] + np.linspace(0.0, 1.0, 2001)[:, None] * (ends[1] - ends[0])
            distance = np.sqrt(((steps - (x, y)) ** 2).sum(axis=1).min())
            if abs(distance - width / 2) > 1e-3:  # the steps are that coarse
                assert value == (distance < width / 2), (ends, x, y)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STROKES.format(stroke("aeroplanes", (1, 1))), "unknown tag 'aeroplanes'; known: background, plane"),
        (STROKES.format(stroke("cat")), "a stroke of 'cat' has no points"),
        (STROKES.format("")[:-5], "no scribble annotation"),
        ("<annotation></annotation>", "no scribble annotation"),
        (STROKES.format("<polygon><tag>cat</tag><point><X>1</X></point></polygon>"), "no scribble annotation"),
    ],
)
def test_texts_that_are_no_scribbles(text, message):
    with pytest.raises(ValueError, match=message):
        draw_scribbles(text, 3)


def test_images_without_strokes_are_unlabelled():
    assert (draw_scribbles(STROKES.format(""), 3)[0] == 255).all()
