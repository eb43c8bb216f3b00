"""tools/prepare_*.py: from the published form to what the data sets read, twice, and what they refuse."""

import importlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from src.data import voc
from src.data.classes import read_classes
from src.data.preparing import write_list
from src.data.published import cityscapes, coco_stuff_10k
from src.data.reading import read_item, read_mask
from tests.layouts import SIZE, save_mask, save_photo, write_lines, write_voc
from tests.test_label_forms import STROKES, stroke

VOC = read_classes("voc_2012")
NAMES = ("2007_000032", "2007_000039", "2008_000002", "2008_000008")


def prepare(tool: str, monkeypatch, *arguments: str | Path) -> None:
    """Runs a tool's main in this process."""
    monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, arguments), "--workers", "1"])
    importlib.import_module(f"tools.{tool}").main()


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def repeat(tool: str, monkeypatch, out: Path, sources: Path, *arguments: str | Path) -> None:
    """A second start writes nothing; after losses it mends them; the sources are as they were."""
    published_files, first = state(sources), state(out)
    prepare(tool, monkeypatch, *arguments)
    assert state(out) == first
    masks = sorted(out.rglob("*.png"))
    masks[0].unlink()
    masks[-1].write_bytes(masks[-1].read_bytes()[:-20])  # cut off
    prepare(tool, monkeypatch, *arguments)
    assert {name: content for name, (content, _) in state(out).items()} == {n: c for n, (c, _) in first.items()}
    assert state(sources) == published_files


@pytest.fixture
def sbd(tmp_path) -> Path:
    """VOC with a training and a validation image; SBD with both of them and two more, of other values."""
    write_voc(tmp_path / "voc", {"train": [NAMES[0]], "val": [NAMES[1]]}, [0, 1, 255], VOC.palette)
    (tmp_path / "sbd" / "cls").mkdir(parents=True)
    for name in NAMES:
        save_photo(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg")
        label = np.resize(np.array([0, 20], np.uint8), SIZE[1])[None].repeat(SIZE[0], axis=0)
        savemat(tmp_path / "sbd" / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": label}})
    return tmp_path


def test_sbd(sbd, monkeypatch):
    arguments = ("--voc", sbd / "voc", "--sbd", sbd / "sbd", "--output", sbd / "out", "--subset")
    prepare("prepare_sbd", monkeypatch, *arguments)
    items = voc.voc_2012(str(sbd / "voc"), "train_aug", prepared=str(sbd / "out"), complete=False)
    assert [item.name for item in items] == [NAMES[0], NAMES[2], NAMES[3]]  # never the validation image
    assert [sorted(set(read_item(item, VOC.table)["label"].ravel().tolist())) for item in items] == [
        [0, 1, 255], [0, 20], [0, 20],
    ]  # fmt: skip  # VOC's own label goes before that of SBD
    with Image.open(sbd / "out" / "SegmentationClassAug" / f"{NAMES[1]}.png") as mask:  # for PASCAL-5i
        assert mask.mode == "P" and set(np.unique(mask)) == {0, 1, 255}
    repeat("prepare_sbd", monkeypatch, sbd / "out", sbd / "voc", *arguments)


def test_sbd_counts(sbd, monkeypatch):
    with pytest.raises(ValueError, match=r"found 4 .mat files in .*cls, published are 11355.*--subset"):
        prepare("prepare_sbd", monkeypatch, "--voc", sbd / "voc", "--sbd", sbd / "sbd")
    monkeypatch.setattr("tools.prepare_sbd.SBD_FILES", 4)
    with pytest.raises(ValueError, match=r"found 3 training images of VOC and SBD together, published are 10582"):
        prepare("prepare_sbd", monkeypatch, "--voc", sbd / "voc", "--sbd", sbd / "sbd")
    assert not (sbd / "voc" / "SegmentationClassAug").exists()  # nothing is written before the counts are right


def test_sources_are_never_written_over(sbd, monkeypatch):
    """A folder of the same name that somebody else filled."""
    stranger = sbd / "out" / "SegmentationClassAug" / f"{NAMES[2]}.png"
    save_mask(stranger, [7])
    before = stranger.read_bytes()
    with pytest.raises(ValueError, match=r"1 of 4 masks.*\n.*2008_000002.png exists and was not made by this tool"):
        arguments = ("--voc", sbd / "voc", "--sbd", sbd / "sbd", "--output", sbd / "out", "--subset")
        prepare("prepare_sbd", monkeypatch, *arguments)
    assert stranger.read_bytes() == before and len(list(stranger.parent.iterdir())) == 4
    write_list(sbd / "list.txt", ["a", "b"])
    write_list(sbd / "list.txt", ["b", "a"])
    with pytest.raises(ValueError, match=r"list.txt exists and differs in 2 names \(a, c\)"):
        write_list(sbd / "list.txt", ["b", "c"])
    assert (sbd / "list.txt").read_text() == "a\nb\n"


def test_another_subset_is_refused_before_anything_is_written(sbd, monkeypatch):
    arguments = ("--voc", sbd / "voc", "--sbd", sbd / "sbd", "--output", sbd / "out", "--subset")
    prepare("prepare_sbd", monkeypatch, *arguments)
    before = state(sbd / "out")
    (sbd / "sbd" / "cls" / f"{NAMES[2]}.mat").unlink()
    savemat(sbd / "sbd" / "cls" / "2009_000001.mat", {"GTcls": {"Segmentation": np.full(SIZE, 3, np.uint8)}})
    differing = r"differs in 2 names \(2008_000002, 2009_000001\)"
    with pytest.raises(ValueError, match=rf"train_aug.txt exists and {differing}.*of 3 images, this one has 3.*remove"):
        prepare("prepare_sbd", monkeypatch, *arguments)
    assert state(sbd / "out") == before
    (sbd / "out" / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()  # what the message says
    prepare("prepare_sbd", monkeypatch, *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"GTcls": np.zeros(SIZE)}, ": 'GTcls' is no struct with a field 'Segmentation'"),
        ({"GTcls": {"Boundaries": np.zeros(SIZE)}}, ": 'GTcls' is no struct with a field 'Segmentation'"),
        ({"GTcls": {"Segmentation": "none"}}, r" holds <U4 of \(1,\) in place of a label"),
    ],
)
def test_mat_files_of_another_form_are_named(sbd, content, message, monkeypatch):
    savemat(sbd / "sbd" / "cls" / f"{NAMES[3]}.mat", content)
    with pytest.raises(ValueError, match=rf"1 of 4 masks could not be made, .*\n.*/{NAMES[3]}.mat{message}"):
        arguments = ("--voc", sbd / "voc", "--sbd", sbd / "sbd", "--output", sbd / "out", "--subset")
        prepare("prepare_sbd", monkeypatch, *arguments)
    assert not (sbd / "out" / "ImageSets").exists()  # nobody trains on a part


def test_changed_sources_are_converted_again(sbd, monkeypatch):
    arguments = ("--voc", sbd / "voc", "--sbd", sbd / "sbd", "--output", sbd / "out", "--subset")
    prepare("prepare_sbd", monkeypatch, *arguments)
    savemat(sbd / "sbd" / "cls" / f"{NAMES[2]}.mat", {"GTcls": {"Segmentation": np.full(SIZE, 3, np.uint8)}})
    before = state(sbd / "out")
    prepare("prepare_sbd", monkeypatch, *arguments)
    changed = [name for name, content in state(sbd / "out").items() if content != before[name]]
    assert changed == [f"SegmentationClassAug/{NAMES[2]}.png"]
    with Image.open(sbd / "out" / changed[0]) as mask:
        assert set(np.unique(mask)) == {3}


def test_scribbles(sbd, monkeypatch):
    folder = sbd / "xml"
    folder.mkdir()
    write_lines(sbd / "voc" / "ImageSets" / "Segmentation" / "train_aug.txt", [NAMES[0]])
    size = "<size><width>8</width><height>6</height>"
    text = STROKES.replace("<size><width>20</width><height>12</height>", size).format(stroke("plane", (1, 1), (6, 1)))
    (folder / f"{NAMES[0]}.xml").write_text(text)
    arguments = ("--voc", sbd / "voc", "--xml", folder, "--output", sbd / "out", "--subset")
    prepare("prepare_scribbles", monkeypatch, *arguments)
    (sbd / "out" / "ImageSets" / "Segmentation").mkdir(parents=True)
    lists = "ImageSets/Segmentation/train_aug.txt"
    (sbd / "out" / lists).write_text((sbd / "voc" / lists).read_text())
    [item] = voc.voc_scribble(str(sbd / "voc"), "train", prepared=str(sbd / "out"), complete=False)
    label = read_item(item, VOC.table)["label"]
    assert set(np.unique(label)) == {1, 255} and (label[:3, 1:7] == 1).all() and (label[4:] == 255).all()
    mask = sbd / "out" / "pascal_2012_scribble" / f"{NAMES[0]}.png"
    before = mask.read_bytes()
    prepare("prepare_scribbles", monkeypatch, *arguments)
    assert mask.read_bytes() == before
    with zipfile.ZipFile(sbd / "voc_scribbles.zip", "w") as archive:
        archive.write(folder / f"{NAMES[0]}.xml", f"{NAMES[0]}.xml")
    zipped = ("--voc", sbd / "voc", "--xml", sbd / "voc_scribbles.zip", "--output", sbd / "zip", "--subset")
    prepare("prepare_scribbles", monkeypatch, *zipped)
    assert (sbd / "zip" / "pascal_2012_scribble" / f"{NAMES[0]}.png").read_bytes() == before
    prepare("prepare_scribbles", monkeypatch, *arguments, "--width", "1")  # another width is another mask
    assert mask.read_bytes() != before


def test_scribbles_of_another_size(sbd, monkeypatch):
    (sbd / "xml").mkdir()
    (sbd / "xml" / f"{NAMES[0]}.xml").write_text(STROKES.format(stroke("cat", (1, 1))))
    with pytest.raises(ValueError, match=r"2007_000032 are for 12 x 20 \(height x width\), the image has 6 x 8"):
        prepare("prepare_scribbles", monkeypatch, "--voc", sbd / "voc", "--xml", sbd / "xml", "--subset")
    with pytest.raises(ValueError, match=r"found 1 .xml files in .*, published are 12031"):
        prepare("prepare_scribbles", monkeypatch, "--voc", sbd / "voc", "--xml", sbd / "xml")


def test_annotations_in_archives(sbd, monkeypatch):
    """Archives as macOS writes them, and what is no archive, or holds two files of one name."""
    text = STROKES.replace(">20<", ">8<").replace(">12<", ">6<").format(stroke("cat", (1, 1)))
    archive = sbd / "scribbles.zip"

    def run() -> None:
        arguments = ("--voc", sbd / "voc", "--xml", archive, "--output", sbd / "out", "--subset")
        prepare("prepare_scribbles", monkeypatch, *arguments)

    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(f"pascal_2012/{NAMES[0]}.xml", text)
        opened.writestr(f"__MACOSX/pascal_2012/._{NAMES[0]}.xml", b"\0\5\x16\7\0\xff\xfe")
    run()
    assert [path.name for path in sorted((sbd / "out").rglob("*.png"))] == [f"{NAMES[0]}.png"]
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(f"pascal_context/{NAMES[0]}.xml", text)
    with pytest.raises(ValueError, match=r"one name in several folders \(pascal_2012, pascal_context\)"):
        run()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("pascal_2012/a.xml", b"\xff\xfe")
    with pytest.raises(ValueError, match=r"scribbles.zip/pascal_2012/a.xml is no text in UTF-8"):
        run()
    for content in (b"hello", whole[:-30]):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"scribbles.zip is no whole .zip: File is not a zip file; download"):
            run()


def test_clicks(sbd, monkeypatch):
    """Clicks on background, then on an object over it; an image may be in one of the files alone."""
    ground, objects = sbd / "ground.json", sbd / "objects.json"
    ground.write_text(json.dumps({NAMES[0]: [{"x": 1.2, "y": 1.0, "cls": 0}, {"x": 6, "y": 4, "cls": 0}]}))
    objects.write_text(json.dumps({NAMES[0]: [{"x": 8, "y": 4, "cls": 15, "rank": 1}], NAMES[1]: []}))
    arguments = ("--voc", sbd / "voc", "--clicks", ground, objects, "--output", sbd / "out", "--subset")
    prepare("prepare_scribbles", monkeypatch, *arguments)
    label = read_mask(sbd / "out" / "pascal_2012_point" / f"{NAMES[0]}.png")
    assert label.shape == (6, 8) and (label[:3, :3] == 0).all() and (label[3:6, 6:8] == 15).all()
    assert (label[3:6, 5] == 0).all() and (label[:, 3:5] == 255).all()
    assert (read_mask(sbd / "out" / "pascal_2012_point" / f"{NAMES[1]}.png") == 255).all()
    for click, message in (
        ({"x": 9, "y": 1, "cls": 1}, r"clicks of 2007_000032: a click at \(9, 1\).* outside the image of 6 x 8"),
        ({"x": 1, "y": 1, "cls": 21}, "class 21; VOC has 0 to 20"), ({"x": 1, "y": 1}, "is no click"),
    ):  # fmt: skip
        objects.write_text(json.dumps({NAMES[0]: [click]}))
        with pytest.raises(ValueError, match=message):
            prepare("prepare_scribbles", monkeypatch, *arguments)
    with pytest.raises(ValueError, match="found 1 images with clicks, published are 12180 or 12031"):
        prepare("prepare_scribbles", monkeypatch, *arguments[:-1])
    objects.write_text("[]")
    with pytest.raises(ValueError, match="objects.json holds no lists of clicks"):
        prepare("prepare_scribbles", monkeypatch, *arguments)


def test_cityscapes(tmp_path, monkeypatch):
    for split, city in (("train", "aachen"), ("val", "munster")):
        save_photo(tmp_path / "root" / "leftImg8bit" / split / city / f"{city}_0_leftImg8bit.png")
        save_mask(tmp_path / "root" / "gtFine" / split / city / f"{city}_0_gtFine_labelIds.png", [0, 7, 33, 34 - 1])
    arguments = ("--root", tmp_path / "root", "--output", tmp_path / "out", "--subset")
    prepare("prepare_cityscapes", monkeypatch, *arguments)
    [item] = cityscapes(
        str(tmp_path / "root"), "val", labels="labelTrainIds", prepared=str(tmp_path / "out"), complete=False
    )
    label = read_item(item, read_classes("cityscapes").table)["label"]
    assert item.name == "munster/munster_0" and label[0, :4].tolist() == [255, 0, 18, 18]
    repeat("prepare_cityscapes", monkeypatch, tmp_path / "out", tmp_path / "root", *arguments)
    save_mask(tmp_path / "root" / "gtFine" / "val" / "munster" / "munster_0_gtFine_labelIds.png", [34])
    with pytest.raises(ValueError, match=r"munster_0_gtFine_labelIds.png holds values outside the table: 34 \(48 px\)"):
        prepare("prepare_cityscapes", monkeypatch, *arguments)


def test_coco_stuff(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    for listing, name, values in (("train", "COCO_a", [0, 1, 182]), ("test", "COCO_b", [92, 90])):
        save_photo(root / "images" / f"{name}.jpg")
        label = np.resize(np.array(values, np.uint8), SIZE[1])[None].repeat(SIZE[0], axis=0)
        savemat(root / "annotations" / f"{name}.mat", {"S": label, "captions": "two cats"})
        write_lines(root / "imageLists" / f"{listing}.txt", [name])
    arguments = ("--root", root, "--output", tmp_path / "out", "--subset")
    prepare("prepare_coco_stuff", monkeypatch, *arguments)
    classes = read_classes("coco_stuff_10k")
    labels = []
    for split in ("train", "val"):
        [item] = coco_stuff_10k(str(root), split, prepared=str(tmp_path / "out"), complete=False)
        labels.append(read_item(item, classes.table)["label"][0, :3].tolist())
    assert labels == [[255, 0, 170], [80, 79, 80]]
    with Image.open(tmp_path / "out" / "labels" / "COCO_b.png") as mask:
        assert mask.convert("RGB").getpixel((0, 0)) == classes.palette[80]
    repeat("prepare_coco_stuff", monkeypatch, tmp_path / "out", root, *arguments)
    savemat(root / "annotations" / "COCO_b.mat", {"S": np.full(SIZE, 12, np.uint8)})
    with pytest.raises(ValueError, match=r"COCO_b.mat holds values outside the table: 12"):
        prepare("prepare_coco_stuff", monkeypatch, *arguments)
