"""Tables of text embeddings, spellings of class names, CLIP's tokenizer."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from src.data.classes import CAMVID, read_classes
from src.text.names import spell
from src.text.tables import (
    BACKGROUND,
    TextTable,
    check_table,
    mean_of_templates,
    new_meta,
    read_table,
    resolve_names,
    rows_of,
    unit_rows,
    write_table,
)
from src.text.tokenizer import Tokenizer, split_pieces
from tests.clip_merges import write_merges

# Spec sazs, section 5.2.
PUBLISHED_IDS = {
    "others": [3326],
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "a photo of a cat.": [320, 1125, 539, 320, 2368, 269],
    "aeroplane": [27735, 3980],
    "diningtable": [1462, 653, 2175],
    "dining table": [8658, 2175],
    "pottedplant": [3547, 4841, 3912],
    "potted plant": [48581, 3912],
    "tvmonitor": [3197, 10198],
    "tv monitor": [1583, 10198],
    "motorbike": [33341],
    "traffic light": [3399, 1395],
}
MERGE_FILE = "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer(write_merges(tmp_path_factory.mktemp("merges") / MERGE_FILE))


@pytest.fixture(scope="module")
def public(data_root) -> Path:
    """Folder of the public vectors."""
    folder = data_root / "clip_text_embeddings"
    if not folder.is_dir():
        pytest.skip(f"no public text embeddings at {folder}")
    return folder


def draw_table(names=("aeroplane", "diningtable", "tv"), negatives=("others",), **facts) -> TextTable:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(len(names) + len(negatives), 512)).astype(np.float32)
    meta = {**new_meta("ViT-B/32", normalised=False, source="encoded"), **facts}
    return TextTable(tuple(names), rows[: len(names)], tuple(negatives), rows[len(names) :], meta)


@pytest.mark.parametrize("text", PUBLISHED_IDS)
def test_tokenizer_gives_the_published_ids(tokenizer, text):
    row = tokenizer.rows([text])[0]
    ids = [49406, *PUBLISHED_IDS[text], 49407]
    assert row.dtype == np.int32 and row.tolist() == ids + [0] * (77 - len(ids))


def test_tokenizer_cleans_texts(tokenizer):
    assert tokenizer.encode("  A  Photo\tof a &amp;amp; CAT ") == [320, 1125, 539, 320, 261, 2368]  # & is symbol 5


def test_the_published_merge_file_gives_the_published_ids(data_root):
    file = Path(os.environ.get("ECENET_CLIP", data_root / "clip")) / MERGE_FILE
    if not file.is_file():
        pytest.skip(f"no {file}; set ECENET_CLIP to the folder with CLIP's merge file and weights")
    whole = Tokenizer(file)
    assert {text: whole.encode(text) for text in PUBLISHED_IDS} == PUBLISHED_IDS


def test_pieces_of_a_text():
    assert split_pieces("don't eat 42 cafés' #!x") == ["don", "'t", "eat", "4", "2", "cafés", "'", "#!", "x"]
    assert split_pieces("it'll 's²") == ["it", "'ll", "'s", "²"]


def test_too_long_texts_and_wrong_merge_files_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="78 tokens"):
        tokenizer.rows(["cat " * 76])
    assert tokenizer.rows(["cat " * 75])[0][-1] == 49407
    with pytest.raises(FileNotFoundError, match=MERGE_FILE):
        Tokenizer(tmp_path / "none.gz")
    (tmp_path / "text.gz").write_bytes(b"a b\n")
    with pytest.raises(ValueError, match="no readable .gz"):
        Tokenizer(tmp_path / "text.gz")


def test_tables_come_back_as_they_were_written(tmp_path):
    table = draw_table(templates=["a {}"], licence="MIT")
    write_table(tmp_path / "t.npz", table)
    back = read_table(tmp_path / "t.npz")
    assert (back.names, back.negative_names, back.meta) == (table.names, table.negative_names, table.meta)
    np.testing.assert_array_equal(back.embeddings, table.embeddings)
    np.testing.assert_array_equal(back.negatives, table.negatives)
    first = (tmp_path / "t.npz").read_bytes()
    write_table(tmp_path / "t.npz", table)
    assert (tmp_path / "t.npz").read_bytes() == first and [file.name for file in tmp_path.iterdir()] == ["t.npz"]
    with np.load(tmp_path / "t.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["embeddings", "meta", "names", "negative_names", "negatives"]
        assert json.loads(str(file["meta"]))["format"] == 1


def broken(case: str) -> TextTable:
    table, rows = draw_table(), draw_table().embeddings.copy()
    rows[1, 7] = np.nan
    return {
        "shape": TextTable(table.names, table.embeddings[:2], meta=table.meta),
        "finite": TextTable(table.names, rows, meta=table.meta),
        "unique": TextTable(("a", "b", "a"), table.embeddings, meta=table.meta),
        "width": TextTable(table.names, table.embeddings[:, :500], meta=table.meta),
        "model": draw_table(clip_model="ViT-Z"),
        "format": draw_table(format=2),
        "template": draw_table(templates=["a photo"]),
        "meta": TextTable(table.names, table.embeddings, meta={"format": 1, "clip_model": "ViT-B/32", "dim": 512}),
        "braces": draw_table(templates=["a {} {x}"]),
        "templates": draw_table(templates=None),
        "zeros": TextTable(table.names, np.where(np.arange(3)[:, None] == 1, 0, table.embeddings), meta=table.meta),
        "normalised": draw_table(normalised=True),
        "list": draw_table(clip_model=["ViT-B/32"]),
        "type": TextTable(table.names, table.embeddings.astype(np.float64), meta=table.meta),
    }[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("shape", r"embeddings is float32 \(2, 512\)"), ("finite", "embeddings of diningtable is not finite"),
        ("unique", "the name 'a' occurs more than once"), ("width", r"\(3, 500\), need float32 \(3, 512\)"),
        ("model", "clip_model 'ViT-Z' is not known; allowed: ViT-B/32"), ("format", "format is 2"),
        ("template", "template 'a photo' needs one {}"), ("meta", "meta lacks 'licence'"), ("type", "float64"),
        ("braces", "template 'a {} {x}' needs one {}"), ("templates", "templates is None, need a list"),
        ("zeros", "embeddings of diningtable are zeros"), ("normalised", "rows have other lengths than 1"),
        ("list", "is not known; allowed: ViT-B/32"),
    ],
)  # fmt: skip
def test_tables_that_break_the_format_are_refused(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        write_table(tmp_path / "t.npz", broken(case))
    with pytest.raises(ValueError, match=f"some file .*{message}"):
        check_table(broken(case), "some file")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="encode_text"):
        read_table(tmp_path / "none.npz")
    (tmp_path / "t.npz").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"t\.npz is no table"):
        read_table(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", names=np.array(["a"]))
    with pytest.raises(ValueError, match="it lacks embeddings, negative_names, negatives, meta"):
        read_table(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", names=np.array(["a"], object), embeddings=0, negative_names=0, negatives=0, meta="{}")
    with pytest.raises(ValueError, match="allow_pickle"):
        read_table(tmp_path / "t.npz")
    words = {"names": np.array(["a"]), "negative_names": np.array([], str)}
    whole = {**words, "embeddings": 0, "negatives": 0, "meta": "{}"}
    for wrong, message in (
        ({"meta": "[]"}, "meta is no mapping"), ({"names": np.array("a")}, "names is <U1"),
        ({"names": np.array([["a"]])}, "no list of texts"),
        ({"negative_names": np.zeros(1)}, "negative_names is float64"),
        ({}, "meta lacks 'format'.*embeddings is int64"),
    ):  # fmt: skip
        np.savez(tmp_path / "t.npz", **{**whole, **wrong})
        with pytest.raises(ValueError, match=message):
            read_table(tmp_path / "t.npz")
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="it is no .npz file"):
        read_table(tmp_path / "t.npz")


def test_names_are_found_through_spellings_and_synonyms():
    table = draw_table(("airplane", "Dining Table", "tv", "couch", "motorcycle", "potted plant"), ("others",))
    wanted = ["pottedplant", "motorbike", "sofa", "tvmonitor", "dining-table", "aeroplane", "others", "tv monitor"]
    assert resolve_names(table, wanted) == [5, 4, 3, 2, 1, 0, 6, 2]
    np.testing.assert_array_equal(rows_of(table, ["others", "sofa"]), table.all_rows[[6, 3]])
    both = draw_table(("tv", "tvmonitor"))
    assert resolve_names(both, ["tvmonitor", "tv"]) == [1, 0]  # the very same name goes before a synonym


def test_a_missing_name_is_told_with_its_nearest_and_all_that_are_there():
    names = tuple(name for name in read_classes("voc_2012").names if name not in (BACKGROUND, "sheep"))
    with pytest.raises(ValueError) as caught:
        resolve_names(draw_table(names), read_classes("voc_2012").names[1:], "voc.npz")
    message = str(caught.value)
    assert message.startswith("voc.npz has no embedding for 'sheep'") and "aeroplane, bicycle, bird" in message
    with pytest.raises(ValueError, match=r"'bicicle' \(nearest: bicycle"):
        resolve_names(draw_table(names), ["bicicle"])


def test_spellings_of_prompts():
    assert [spell(name, "natural") for name in ("diningtable", "tvmonitor", "cat")] == [
        "dining table", "tv monitor", "cat",
    ]  # fmt: skip
    assert [spell(name, "joined") for name in ("traffic light", "cat")] == ["trafficlight", "cat"]
    with pytest.raises(ValueError, match="allowed: joined, natural"):
        spell("cat", "short")


def test_templates_are_averaged_as_directions():
    rows = np.array([[[3.0, 4.0]], [[0.0, 2.0]]])
    mean = np.array([0.3, 0.9])
    np.testing.assert_allclose(mean_of_templates(rows), [mean / np.linalg.norm(mean)], rtol=1e-6)
    np.testing.assert_array_equal(mean_of_templates(rows[:1]), [[3.0, 4.0]])  # a single one keeps its length


@pytest.mark.parametrize(
    ("file", "classes"),
    [
        ("voc12_wbg_single.npy", read_classes("voc_2012").names), ("voc12_fg20_single.npy", None),
        ("coco_single.npy", read_classes("coco_20i").names), ("camvid11_single.npy", CAMVID.names),
        ("ade_single.npy", None), ("cityscapes_single.npy", read_classes("cityscapes").names),
        ("cocostuff171_multi.npy", None), ("context60_multi.npy", None),
    ],
)  # fmt: skip
def test_public_files_are_tables(public, file, classes):
    table = read_table(public / file)
    facts = {"normalised": True, "source_dtype": "float16", "clip_model": "ViT-B/16"}
    assert {key: table.meta[key] for key in facts} == facts
    raw = np.load(public / file)
    names = json.loads((public / "class_names.json").read_text())["classes"][file.removesuffix(".npy")]
    np.testing.assert_array_equal(rows_of(table, names), raw.astype(np.float32))
    if classes:
        resolve_names(table, classes, file)


def test_synonyms_of_the_public_files_are_the_same_things(public):
    """Spec section 4.2: cosines of VOC's names with COCO's, in one space."""
    names = ["aeroplane", "motorbike", "sofa", "tvmonitor"]
    voc, coco = (
        unit_rows(rows_of(read_table(public / file), names)) for file in ("voc12_fg20_single.npy", "coco_single.npy")
    )
    np.testing.assert_allclose((voc * coco).sum(1), [0.966, 0.989, 0.971, 0.879], atol=1e-3)


def test_a_public_file_without_names_or_of_another_length_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 512), np.float16))
    with pytest.raises(FileNotFoundError, match="class_names.json"):
        read_table(tmp_path / "x.npy")
    for text in ("not json", "{}", "[]", '{"classes": ["a"]}'):
        (tmp_path / "class_names.json").write_text(text)
        with pytest.raises(ValueError, match=r"class_names.json names no classes"):
            read_table(tmp_path / "x.npy")
    (tmp_path / "class_names.json").write_text(json.dumps({"classes": {"y": ["a"], "x": ["a"]}}))
    with pytest.raises(ValueError, match=r"shape \(2, 512\), but .* names 1 classes"):
        read_table(tmp_path / "x.npy")
    np.save(tmp_path / "z.npy", np.ones((2, 512), np.float16))
    with pytest.raises(ValueError, match="it knows x, y"):
        read_table(tmp_path / "z.npy")
