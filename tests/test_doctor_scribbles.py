"""The doctor and training data of scribbles: no false alarm, and what is wrong with strokes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data import is_scribbled, load_classes, load_items
from src.doctor import data, scribbles
from src.doctor.finding import Finding
from tests.doctor_data import ONE_BASED, PALETTE, SPLITS, configure, examine, labels, values, write_clean

KEEP = slice(None, None, 8)  # every eighth row and column has a label


def scribble(root: Path, shift: int = 0) -> Path:
    """Strokes for the clean set as tools/make_scribbles.py stores them: class ids in the palette, 255 elsewhere.

    shift: of the values in the set's own masks.
    """
    folder = root / "scribbles"
    folder.mkdir()
    for file in labels(root):
        if file.parent.name == "train":
            drawn = np.full_like(values(file), 255)
            drawn[KEEP, KEEP] = values(file)[KEEP, KEEP] - shift
            mask = Image.fromarray(drawn, mode="P")
            mask.putpalette([part for colour in PALETTE for part in colour] + [0] * (3 * 253))
            mask.save(folder / file.name)
    return folder


def change(folder: Path, number: int, make) -> None:
    file = folder / f"train_{number}.png"
    Image.fromarray(make(values(file))).save(file)


def first(root: Path, folder: Path) -> list[Finding]:
    """The look before a training."""
    config = configure(root, f"data.scribbles={folder}")
    items = {split: load_items(config.data, split) for split in SPLITS}
    return data.check_first(config.data, load_classes(config.data), items)


def test_scribbles_raise_no_alarm(tmp_path):
    folder = scribble(write_clean(tmp_path))
    assert examine(tmp_path, f"data.scribbles={folder}") == first(tmp_path, folder) == []


def test_scribbles_beside_one_based_masks_raise_no_alarm(tmp_path):
    """Strokes hold class ids from 0 whatever the masks do: no shift, no colours of other classes."""
    root = write_clean(tmp_path, ONE_BASED)
    for file in labels(root):
        Image.fromarray(values(file) + np.uint8(1)).save(file)
    for file in (root / "labels" / "val").iterdir():  # the last value is missing there
        Image.fromarray(np.minimum(values(file), 2)).save(file)
    colours = ", ".join(str(list(colour)) for colour in PALETTE)
    (root / "classes.yaml").write_text(ONE_BASED.replace("{names", f"{{palette: [{colours}], names"))
    folder = scribble(root, shift=1)
    assert [f.code for f in examine(root, f"data.scribbles={folder}")] == ["class_absent"]  # of the validation split
    assert first(root, folder) == []


def test_an_image_without_a_stroke_is_named(tmp_path):
    folder = scribble(write_clean(tmp_path))
    change(folder, 2, lambda mask: np.full_like(mask, 255))
    (found,) = examine(tmp_path, f"data.scribbles={folder}")
    assert (found.code, found.severity) == ("images_without_stroke", "error")
    assert "1 of 6 images have no stroke" in found.text and "scribbles/train_2.png" in found.text
    with pytest.raises(ValueError, match="1 of 6 images have no stroke: .*scribbles/train_2.png"):
        first(tmp_path, folder)
    for number in range(6):
        change(folder, number, lambda mask: np.full_like(mask, 255))
    found = examine(tmp_path, f"data.scribbles={folder}")
    assert [(f.code, f.severity) for f in found] == [("split_unlabelled", "error")]


@pytest.mark.parametrize(("rows", "severity", "share"), [(24, "error", "2.08%"), (8, "warning", "0.69%")])
def test_strokes_of_another_class_than_the_masks_are_named(tmp_path, rows, severity, share):
    """24 labelled pixels of each of 6 images, every eighth row and column; wrong are those in some rows of a column."""
    folder = scribble(write_clean(tmp_path, size=(24, 64)))
    change(folder, 4, lambda mask: np.where(drawn_in(mask, rows), (mask + 1) % 3, mask).astype(np.uint8))
    (found,) = examine(tmp_path, f"data.scribbles={folder}")
    assert (found.code, found.severity) == ("strokes_disagree", severity)
    assert f"{share} of the strokes' pixels" in found.text and "1 of 6 images" in found.text
    assert [Path(place).name for place in found.where] == ["train_4.png"]


def drawn_in(mask: np.ndarray, rows: int) -> np.ndarray:
    return (mask != 255) & (np.arange(mask.shape[0])[:, None] < rows) & (np.arange(mask.shape[1]) == 0)


def test_strokes_over_pixels_without_a_class_are_not_wrong(tmp_path):
    root = write_clean(tmp_path, "{names: [road, sky, tree], table: {0: road, 1: sky, 2: tree, 255: ignore}}\n")
    folder = scribble(root)
    file = root / "labels" / "train" / "train_1.png"
    mask = values(file)
    mask[:12] = 255
    Image.fromarray(mask).save(file)
    assert examine(root, f"data.scribbles={folder}") == []


def test_a_class_that_is_never_scribbled_is_an_error(tmp_path):
    folder = scribble(write_clean(tmp_path))
    for number in range(6):
        change(folder, number, lambda mask: np.where(mask > 0, 255, mask).astype(np.uint8))
    told = "2 of 3 classes are never scribbled: sky, tree"
    (found,) = examine(tmp_path, f"data.scribbles={folder}")
    assert (found.code, found.severity) == ("class_never_scribbled", "error") and told in found.text
    with pytest.raises(ValueError, match=told):
        first(tmp_path, folder)


def test_a_class_that_no_mask_shows_cannot_be_scribbled(tmp_path):
    root = write_clean(tmp_path)
    for file in (root / "labels" / "train").iterdir():
        Image.fromarray(np.minimum(values(file), 1)).save(file)
    folder = scribble(root)
    assert [f.code for f in examine(root, f"data.scribbles={folder}")] == ["class_absent"]
    assert first(root, folder) == []


def test_reading_ends_when_every_class_was_seen(tmp_path, monkeypatch):
    folder, read = scribble(write_clean(tmp_path)), []
    items = load_items(configure(tmp_path, f"data.scribbles={folder}").data, "train")
    values_of = scribbles.values_of
    monkeypatch.setattr(scribbles, "values_of", lambda item: read.append(item.name) or values_of(item))
    assert scribbles.classes_shown(items, {}, {0, 1, 2}) == {0, 1, 2} and read == ["train_0"]
    (folder / "train_0.png").write_bytes(b"")  # told by the check of files
    assert scribbles.classes_shown(items, {}, {0, 1, 2}) == {0, 1, 2}


def test_strokes_of_another_size_and_missing_ones_are_errors(tmp_path):
    folder = scribble(write_clean(tmp_path))
    change(folder, 1, lambda mask: mask[:-1])
    (found,) = examine(tmp_path, f"data.scribbles={folder}")
    assert (found.code, found.severity) == ("size_differs", "error")
    assert found.mend.startswith("make the scribbles for images of this size")
    assert "images/train/train_1.png is 24 x 32" in found.text and "scribbles/train_1.png is 23 x 32" in found.text
    with pytest.raises(ValueError, match="scribbles/train_1.png is 23 x 32"):
        first(tmp_path, folder)
    (folder / "train_1.png").unlink()
    found = {f.code: f for f in examine(tmp_path, f"data.scribbles={folder}")}
    assert "no file for 1 of 6 samples, the first is train_1.png" in found["split_unreadable"].text


def test_what_counts_as_scribbled(tmp_path):
    config = configure(write_clean(tmp_path)).data
    assert not is_scribbled(config, "train")
    drawn = config.model_copy(update={"scribbles": "some"})
    assert is_scribbled(drawn, "train") and not is_scribbled(drawn, "val")
    assert is_scribbled(config.model_copy(update={"dataset": "voc_scribble"}), "train")
