"""The doctor's look at configurations and machines."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters

from benchmarks.growth import points
from benchmarks.workers.rows import ROWS
from src.config import load_config
from src.doctor import device, environment, group, memory, network, runtimes
from src.doctor.finding import NOTE, Finding, passes, to_report
from src.engine import weights
from src.models import create_model
from tests.commands import ROOT, refuse, run_command
from tests.tiny import write_config

TOY_CLASSES = 9


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("doctor"))


def examine(config: Path, *overrides: str, checkpoint: str | None = None) -> dict[str, Finding]:
    return {finding.code: finding for finding in network.examine(str(config), overrides, checkpoint)[0]}


def save(config: Path, file: Path, count: int = TOY_CLASSES, names: list[str] | None = None) -> Path:
    """Weights of the config's network, with or without names of classes."""
    built = create_model(load_config(config).model, count, (32, 48))
    metadata = {**built.weight_metadata(), **({weights.CLASSES: json.dumps({"names": names})} if names else {})}
    weights.write_weights(file, weights.parameters_of(built), metadata)
    return file


# --- configurations ---------------------------------------------------------------------------------------------------


def test_a_good_config_passes(config):
    found = examine(config)
    assert {finding.severity for finding in found.values()} == {NOTE}, found
    assert "a training step takes about" in found["memory"].text and "available are" in found["memory"].text
    assert "fitted to training steps measured on CPU" in found["memory"].text


STATIC = "loss={name: dfr, weights: {consistency: 0}, regulariser: {stride: 7, kernels: [[1, 9, 1, 0]]}}"


@pytest.mark.parametrize(
    ("code", "overrides", "parts"),
    [
        ("config", ["train.stepz=1"], ["unknown config key 'train.stepz'"]),
        ("build", ["model.head.chanels=1"], ["network for data.crop_size [32, 48]", "'chanels'"]),
        ("build", ["eval.size=[33,48]"], ["network for eval.size [33, 48]", "(33, 48) is not a multiple of 16"]),
        ("build", ["model.head.name=fcn"], ["the loss cannot be built", "needs masks"]),
        ("build", ["loss.mask_losses=a"], ["the loss cannot be built", "'mask_losses'"]),
        ("build", [STATIC], ["the loss cannot be built", "cells of 7 pixels (loss.regulariser.stride)"]),
        ("classes_unknown", ["data={dataset: folder, root: gone, crop_size: [32, 48]}"], ["150 classes are assumed"]),
        ("memory", ["train.batch_size=1000000"], ["a training step takes about", "available are"]),
        ("memory_unknown", ["device.target=Ascend"], ["nothing here tells the free memory of a Ascend device"]),
        ("pretrained", ["model.pretrained=gone.safetensors"], ["no weights at gone.safetensors"]),
        ("workers", ["data.workers=1000"], ["data.workers is 1000"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_with_a_config(code, overrides, parts, config, tmp_path):
    finding = examine(config, f"output_dir={tmp_path}", *overrides)[code]
    assert [part for part in parts if part not in finding.text] == []


def test_a_backbone_that_was_never_measured(config):
    finding = examine(config, "model.backbone={name: mobilenet_v2}", "data.crop_size=[32,64]")["memory_unknown"]
    assert finding.severity == "note" and "no training step with mobilenet_v2 was measured" in finding.text


def test_a_disk_without_room_for_the_checkpoints(config, monkeypatch):
    monkeypatch.setattr(network.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    assert "checkpoints take up to" in examine(config)["disk"].text


def test_checkpoints_of_other_classes_are_named(config, tmp_path):
    other = save(config, tmp_path / "other.safetensors", 4)
    text = examine(config, checkpoint=str(other))["checkpoint"].text
    assert "trained for 4 classes" in text and "has 9" in text
    renamed = save(config, tmp_path / "renamed.safetensors", names=[f"class {k}" for k in range(TOY_CLASSES)])
    assert "was trained for the 9 classes class 0" in examine(config, checkpoint=str(renamed))["checkpoint"].text
    fitting = save(config, tmp_path / "fitting.safetensors")
    assert "checkpoint" not in examine(config, checkpoint=str(fitting))
    assert "pretrained" not in examine(config, f"model.pretrained={other}")  # its backbone alone is loaded
    whole = [f"model.pretrained={other}", "model.reset_classifier=true"]
    assert "pretrained" not in examine(config, *whole)


def test_a_run_that_cannot_go_on(config, tmp_path):
    run = tmp_path / "tiny"
    step = run / "checkpoints" / "step_00000003"
    step.mkdir(parents=True)
    (step / "weights.safetensors").write_bytes(b"damaged")
    assert "no usable checkpoint" in examine(config, f"output_dir={tmp_path}")["run"].text
    (run / "config.yaml").write_text("seed: 5\n")
    assert "holds a run with other settings" in examine(config, f"output_dir={tmp_path}")["run"].text


ROWS_MEASURED = {**ROWS, **{f"{series}/{value}/train": row for series, value, row in points(small=False)}}


@pytest.mark.parametrize(
    ("file", "key"),
    [("side_by_side", "train_vit_tiny"), ("side_by_side", "train_swin_tiny"), ("side_by_side", "train_vit_base"),
     ("growth", "tokens/256/train"), ("growth", "tokens/4096/train"), ("growth", "batch/8/train"),
     ("growth", "classes/19/train")],
)  # fmt: skip
def test_the_estimate_of_the_memory_is_near_what_was_measured(file, key):
    """The measured peak is that of the whole process."""
    entry = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())[key]
    row = ROWS_MEASURED[key]
    with no_init_parameters():
        built = create_model(load_config(row.config, row.overrides).model, row.classes, row.size)
    estimate = memory.step_memory(built, row.size, row.batch, row.classes, "adamw")["total"]
    assert 0.94 < estimate / entry["contenders"]["mindspore"]["memory"]["peak"] < 1.06


def test_parts_of_the_estimate_by_hand():
    with no_init_parameters():
        built = create_model(load_config(ROOT / "config/ecenet/vit_tiny_camvid.yaml").model, 11, (320, 320))
    assert memory.backbone_sizes(built.backbone) == (12 * 400 * 192, 12 * 3 * 400**2)
    parts = memory.step_memory(built, (320, 320), 8, 11, "adamw")
    count = sum(math.prod(p.shape) for p in built.get_parameters())
    assert parts["parameters"] == 16 * count and parts["total"] == sum(parts.values()) - parts["total"]
    assert memory.step_memory(built, (320, 320), 8, 11, "sgd", 2)["parameters"] == 16 * count
    assert parts["classes"] == pytest.approx(4 * 8 * memory.LOGITS * 11 * 320 * 320)


def test_limits_of_containers_are_read(tmp_path):
    assert memory.cgroup_rest(tmp_path) is None and memory.cgroup_cores(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert memory.cgroup_rest(tmp_path) is None and memory.cgroup_cores(tmp_path) is None
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert memory.cgroup_rest(tmp_path) == 3_000_000 and memory.cgroup_cores(tmp_path) == 1.5


def test_the_config_command(config, tmp_path):
    result = run_command("tools/doctor.py", "config", config, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert result.code == 0 and report["ok"] and report["command"] == "config"
    assert report["facts"].keys() == {"name", "classes", "target", "parameters", "memory", "disk"}
    assert report["facts"]["memory"].keys() == {"estimate", "estimated", "available", "source"}
    assert "config: nothing stands in the way" in result.out and "note memory: a training step" in result.out
    result = run_command("tools/doctor.py", "config", config, "model.head.name=fcn")
    assert result.code == 1 and "error build: the loss cannot be built" in result.out
    (tmp_path / "wrong.yaml").write_text("trian: {steps: 1}\n")
    result = run_command("tools/doctor.py", "config", tmp_path / "wrong.yaml")
    assert result.code == 1 and "unknown config key 'trian'" in result.out


# --- machines ---------------------------------------------------------------------------------------------------------

FACTS = {
    "python", "system", "mindspore", "numpy", "accelerators", "driver", "cuda", "cann", "cores", "memory",
    "memory_free", "shared_memory", "shared_memory_free", "disk", "onednn_max_cpu_isa", "rank", "world_size", "device",
}  # fmt: skip


def test_the_cpu_computes_and_is_named(config, tmp_path):
    result = run_command("tools/doctor.py", "env", "--config", config, f"output_dir={tmp_path}/new", "--json", "-")
    report = json.loads(result.out)
    assert result.code == 0 and report["facts"].keys() == FACTS, report
    assert report["facts"]["disk"]["place"] == str(tmp_path)  # the part of output_dir that is there
    assert report["facts"]["device"]["device"] == "CPU" and 0 < report["facts"]["device"]["product_error"] < 1e-5
    (told,) = [entry["text"] for entry in report["findings"] if entry["code"] == "device"]
    assert told == f"device.target=CPU ({config}): a training computes on CPU and on nothing else"
    assert report["facts"]["cuda"]["wanted"] == ["11.1", "11.6"] and report["facts"]["cann"]["wanted"]


@pytest.mark.parametrize("target", ["GPU", "Ascend"])
def test_a_device_that_is_not_there_is_an_error(target):
    """Nothing falls back to the CPU."""
    if runtimes.device_files(target):
        pytest.skip(f"this machine has a {target} device")
    result = run_command("tools/doctor.py", "env", "--device", target, "--json", "-")
    report = json.loads(result.out)
    codes = {entry["code"]: entry for entry in report["findings"]}
    assert result.code == 1 and codes["no_accelerator"]["severity"] == codes["device_unusable"]["severity"] == "error"
    assert f"device.target {target} cannot be used on this machine" in codes["device_unusable"]["text"]
    assert f"device.target={target} (--device)" in codes["device"]["text"] and "device" not in report["facts"]


def test_wrong_usage_of_env(config):
    assert "at least 1" in refuse("tools/doctor.py", "env", "--devices", "0")
    assert "settings need --config" in refuse("tools/doctor.py", "env", "device.target=CPU")


def test_a_wrong_product_is_found(monkeypatch):
    x, w = np.random.default_rng(1).standard_normal((2, 8, 8), np.float32)
    assert device.relative_error(x.astype(float) @ w.astype(float), x, w) == 0.0
    monkeypatch.setattr(device, "relative_error", lambda *_: float("nan"))
    monkeypatch.setattr(device.ms, "get_context", lambda _: "GPU")
    found, facts = device.check_product("CPU")
    assert [finding.code for finding in found] == ["product_wrong", "other_device"] and facts["device"] == "GPU"


@pytest.mark.parametrize(("wrong", "codes"), [(False, []), (True, ["all_reduce_wrong"])])
def test_a_wrong_sum_is_found(wrong, codes, monkeypatch):
    """Ranks 0, 1, 2 hand in 1, 2, 3 times the numbers."""
    monkeypatch.setattr(device.distributed, "sum_counts", lambda own: own // 2 * 6 + int(wrong))
    assert [finding.code for finding in device.check_all_reduce(1, 3)] == codes


@pytest.mark.parametrize("device", [(), ("--device", "CPU")])
def test_all_processes_are_told_what_was_chosen(device, config, monkeypatch):
    """The device's origin and output_dir are theirs to know."""
    started = []

    def start(cluster, folder, command, limits):
        started.append(command)
        raise RuntimeError("not started")

    monkeypatch.setattr(group, "start_group", start)
    settings = ("--config", str(config), "output_dir=elsewhere")
    result = run_command("tools/doctor.py", "env", "--devices", "2", *settings, *device)
    assert result.code == 1 and "all_reduce_failed: not started" in result.out
    assert started[0][1:-2] == ["env", *settings, *device] and started[0][-2] == "--json"


@pytest.mark.slow
def test_a_real_all_reduce(config, tmp_path):
    """Two processes under msrun."""
    settings = ("--config", config, f"output_dir={tmp_path}")
    report = json.loads(run_command("tools/doctor.py", "env", "--devices", "2", *settings, "--json", "-").out)
    assert report["ok"] and report["facts"]["world_size"] == 2, report
    texts = [entry["text"] for entry in report["findings"]]
    assert "summed over 2 processes on CPU" in texts and report["facts"]["disk"]["place"] == str(tmp_path)
    assert f"device.target=CPU ({config}): a training computes on CPU and on nothing else" in texts


def test_installed_runtimes_are_compared(tmp_path):
    for name in ("libcudart.so.11.0", "libcudart.so.11.6.55", "libcudart.so.12", "libcudart_static.a"):
        (tmp_path / name).write_text("")
    found = runtimes.cuda_found({"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"}, ())
    assert found == {"11.0": f"{tmp_path}/libcudart.so.11.0", "11.6.55": f"{tmp_path}/libcudart.so.11.6.55"}
    home = tmp_path / "cann"
    (home / "x86_64-linux").mkdir(parents=True)
    (home / "x86_64-linux" / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann\nversion=8.2.RC1\n")
    assert runtimes.cann_found({"ASCEND_HOME_PATH": str(home)}, ()) == {"8.2.RC1": str(home)}
    facts = {"mindspore": "2.10.0", "accelerators": {"GPU": 1, "Ascend": 1}}
    facts["cuda"] = {"wanted": ["11.1", "11.6"], "found": found}
    facts["cann"] = {"wanted": ["8.2", "8.5"], "found": {"8.2.RC1": str(home)}}
    assert [runtimes.findings(target, facts) for target in ("CPU", "GPU", "Ascend")] == [[], [], []]
    facts["cuda"]["found"] = {"12.4.1": "/usr/local/cuda/lib64/libcudart.so.12.4.1"}
    facts["cann"]["found"], facts["accelerators"] = {}, {"GPU": 1, "Ascend": 0}
    (wrong,) = runtimes.findings("GPU", facts)
    assert wrong.code == "wrong_runtime" and "12.4.1" in wrong.text and "built for 11.1, 11.6" in wrong.text
    assert [finding.code for finding in runtimes.findings("Ascend", facts)] == ["no_accelerator", "no_runtime"]


def test_what_is_short_on_a_machine():
    plenty = {
        "shared_memory_free": 2**34, "cores": 8, "memory_free": 2**36, "disk": {"place": "/data", "free": 2**40},
        "onednn_max_cpu_isa": "AVX2", "accelerators": {"GPU": 0, "Ascend": 0}, "python": "3.11.0", "numpy": "1.26.4",
    }  # fmt: skip
    assert environment.machine(plenty, "CPU", 2) + environment.idle("CPU", plenty) == []
    assert environment.versions(plenty) == []
    short = {
        **plenty, "shared_memory_free": 2**26, "cores": 1.5, "memory_free": 2**29, "onednn_max_cpu_isa": "AVX512_CORE",
        "disk": {"place": "/data", "free": 2**20}, "accelerators": {"GPU": 2, "Ascend": 0}, "numpy": "2.1.0",
    }  # fmt: skip
    found = environment.machine(short, "CPU", 2)
    assert [finding.code for finding in found] == ["shared_memory", "cores", "memory_low", "disk", "onednn"]
    assert "2 GPU devices are here, but device.target=CPU" in environment.idle("CPU", short)[0].text
    assert environment.versions(short)[0].code == "numpy"


CODE = r'''(?:Finding\(|add\(\s*|return |loads\(|yield |(?:labels|images), split, |^    )"([a-z][a-z_0-9]+)"[,:]'''


def test_every_code_is_documented():
    """docs/doctor.md names the codes of the sources, and no others."""
    sources = "".join(file.read_text() for file in (ROOT / "src" / "doctor").glob("*.py"))
    used = set(re.findall(CODE, sources, re.MULTILINE))
    rows = [line for line in (ROOT / "docs" / "doctor.md").read_text().splitlines() if line.startswith("| `")]
    told = {code for row in rows for code in re.findall(r"`([a-z_0-9]+)`", row.split("|")[1])}
    assert told == used


def test_reports_put_the_worst_first():
    found = [Finding("a", "note", ""), Finding("b", "warning", ""), Finding("c", "error", "")]
    report = to_report("env", found, {})
    assert [entry["code"] for entry in report["findings"]] == ["c", "b", "a"] and not report["ok"]
    assert passes(found[:2]) and not passes(found[:2], strict=True) and passes(found[:1], strict=True)
