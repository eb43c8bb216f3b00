"""Configs: the text of every error, and the values that are just allowed."""

from pathlib import Path

import pytest

from src.config import Config, ConfigError, load_config
from tests.config_example import COMPLETE, write


@pytest.fixture
def complete(tmp_path):
    return write(tmp_path, COMPLETE)


def failure(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_circle_of_bases(tmp_path):
    a = write(tmp_path, "seed: 1\n_base_: sub/b.yaml\n", "a.yaml")
    write(tmp_path, "_base_: ../a.yaml\n", "sub/b.yaml")
    b = tmp_path / "sub/b.yaml"
    assert failure(a) == f"'_base_' goes in a circle ({b}:1): {a} -> {b} -> {a}; remove one of these links"


def test_missing_files(tmp_path):
    path = write(tmp_path, "seed: 1\n_base_: [gone.yaml]\n", "sub/a.yaml")
    gone = tmp_path / "sub/gone.yaml"
    assert failure(path) == (
        f"'_base_' file not found ({path}:2): {gone}; the path 'gone.yaml' is taken relative to {path.parent}"
    )
    assert failure(gone) == f"config file not found: {gone}; give the path of an existing YAML file"


def test_wrong_base(tmp_path):
    path = write(tmp_path, "_base_: {a: 3}\n")
    assert failure(path) == f"'_base_' ({path}:1): wanted a path or a list of paths, got {{'a': 3}}"
    path = write(tmp_path, "_base_: [a.yaml, 3]\n")
    assert failure(path) == f"'_base_' ({path}:1): wanted a path or a list of paths, got ['a.yaml', 3]"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("seed: 1\nname: a\nseed: 2\n", ":3", 'found duplicate key "seed" with value "2" (original value: "1")'),
        ("seed: 1\ndata: {a: 1\nb: 2\n", ":3", "expected ',' or '}'"),
        ("seed: 1\n---\nseed: 2\n", ":2", "but found another document"),
        ("seed: \x01\n", "", "special characters are not allowed"),
    ],
)
def test_broken_yaml(tmp_path, text, line, reason):
    path = write(tmp_path, text)
    message = failure(path)
    assert message.startswith(f"{path}{line}: not valid YAML: ") and reason in message


def test_files_that_are_no_mapping_of_plain_values(tmp_path):
    path = write(tmp_path, "- 1\n")
    assert failure(path) == f"{path} must hold a mapping (key: value lines), got CommentedSeq"
    path = write(tmp_path, "seed: 1\nname: !secret x\n")
    assert failure(path).startswith(f"{path}:2: a value of type TaggedScalar is not allowed")
    path.write_bytes("name: \u00e9".encode("latin-1"))
    assert f"{path} is not UTF-8 text" in failure(path)
    empty = write(tmp_path, "# nothing yet\n", "empty.yaml")
    assert failure(empty).startswith(
        "missing config keys: data.dataset, data.crop_size, model.backbone, model.head, loss"
    )


def test_unknown_keys(tmp_path, complete):
    path = write(tmp_path, COMPLETE.replace("  batch_size: 2", "  bach_size: 2"), "typo.yaml")
    assert failure(path, "train.batch_size=2") == (
        f"unknown config key 'train.bach_size' ({path}:15); did you mean 'train.batch_size'?"
    )
    assert failure(complete, "data.bach_size=4") == (
        "unknown config key 'data.bach_size' (command line); did you mean 'train.batch_size'?"
    )
    assert failure(complete, "lr=1") == "unknown config key 'lr' (command line); did you mean 'optimizer.lr'?"
    assert failure(complete, "eval.bse_size=[9, 9]").endswith("did you mean 'eval.base_size'?")
    assert failure(complete, "data.base_sise=[9, 9]").endswith("did you mean 'data.base_size'?")
    assert failure(complete, "device.qqq=1") == (
        "unknown config key 'device.qqq' (command line); known here: device.target, device.mode, device.compile_cache"
    )
    assert failure(write(tmp_path, COMPLETE + "3: 4\n", "n.yaml")).startswith("unknown config key '3' (")


def test_key_of_an_inline_mapping_in_a_base_names_the_base(tmp_path):
    base = write(tmp_path, "seed: 1\n\neval: {flipp: true}\n", "parts/base.yaml")
    path = write(tmp_path, "_base_: parts/../parts/base.yaml\n" + COMPLETE)
    assert failure(path) == f"unknown config key 'eval.flipp' ({base}:3); did you mean 'eval.flip'?"


@pytest.mark.parametrize(
    ("override", "rest"),
    [
        ("train.steps=many", "type for 'train.steps' (command line): wanted int, got 'many'"),
        ("train.steps=1.5", "type for 'train.steps' (command line): wanted int, got 1.5"),
        ("train.steps=true", "type for 'train.steps' (command line): wanted int, got true"),
        ("optimizer.lr='6e-5'", "type for 'optimizer.lr' (command line): wanted float, got '6e-5'"),
        ("optimizer.lr.x=3", "type for 'optimizer.lr' (command line): wanted float, got {'x': 3}"),
        ("eval.flip=on", "type for 'eval.flip' (command line): wanted true or false, got 'on'"),
        ("name=3", "type for 'name' (command line): wanted str, got 3"),
        ("data.root=[a]", "type for 'data.root' (command line): wanted str or null, got ['a']"),
        ("data.crop_size=64", "type for 'data.crop_size' (command line): wanted [int, int], got 64"),
        ("data.crop_size=[64]", "type for 'data.crop_size' (command line): wanted [int, int], got [64]"),
        ("data.crop_size=[1,2,3]", "type for 'data.crop_size' (command line): wanted [int, int], got [1, 2, 3]"),
        ("data.crop_size=[a,b]", "type for 'data.crop_size' (command line): wanted [int, int], got ['a', 'b']"),
        ("eval.stride=x", "type for 'eval.stride' (command line): wanted [int, int] or null, got 'x'"),
        ("eval.scales=2", "type for 'eval.scales' (command line): wanted [float, ...], got 2"),
        ("data=null", "type for 'data' (command line): wanted a mapping, got null"),
        ("loss=ce", "type for 'loss' (command line): wanted a mapping with str keys, got 'ce'"),
        ("data.options={3: x}", "type for 'data.options' (command line): wanted a mapping with str keys, got {3: 'x'}"),
        ("model.head.name=3", "type for 'model.head.name' (command line): wanted str, got 3"),
        (
            "device.target=NPU",
            "value for 'device.target' (command line): wanted one of 'CPU', 'GPU', 'Ascend', got 'NPU'",
        ),
    ],
)
def test_wrong_types(complete, override, rest):
    assert failure(complete, override) == f"wrong {rest}"


def test_wrong_type_names_file_and_line(tmp_path):
    path = write(tmp_path, COMPLETE.replace("steps: 100", "steps: hundred"))
    assert failure(path) == f"wrong type for 'train.steps' ({path}:14): wanted int, got 'hundred'"


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("optimizer.lr=0", "'optimizer.lr' must be greater than 0, got 0"),
        ("optimizer.lr=.inf", "'optimizer.lr' must be a finite number, got inf"),
        ("optimizer.head_lr_multiplier=-1", "'optimizer.head_lr_multiplier' must be greater than 0, got -1"),
        ("optimizer.betas=[0.9, 1]", "'optimizer.betas[1]' must be less than 1, got 1"),
        ("optimizer.warmup_steps=-1", "'optimizer.warmup_steps' must be greater than or equal to 0, got -1"),
        ("data.crop_size=[64, 0]", "'data.crop_size[1]' must be greater than 0, got 0"),
        ("data.max_class_share=0", "'data.max_class_share' must be greater than 0, got 0"),
        ("data.max_class_share=1.1", "'data.max_class_share' must be less than or equal to 1, got 1.1"),
        ("data.flip=1.5", "'data.flip' must be less than or equal to 1, got 1.5"),
        ("data.flip=-.5", "'data.flip' must be greater than or equal to 0, got -0.5"),
        ("data.scale_range=[0, 1]", "'data.scale_range[0]' must be greater than 0, got 0"),
        ("data.workers=0", "'data.workers' must be greater than 0, got 0"),
        ("model.std=[1, 0, 1]", "'model.std[1]' must be greater than 0, got 0"),
        ("train.steps=0", "'train.steps' must be greater than 0, got 0"),
        ("train.batch_size=0", "'train.batch_size' must be greater than 0, got 0"),
        ("train.accumulate=0", "'train.accumulate' must be greater than 0, got 0"),
        ("train.log_every=0", "'train.log_every' must be greater than 0, got 0"),
        ("train.evaluate_every=0", "'train.evaluate_every' must be greater than 0, got 0"),
        ("train.checkpoint_every=-5", "'train.checkpoint_every' must be greater than 0, got -5"),
        ("eval.size=[-1, 4]", "'eval.size[0]' must be greater than 0, got -1"),
        ("eval.scales=[1, 0]", "'eval.scales[1]' must be greater than 0, got 0"),
        ("seed=-1", "'seed' must be greater than or equal to 0, got -1"),
        ("name=''", "'name' must have at least 1 character, got ''"),
    ],
)
def test_values_out_of_range(complete, override, rule):
    assert failure(complete, override) == f"{rule} (command line)"


CONFLICTS = {
    "warmup": (
        ["optimizer.warmup_steps=100"],
        "optimizer.warmup_steps (100) must be smaller than train.steps (100) "
        "(optimizer.warmup_steps: command line, train.steps: {path}:14)",
    ),
    "min_lr": (
        ["optimizer.min_lr=1e-4"],
        "optimizer.min_lr (0.0001) must not be larger than optimizer.lr (6e-05) "
        "(optimizer.min_lr: command line, optimizer.lr: {path}:12)",
    ),
    "scale_range": (
        ["data.scale_range=[2, 0.5]"],
        "data.scale_range [2.0, 0.5] is reversed; write [0.5, 2.0], lowest ratio first "
        "(data.scale_range: command line)",
    ),
    "data_base_size": (
        ["data.base_size=[512, 2048]"],
        "data.base_size [512, 2048] is reversed; write [2048, 512], long edge first (data.base_size: command line)",
    ),
    "eval_base_size": (
        ["eval.base_size=[512, 2048]"],
        "eval.base_size [512, 2048] is reversed; write [2048, 512], long edge first (eval.base_size: command line)",
    ),
    "no_stride": (
        ["eval.mode=slide"],
        "eval.mode slide needs eval.stride [height, width] (eval.mode: command line, eval.stride: default)",
    ),
    "stride_height": (
        ["eval.mode=slide", "eval.stride=[65, 64]"],
        "eval.stride [65, 64] must not be larger than eval.size [64, 64], or gaps remain "
        "(eval.stride: command line, eval.size: {path}:17)",
    ),
    "stride_width": (
        ["eval.mode=slide", "eval.stride=[64, 65]"],
        "eval.stride [64, 65] must not be larger than eval.size [64, 64], or gaps remain "
        "(eval.stride: command line, eval.size: {path}:17)",
    ),
    "no_scales": (
        ["eval.scales=[]"],
        "eval.scales is empty; give at least one ratio, such as [1.0] (eval.scales: command line)",
    ),
    "resize_scales": (
        ["eval.mode=resize", "eval.scales=[1, 1.5]"],
        "eval.scales [1.0, 1.5] needs eval.mode slide or whole; with resize only [1.0] is possible "
        "(eval.scales: command line, eval.mode: command line)",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_values_that_do_not_fit_together(complete, case):
    overrides, message = CONFLICTS[case]
    assert failure(complete, *overrides) == message.format(path=complete)


def test_limits_themselves_are_allowed(complete):
    config = load_config(
        complete,
        [
            "optimizer.warmup_steps=99",
            "optimizer.min_lr=6e-5",
            "data.scale_range=[1, 1]",
            "data.base_size=[64, 64]",
            "data.max_class_share=1",
            "eval.mode=slide",
            "eval.stride=[64, 64]",
            "eval.scales=[0.5, 1]",
        ],
    )
    assert config.eval.scales == (0.5, 1.0) and config.optimizer.warmup_steps == 99
    assert load_config(complete, ["eval.mode=resize", "eval.scales=[1]"]).eval.mode == "resize"


def test_config_built_in_python_is_checked_too(complete):
    values = load_config(complete).model_dump()
    assert Config(**values) == load_config(complete)
    values["optimizer"]["warmup_steps"] = 100
    with pytest.raises(ValueError, match="optimizer.warmup_steps \\(100\\) must be smaller than train.steps \\(100\\)"):
        Config(**values)


def test_missing_keys_are_listed_together(tmp_path):
    text = COMPLETE.replace("  dataset: folder\n", "").replace("name: vit_tiny, ", "").replace("  steps: 100\n", "")
    path = write(tmp_path, text.replace("eval:\n  size: [64, 64]\n", ""))
    assert failure(path) == (
        "missing config keys: data.dataset, model.backbone.name, train.steps, eval.size; "
        f"give them in {path} or as key=value"
    )


def test_missing_keys_after_a_changed_name_say_why(tmp_path, complete):
    why = "or as key=value; 'optimizer' was replaced whole because its name changed from 'adamw' to 'sgd'"
    for overrides in (["optimizer.name=sgd"], ["optimizer.momentum=0.5", "optimizer.name=sgd"]):
        message = f"missing config keys: optimizer.lr; give them in {complete} {why} (command line)"
        assert failure(complete, *overrides) == message
    path = write(tmp_path, "_base_: run.yaml\noptimizer: {name: sgd}\n", "sgd.yaml")
    message = f"missing config keys: optimizer.lr; give them in {path} {why} ({path}:2)"
    assert failure(path, "optimizer.momentum=0.5") == message
    assert load_config(complete, ["optimizer.name=sgd", "optimizer.lr=0.01"]).optimizer.lr == 0.01


def test_all_errors_are_reported_together(tmp_path):
    text = COMPLETE.replace("  lr: 6e-5\n", "").replace("steps: 100", "steps: x").replace("dataset:", "datast:")
    path = write(tmp_path, text)
    assert failure(path, "eval.scales=[]", "eval.mode=slide", "data.flip=2").splitlines() == [
        f"6 errors in config {path}:",
        "- 'data.flip' must be less than or equal to 1, got 2 (command line)",
        f"- unknown config key 'data.datast' ({path}:2); did you mean 'data.dataset'?",
        f"- wrong type for 'train.steps' ({path}:13): wanted int, got 'x'",
        "- eval.scales is empty; give at least one ratio, such as [1.0] (eval.scales: command line)",
        "- eval.mode slide needs eval.stride [height, width] (eval.mode: command line, eval.stride: default)",
        f"- missing config keys: data.dataset, optimizer.lr; give them in {path} or as key=value",
    ]


def test_overrides_of_the_wrong_form(complete):
    form = "is not of the form key=value, such as optimizer.lr=6e-5 or data.crop_size=[64,64]"
    for text in ("optimizer.lr", "=3", "optimizer..lr=3", ".lr=3"):
        assert failure(complete, text) == f"override {text!r} {form}"
    assert failure(complete, "data.root=") == (
        "override 'data.root=' has no value; write data.root=null for none, data.root='\"\"' for empty text"
    )
    assert failure(complete, "data.crop_size=[64").startswith("override 'data.crop_size=[64':1: not valid YAML: ")
    assert failure(complete, "a", "seed=1", "b").splitlines() == [
        "2 errors in command line:",
        f"- override 'a' {form}",
        f"- override 'b' {form}",
    ]
