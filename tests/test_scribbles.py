"""Scribbles from full masks: hand-computed shapes, the acceptance list of the DFR spec (section 8), audit, tool."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from src.config import load_config
from src.data import create_eval_samples, load_items, scribbles
from src.data.label_forms import draw_scribbles
from src.data.preparing import DIGEST_KEY
from src.data.reading import read_item
from src.data.scribble_audit import Audit, overlay
from src.data.scribbles import Pen, Stroke, components, paint, scribble, shrink, thin, to_xml
from src.data.toy_scenes import TOY_CLASSES, TOY_PALETTE, draw_scene
from tests.commands import refuse, run_command


@pytest.mark.parametrize(
    ("line", "ratio", "wanted"),
    [
        ([(0, 0), (10, 0)], 0.5, [(2.5, 0), (7.5, 0)]),
        ([(0, 0), (10, 0)], 0.3, [(3.5, 0), (6.5, 0)]),
        ([(0, 0), (4, 0), (4, 6)], 0.5, [(2.5, 0), (4, 0), (4, 3.5)]),
        ([(0, 0), (4, 0), (4, 6)], 0.8, [(1, 0), (4, 0), (4, 5)]),
        ([(0, 0), (4, 0), (4, 6)], 0.0, [(4, 1)]),
        ([(0, 0), (4, 0), (4, 6)], 1.0, [(0, 0), (4, 0), (4, 6)]),
        ([(3, 2)], 0.5, [(3, 2)]),
    ],
)
def test_shrinking_keeps_the_middle(line, ratio, wanted):
    np.testing.assert_allclose(shrink(line, ratio), wanted, atol=1e-12)


def scene(height=90, width=120) -> np.ndarray:
    """Background with an ellipse, a disc, a bent bar, a speck too small for a stroke and ignored pixels."""
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (35, 25), (25, 10), 20, 0, 360, 1, -1)
    cv2.circle(mask, (90, 25), 14, 2, -1)
    cv2.polylines(mask, [np.array([[15, 60], [50, 80], [100, 60]])], False, 3, 9)
    mask[2:5, 2:5] = 1
    mask[:, -3:] = 255
    return mask


def covers(points, mask, label) -> bool:
    return all(mask[y, x] == label for x, y in points)


def test_every_kept_component_has_one_stroke_inside_it():
    mask = scene()
    strokes, label = scribble(mask, "a", 0, Pen())
    assert [stroke.label for stroke in strokes] == [0, 1, 2, 3]
    assert all(covers(stroke.points, mask, stroke.label) for stroke in strokes)
    drawn = label != 255
    np.testing.assert_array_equal(label[drawn], mask[drawn])
    assert set(np.unique(label)) == {0, 1, 2, 3, 255}
    # the ellipse's stroke runs along its long axis (50 px), the disc's is no dot though its skeleton is
    ends = {stroke.label: np.array(stroke.points) for stroke in strokes}
    assert np.hypot(*(ends[1][-1] - ends[1][0])) > 25 and np.hypot(*(ends[2][-1] - ends[2][0])) > 12


def test_labelled_share_at_the_size_of_voc():
    mask = cv2.resize(scene(), (500, 375), interpolation=cv2.INTER_NEAREST)
    assert 0.01 < (scribble(mask, "a", 0, Pen())[1] != 255).mean() < 0.04


def test_what_gets_a_stroke():
    region = np.zeros((40, 60), bool)
    region[:, :20], region[:, 30:45], region[5:8, 50:53] = True, True, True
    assert [part.sum() for part in components(region, Pen(), False)] == [800, 600]
    assert [part.sum() for part in components(region, Pen(), True)] == [800, 600]  # the second is 25 % of the image
    assert [part.sum() for part in components(region[:, :44], Pen(), True)] == [800, 560]
    assert [part.sum() for part in components(region[:, :40], Pen(), True)] == [800, 400]
    wide = np.pad(region, ((0, 0), (0, 20)))
    assert [part.sum() for part in components(wide, Pen(), True)] == [800]
    speck = np.zeros((20, 20), bool)
    speck[:3, :3] = True
    assert len(components(speck, Pen(), False)) == 1  # the largest of its class, 9 pixels
    speck[0, 0] = False
    assert components(speck, Pen(), False) == []


def test_skeleton_of_a_bar_is_its_middle_line():
    bar = np.zeros((9, 30), bool)
    bar[2:7, 2:28] = True
    skeleton = thin(bar)
    assert set(np.nonzero(skeleton)[0]) == {4} and 20 <= skeleton.sum() <= 24


def test_a_square_that_thinning_would_take_away_has_a_stroke():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:9, 5:9] = 1
    assert not thin(np.pad(np.ones((2, 2), bool), 2)).any()  # the core of that square
    label = scribble(mask, "a", 0, Pen())[1]
    assert (label == 1).sum() > 4


@pytest.mark.parametrize("ratio", [1.0, 0.8, 0.5, 0.3, 0.0])
def test_length_ratio(ratio):
    bar = np.full((21, 121), 255, np.uint8)
    bar[5:16, 5:116] = 1
    strokes, label = scribble(bar, "a", 0, Pen(ratio=ratio))
    full = scribble(bar, "a", 0, Pen())[0][0].points
    points = strokes[0].points
    assert points[-1][0] - points[0][0] == pytest.approx(ratio * (full[-1][0] - full[0][0]), abs=1.01)
    assert (label == 1).any() and covers(points, bar, 1)


def test_extra_strokes_take_what_the_longest_left():
    """A cross of bars of other lengths: first the long bar, then an arm of the short one; a bar has nothing else."""
    cross = np.full((80, 140), 255, np.uint8)
    cross[35:46, 5:135] = 1
    cross[5:75, 65:76] = 1
    one, three = (scribble(cross, "a", 0, Pen(extra=n))[0] for n in (0, 2))
    assert len(one) == 1 and len(three) == 3 and three[0] == one[0]
    spans = [np.ptp(np.array(stroke.points), 0) for stroke in three]
    assert spans[0][0] > 100 and all(span[1] > 20 and span[1] > span[0] for span in spans[1:])
    assert all(covers(stroke.points, cross, 1) for stroke in three)
    pixels = [set(zip(*np.nonzero(paint([stroke], cross, 1) == 1), strict=True)) for stroke in three]
    assert len(pixels[0] & pixels[1]) <= 2 and len(pixels[1] & pixels[2]) <= 2
    bar = np.full((21, 121), 255, np.uint8)
    bar[5:16, 5:116] = 1
    assert len(scribble(bar, "a", 0, Pen(extra=3))[0]) <= 3


def test_same_seed_same_bytes_and_another_seed_another_image():
    mask, pen = scene(), Pen(jitter=1.5, drop=0.3)
    first, again = scribble(mask, "a", 0, pen), scribble(mask, "a", 0, pen)
    assert first[0] == again[0] and first[1].tobytes() == again[1].tobytes()
    others = [scribble(mask, name, seed, pen)[1].tobytes() for name, seed in (("b", 0), ("a", 1))]
    assert first[1].tobytes() not in others and others[0] != others[1]


def test_the_last_digit_of_a_distance_changes_no_stroke(monkeypatch):
    """OpenCV's distances of one mask differ by 1e-6 from call to call."""
    mask, measure, rng = scene(), cv2.distanceTransform, np.random.default_rng(0)
    first = scribble(mask, "a", 0, Pen())[0]

    def shaken(*arguments):
        found = measure(*arguments)
        return found * (1.0 + 3e-7 * rng.uniform(-1.0, 1.0, found.shape)).astype(np.float32)

    monkeypatch.setattr(scribbles.cv2, "distanceTransform", shaken)
    assert all(scribble(mask, "a", 0, Pen())[0] == first for _ in range(5))


def test_dropping_leaves_one_stroke_and_the_share_that_it_should():
    mask = scene()
    counts = [len(scribble(mask, str(i), 0, Pen(drop=0.5))[0]) for i in range(40)]
    assert min(counts) >= 1 and 1.6 < np.mean(counts) < 2.6  # 4 strokes
    assert len(scribble(mask, "a", 0, Pen(drop=0.999))[0]) == 1


def test_strokes_never_leave_their_class_even_when_shaken():
    mask = scene()
    for i in range(5):
        label = scribble(mask, str(i), 3, Pen(jitter=4.0, width=5))[1]
        assert (label[label != 255] == mask[label != 255]).all()


def test_an_image_without_a_label_has_no_stroke():
    strokes, label = scribble(np.full((20, 30), 255, np.uint8), "a", 0, Pen())
    assert strokes == [] and (label == 255).all()


@pytest.mark.parametrize(
    "wrong",
    [{"width": 0}, {"ratio": 1.2}, {"drop": 1.0}, {"jitter": -1.0}, {"jitter": float("nan")}, {"jitter": float("inf")},
     {"smallest": 0}, {"extra": -1}],
)  # fmt: skip
def test_wrong_pens_are_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"^{name} of the pen is {value}; give"):
        Pen(**wrong)


def test_xml_is_read_back_as_it_was_drawn():
    strokes = [Stroke(0, ((3, 4), (20, 9), (31, 4))), Stroke(1, ((12, 15),))]
    text = to_xml(strokes, (24, 40), ("background", "plane"))
    values, size = draw_scribbles(text, 3)
    assert size == (24, 40)
    own = paint(strokes, values, 3)  # a mask that agrees everywhere
    np.testing.assert_array_equal(own, values)
    assert (values == 1).sum() == 9  # a stroke of one point is a dot of 3 x 3 pixels but its corners' distance counts


def test_strokes_outside_the_image_are_an_error():
    text = to_xml([Stroke(1, ((3, 4), (90, 4)))], (24, 40), ("background", "plane"))
    with pytest.raises(ValueError, match=r"'plane' goes through \(90, 4\) .* outside the image of 24 x 40"):
        draw_scribbles(text, 3)


def test_audit_counts_and_names_what_is_missing():
    mask = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    audit = Audit(3)
    audit.add("a", np.array([[0, 255, 1, 0], [255] * 4], np.uint8), mask)
    assert (audit.pixels, audit.labelled, audit.wrong) == (8, 3, 1)
    assert audit.fraction == 3 / 8 and audit.purity == pytest.approx(2 / 3)
    np.testing.assert_array_equal(audit.wanted, [2, 2, 2])
    np.testing.assert_array_equal(audit.covered, [1, 1, 0])
    audit.add("b", np.full((2, 4), 255, np.uint8), mask)
    with pytest.raises(ValueError, match=r"no stroke in 1 of 2 images: b.*1 pixels .* in a: .*scribbled: sky; .*"):
        audit.require_usable(("road", "tree", "sky"))
    with pytest.raises(ValueError, match="scribbles of c are 1 x 4 .* the mask is 2 x 4"):
        audit.add("c", mask[:1], mask)


def test_scribbles_of_drawn_scenes():
    audit = Audit(len(TOY_CLASSES))
    for i in range(6):
        image, mask = draw_scene(5, i, (192, 256))
        label = scribble(mask, str(i), 0, Pen(background=None))[1]
        audit.add(str(i), label, mask)
        picture = overlay(image, label, TOY_PALETTE)
        assert (picture[label == 2] == TOY_PALETTE[2]).all()
        assert (picture[label == 255] > 0.5 * 255).all()
    assert audit.purity == 1.0 and 0.01 < audit.fraction < 0.12  # small images: a pen of 3 pixels is wide
    assert "road" in audit.table(TOY_CLASSES)


def write_data(root) -> str:
    """A data set of two images in the layout of `folder`, and a config that trains on it."""
    for split in ("train", "val"):
        for i in range(2):
            image, mask = draw_scene(7, i, (64, 96))
            for kind, array in (("images", image), ("labels", mask)):
                file = root / kind / split / f"{split}_{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    (root / "classes.yaml").write_text(f"names: [{', '.join(TOY_CLASSES)}]\n")
    file = root / "config.yaml"
    file.write_text(
        f"data: {{dataset: folder, root: '{root}', crop_size: [32, 32]}}\nmodel: {{backbone: {{name: vit_tiny}}, head: "
        "{name: fcn}}\nloss: {name: cross_entropy}\noptimizer: {name: adamw, lr: 1e-3}\n"
        "train: {steps: 1, batch_size: 1}\neval: {size: [64, 96]}\n"
    )
    return str(file)


SMALL = ("--smallest", "20")


def test_a_table_that_changed_draws_anew(tmp_path):
    """Label files hold class ids, which depend on the table as well as on the mask."""
    config, out = write_data(tmp_path / "data"), tmp_path / "drawn"
    command = ["tools/make_scribbles.py", "--config", config, "--output", out, *SMALL]
    told = run_command(*command).out
    assert f"background: {TOY_CLASSES[0]}, two strokes an image at most" in told and "2 made, 0 there" in told
    assert "0 made, 2 there already" in run_command(*command).out
    swapped = [TOY_CLASSES[i] for i in (2, 1, 0, *range(3, len(TOY_CLASSES)))]
    table = ", ".join(f"{value}: {name}" for value, name in enumerate(swapped))
    file = tmp_path / "data" / "classes.yaml"
    file.write_text(f"{file.read_text()}table: {{{table}, 255: ignore}}\n")
    again = run_command(*command).out
    assert "2 made, 0 there already" in again and "purity 100.0000%" in again


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--seed", "-1"], "-1 is no whole number from 0 on"), (["--pictures=-1"], "-1 is no whole number from 0 on"),
        (["--background", "9"], "--background is '9'; give the id of a class, 0 to 8, or none"),
        (["--jitter", "nan"], "jitter of the pen is nan; give"),
        (["data.dataset=toy_scenes", "data.root=null"], "is a drawn scene without a file, which takes no scribbles"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_before_drawing(tmp_path, wrong, told):
    config, out = write_data(tmp_path / "data"), tmp_path / "drawn"
    assert told in refuse("tools/make_scribbles.py", "--config", config, "--output", out, *wrong)
    assert not out.exists()


def test_the_tool_draws_what_training_reads(tmp_path):
    config, out = write_data(tmp_path / "data"), tmp_path / "drawn"
    command = ["tools/make_scribbles.py", "--config", config, "--output", out, "--background", "none"]
    result = run_command(*command, "--pictures", "1", "--xml", *SMALL)
    assert "2 images" in result.out and "purity 100.0000%" in result.out, result.err
    assert len(list((out / "pictures").glob("*.png"))) == 1 and len(list((out / "xml").glob("*.xml"))) == 2
    settings = load_config(config, [f"data.scribbles={out}"]).data
    items = load_items(settings, "train")
    sample = read_item(items[0], {})
    full = read_item(load_items(load_config(config).data, "train")[0], {i: i for i in (*range(9), 255)})
    drawn = sample["label"] != 255
    assert 0.005 < drawn.mean() < 0.3 and (sample["label"][drawn] == full["label"][drawn]).all()
    evaluated = create_eval_samples(settings)[0][1]["label"]
    assert (evaluated != 255).mean() > 0.8  # full labels
    facts = PngInfo()  # for a file that was changed behind the tool's back
    facts.add_text(DIGEST_KEY, Image.open(out / "train_0.png").info[DIGEST_KEY])
    Image.fromarray(np.where(drawn, 0, 255).astype(np.uint8)).save(out / "train_0.png", pnginfo=facts)
    assert re.search(r"pixels have another class than the masks, in train_0:", refuse(*command, "--xml", *SMALL))
    (out / "train_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file for 1 of 2 samples, the first is train_1.png"):
        load_items(settings, "train")
    with pytest.raises(ValueError, match="needs full labels"):
        load_config(config, [f"data.scribbles={out}", "data.val_split=train"])
