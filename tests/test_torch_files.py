"""Reading .pth files without PyTorch: values against torch.save and hand-made files, and what is refused."""

import importlib.util
import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from src.engine.torch_files import STORAGES, read_pth
from tests.pth_writer import Raw, Tensors, write_pth

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def assert_equal(found: dict, wanted: dict) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3, "meta": {}}])
def test_hand_made_file(wrap, tmp_path):
    state = OrderedDict(
        {"a.weight": ARRAY, "transposed": ARRAY.T, "steps": np.array(7), "half": ARRAY.astype(np.float16)}
    )
    assert_equal(read_pth(write_pth(tmp_path / "x.pth", wrap(state))), state)


def test_tensors_that_share_a_storage(tmp_path):
    tensors = Tensors()
    body = Raw(b"}(" + b"".join(
        tensors.emit(name) + tensors.rebuild("f4", "0", 12, offset, size, stride)
        for name, offset, size, stride in (("rows", 4, (2, 2), (4, 1)), ("column", 1, (3,), (4,)))
    ) + b"u")  # fmt: skip
    found = read_pth(write_pth(tmp_path / "x.pth", body, [np.arange(12, dtype=np.float32).tobytes()]))
    assert found["rows"].tolist() == [[4, 5], [8, 9]]
    assert found["column"].tolist() == [1, 5, 9]


SAVE = """
state = torch.nn.BatchNorm1d(3).state_dict()
state["part"] = torch.arange(24.).reshape(4, 6)[1:3, ::2]
state["parameter"] = torch.nn.Parameter(torch.randn(3, 2).T)
state["scalar"], state["empty"] = torch.tensor(2.5, dtype=torch.float64), torch.zeros(0, 3)
state["brain"] = torch.tensor([1.0, -2.5, 3e38]).bfloat16()
for i, kind in enumerate((torch.half, torch.int16, torch.int8, torch.uint8, torch.int32, torch.bool)):
    state[f"kind{i}"] = torch.tensor([0, 1, 100]).to(kind)
torch.save({"model": state, "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]}}, "new.pth")
values = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in state.items()}
numpy.savez("values.npz", **{name: value.detach().numpy() for name, value in values.items()})
made = torch.load("made.pth", weights_only=True)
numpy.save("made.npy", made["state_dict"]["w"].numpy())
torch.save(made, "old.pth", _use_new_zipfile_serialization=False)
"""


@needs_torch
def test_files_of_pytorch_itself(tmp_path):
    """Every type that torch.save writes; PyTorch takes the hand-made files for its own; its older format is refused."""
    write_pth(tmp_path / "made.pth", {"state_dict": OrderedDict({"w": ARRAY.T})})
    # In a process of its own: PyTorch and MindSpore do not share one.
    script = f"import torch, numpy\n{SAVE}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "values.npz") as wanted:
        assert_equal(read_pth(tmp_path / "new.pth"), {name: wanted[name] for name in wanted.files})
    np.testing.assert_array_equal(np.load(tmp_path / "made.npy"), ARRAY.T)
    with pytest.raises(ValueError, match=r"old\.pth: a \.pth file of PyTorch before 1\.6.*torch\.save\(torch\.load"):
        read_pth(tmp_path / "old.pth")


def call(module: str, name: str, argument: str) -> Raw:
    """Opcodes that call a function with a text."""
    return Raw(f"c{module}\n{name}\n".encode() + b"(" + Tensors().emit(argument) + b"tR")


MALICIOUS = {
    "posix.system": lambda mark: call("posix", "system", f"touch {mark}"),
    "builtins.eval": lambda mark: call("builtins", "eval", f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: call("builtins", "getattr", "x"),
    "torch.load": lambda mark: call("torch", "load", "x"),
    "torch._utils.sys.modules": lambda mark: Raw(b"\x80\x04\x8c\x0ctorch._utils\x8c\x0bsys.modules\x93"),
    "numpy.core.multiarray.scalar": lambda mark: call("numpy.core.multiarray", "scalar", "x"),
    "argparse.Namespace": lambda mark: Raw(b"cargparse\nNamespace\n)\x81"),
    "posix.remove": lambda mark: Raw(b"(" + Tensors().emit(str(mark)) + b"iposix\nremove\n"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_everything_but_tensors_and_containers_is_refused_by_name(name, tmp_path):
    mark = tmp_path / "mark"
    value = MALICIOUS[name](mark)
    file = write_pth(tmp_path / "bad.pth", {"state_dict": {"w": ARRAY}, "extra": value})
    if name == "posix.remove":
        mark.touch()
    with pytest.raises(ValueError, match=rf"bad\.pth: .*wants to use {name}, which .* was not looked up"):
        read_pth(file)
    assert mark.exists() == (name == "posix.remove")


def test_the_same_pickle_would_do_harm_elsewhere(tmp_path):
    """The malicious file is one: Python's own pickle runs it."""
    mark = tmp_path / "mark"
    pickle.loads(b"\x80\x02" + MALICIOUS["builtins.eval"](mark) + b".")
    assert mark.exists()


def test_what_a_file_does_to_an_allowed_function_does_not_last(tmp_path):
    spoil = Raw(b"ctorch._utils\n_rebuild_tensor_v2\n" + b"(N}" + Tensors().emit("action") + b"N" + b"stb")
    file = write_pth(tmp_path / "spoil.pth", {"x": spoil})
    with pytest.raises(ValueError):
        read_pth(file)
    assert_equal(read_pth(write_pth(tmp_path / "good.pth", {"w": ARRAY})), {"w": ARRAY})


@pytest.mark.parametrize("count, offset, size, stride, message", [
    (6, 0, (2, 4), (4, 1), "reaches beyond its 6 numbers"),
    (6, 5, (2,), (1,), "reaches beyond"),
    (6, 0, (100_000, 100_000), (0, 0), "reaches beyond"),
    (6, 0, (2,), (-1,), "impossible"),
    (6, -1, (2,), (1,), "impossible"),
    (9, 0, (2,), (1,), "has 6 numbers, should have 9"),
])  # fmt: skip
def test_tensors_do_not_reach_beyond_their_storage(count, offset, size, stride, message, tmp_path):
    body = Raw(b"}(" + Tensors().emit("w") + Tensors().rebuild("f4", "0", count, offset, size, stride) + b"u")
    with pytest.raises(ValueError, match=message):
        read_pth(write_pth(tmp_path / "x.pth", body, [ARRAY.tobytes()]))


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.mark.parametrize("write, message", [
    (write_tar, r"first PyTorch versions \(tar\).*save it anew"),
    (lambda path: path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"rest"), "before 1.6.*save it anew"),
    (lambda path: path.write_bytes(b"text"), "not the zip archive .* since PyTorch 1.6 .*download it again, or open"),
    (lambda path: path.write_bytes(b""), "not the zip archive .* since PyTorch 1.6 .*download it again, or open"),
    (lambda path: write_pth(path, {"w": ARRAY}, compression=zipfile.ZIP_DEFLATED), "is compressed"),
    (lambda path: write_pth(path, {"w": ARRAY}, []), "There is no item named 'weights/data/0'"),
    (lambda path: write_pth(path, Raw(b"}(")), "MARK"),
    (lambda path: write_pth(path, {"epoch": 3}), "0 entries of tensors by name instead of one; there are: none; "
     r"the file holds entries epoch \(int\); save the weights alone: torch.save\(model.state_dict"),
    (lambda path: write_pth(path, 3), "there are: none; the file holds a value of type int; save the weights alone"),
    (lambda path: write_pth(path, {"w": ARRAY, "v": ARRAY, "epoch": 3, "name": "x"}), "there are: none; the top holds "
     r"2 tensors and beside them what is none: epoch \(int\), name \(str\). Save the tensors alone: torch.save"),
    (lambda path: write_pth(path, {"net": {"w": ARRAY, "epoch": 3}}), "none; net holds 1 tensors .* epoch"),
    (lambda path: write_pth(path, {"a": {"b": {"w": ARRAY}, "c": {"w": ARRAY}}}), "0 entries of tensors by name "
     "instead of one at the top and one level below; there are: a.b, a.c; name one with --key"),
    (lambda path: np.savez(path.open("wb"), w=ARRAY), "holds 0 files data.pkl"),
])  # fmt: skip
def test_other_files_are_refused_with_a_reason(write, message, tmp_path):
    file = tmp_path / "file.pth"
    write(file)
    with pytest.raises(ValueError, match=rf"file\.pth: .*{message}"):
        read_pth(file)


def test_a_cut_off_file_is_refused(tmp_path):
    file = write_pth(tmp_path / "file.pth", {"w": np.zeros(1000, np.float32)})
    content = bytearray(file.read_bytes())
    content[content.index(bytes(100)) + 50] = 1
    (tmp_path / "flipped.pth").write_bytes(content)
    (tmp_path / "short.pth").write_bytes(content[:1000])
    for name in ("flipped", "short"):
        with pytest.raises(ValueError, match=rf"{name}\.pth: not a readable .* cut off or damaged .*download, copy or"):
            read_pth(tmp_path / f"{name}.pth")


def test_one_of_several_state_dicts_is_named(tmp_path):
    file = write_pth(tmp_path / "x.pth", {"model": {"w": ARRAY}, "model_ema": {"w": 2 * ARRAY}})
    with pytest.raises(ValueError, match="2 entries of tensors by name .*: model, model_ema; .*--key"):
        read_pth(file)
    assert read_pth(file, "model_ema")["w"].tolist() == (2 * ARRAY).tolist()
    with pytest.raises(ValueError, match="no entry 'teacher' of tensors by name; there are: model, model_ema"):
        read_pth(file, "teacher")


def test_one_state_dict_under_two_names(tmp_path):
    """torch.save writes it once, so that either name means the same object."""
    twice = Raw(b"}(" + Tensors().emit("model") + b"}q\x00(" + Tensors().emit("w") + Tensors().rebuild(
        "f4", "0", 6, 0, (6,), (1,)) + b"u" + Tensors().emit("ema") + b"h\x00u")  # fmt: skip
    file = write_pth(tmp_path / "x.pth", twice, [ARRAY.tobytes()])
    for key in (None, "model", "ema"):
        assert_equal(read_pth(file, key), {"w": ARRAY.ravel()})


def test_entries_two_levels_below_are_named(tmp_path):
    file = write_pth(tmp_path / "x.pth", {"a": {"b": {"w": ARRAY}, "epoch": 3}, "seed": 1})
    with pytest.raises(ValueError, match="there are: a.b; name one with --key$"):
        read_pth(file)
    assert_equal(read_pth(file, "a.b"), {"w": ARRAY})


@pytest.mark.parametrize("width", [1, 20_000])
def test_mappings_that_hold_themselves_end(width, tmp_path):
    """Each of `width` entries of a mapping is the mapping itself."""
    keys = b"".join(Tensors().emit(f"k{i}") + b"h\x00" for i in range(width))
    file = write_pth(tmp_path / "x.pth", Raw(b"}q\x00(" + keys + b"u"))
    with pytest.raises(ValueError, match="there are: none; the file holds entries k0"):
        read_pth(file)


def test_every_type_of_storage_has_the_size_of_pytorch():
    sizes = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
    assert {name: np.dtype(kind).itemsize for name, kind in STORAGES.items()} == {
        **{f"{name}Storage": size for name, size in sizes.items()}, "BoolStorage": 1,
    }  # fmt: skip
