"""Configs: inheritance, overrides, sources, and that what is written loads again to the same."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from src.config import Config, ConfigError, config_to_yaml, format_config, load_config, load_config_with_sources, lookup
from src.config_errors import known_keys
from tests.config_example import COMPLETE, write

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def complete(tmp_path):
    return write(tmp_path, COMPLETE)


def test_defaults_and_values(complete):
    config = load_config(complete)
    assert (config.name, config.seed, config.output_dir) == ("run", 0, "output")
    assert (config.device.target, config.device.mode) == ("CPU", "graph")
    assert config.data.crop_size == (64, 96) and type(config.data.crop_size) is tuple
    assert config.data.scale_range == (0.5, 2.0) and config.data.max_class_share == 0.75
    assert config.model.backbone == {"name": "vit_tiny", "drop_path": 0.1}
    assert config.model.mean == (123.675, 116.28, 103.53) and config.model.std == (58.395, 57.12, 57.375)
    assert config.optimizer.lr == 0.00006 and type(config.optimizer.lr) is float
    assert config.optimizer.betas == (0.9, 0.999) and config.optimizer.warmup_ratio == 0.000001
    assert (config.train.log_every, config.train.evaluate_every, config.train.checkpoint_every) == (50, 4000, 4000)
    assert (config.eval.mode, config.eval.scales, config.eval.boundary_radius) == ("whole", (1.0,), 3)


def test_config_is_frozen(complete):
    config = load_config(complete)
    with pytest.raises(ValidationError):
        config.train.steps = 5
    with pytest.raises(ValidationError):
        config.name = "other"


def test_yaml_1_2_values(tmp_path):
    options = "  options: {a: on, b: 012, c: 2024-05-01, d: &t true, e: *t, f: 1e3, g: null, l: [{x: no}]}\n"
    path = write(tmp_path, COMPLETE.replace("model:\n", options + "model:\n"))
    options = load_config(path).data.options
    expected = {"a": "on", "b": 12, "c": "2024-05-01", "d": True, "e": True, "f": 1000.0, "g": None, "l": [{"x": "no"}]}
    assert options == expected
    assert [type(value) for value in options.values()] == [type(value) for value in expected.values()]


def test_overrides(complete):
    config = load_config(
        complete,
        [
            "optimizer.lr=1e-3",
            "data.crop_size=[32,48]",
            "model.head.q_act=relu",
            "eval.flip=true",
            "data.root=null",
            "train.steps=7",
            "train.steps=8",
            "optimizer.clip_norm=35",
            "output_dir=runs=old",
            "device={target: GPU}",
            "name=on",
        ],
    )
    assert config.optimizer.lr == 0.001 and config.data.crop_size == (32, 48)
    assert config.model.head == {"name": "ecenet", "channels": 32, "q_act": "relu"}
    assert config.eval.flip is True and config.data.root is None and config.train.steps == 8
    assert config.optimizer.clip_norm == 35.0 and type(config.optimizer.clip_norm) is float
    assert config.output_dir == "runs=old" and config.name == "on"
    assert (config.device.target, config.device.mode) == ("GPU", "graph")


def test_null_override_removes_a_value(tmp_path):
    path = write(tmp_path, COMPLETE.replace("dataset: folder", "dataset: folder\n  root: somewhere"))
    assert load_config(path).data.root == "somewhere"
    assert load_config(path, ["data.root=null"]).data.root is None


@pytest.mark.parametrize("order", [1, -1])
def test_changed_name_replaces_the_mapping(complete, order):
    config = load_config(complete, ["model.backbone.name=resnet50", "model.backbone.depth=3"][::order])
    assert config.model.backbone == {"name": "resnet50", "depth": 3}
    assert config.model.head["channels"] == 32  # the neighbour stays


def test_equal_name_and_run_name_replace_nothing(tmp_path):
    path = write(tmp_path, "name: first\nseed: 7\n" + COMPLETE)
    config = load_config(path, ["model.backbone.name=vit_tiny", "name=second"])
    assert (config.name, config.seed) == ("second", 7) and config.model.backbone["drop_path"] == 0.1


def test_bases_merge_in_order(tmp_path):
    write(
        tmp_path, "seed: 1\ntrain: {steps: 10, accumulate: 4}\nmodel: {head: {name: fcn, width: 9}}\n", "parts/a.yaml"
    )
    write(tmp_path, "_base_: c.yaml\nseed: 2\ntrain: {steps: 20, log_every: 5}\n", "parts/b.yaml")
    write(tmp_path, "seed: 3\neval: {boundary_radius: 2}\ntrain: {log_every: 6}\n", "parts/c.yaml")
    text = COMPLETE.replace("  steps: 100\n", "")
    config = load_config(write(tmp_path, "_base_: [parts/a.yaml, parts/b.yaml]\n" + text, "x.yaml"))
    assert (config.seed, config.train.steps, config.train.accumulate, config.train.log_every) == (2, 20, 4, 5)
    assert config.eval.boundary_radius == 2 and config.train.batch_size == 2
    assert config.model.head == {"name": "ecenet", "channels": 32}  # fcn's width went with its name
    last_wins = load_config(write(tmp_path, "_base_: [parts/b.yaml, parts/a.yaml]\n" + text, "y.yaml"))
    assert (last_wins.seed, last_wins.train.steps) == (1, 10)
    one = load_config(write(tmp_path, "_base_: x.yaml\nseed: 9\n", "one.yaml"))
    assert one == config.model_copy(update={"name": "one", "seed": 9})


def test_base_may_be_used_twice(tmp_path, complete):
    write(tmp_path, "_base_: run.yaml\nseed: 5\n", "a.yaml")
    write(tmp_path, "_base_: run.yaml\noutput_dir: o\n", "b.yaml")
    config = load_config(write(tmp_path, "_base_: [a.yaml, b.yaml]\n", "c.yaml"))
    assert (config.seed, config.output_dir) == (5, "o")


def test_sources(tmp_path):
    base = write(tmp_path, "seed: 4\ntrain:\n  accumulate: 2\n  steps: 5\n", "parts/base.yaml")
    shared = "data:\n  options: {<<: &shared {a: 1}, b: {c: 2}}\n"
    path = write(tmp_path, "_base_: parts/base.yaml\n" + COMPLETE.replace("data:\n", shared))
    config, sources = load_config_with_sources(path, ["eval.flip=true", "model.head.q_act=relu"])
    assert config.train.accumulate == 2 and config.data.options == {"a": 1, "b": {"c": 2}}
    assert sources["name"] == "default" and sources["optimizer.betas"] == "default"
    assert sources["seed"] == f"{base}:1" and sources["train.accumulate"] == f"{base}:3"
    assert sources["train.steps"] == f"{path}:16" and sources["model.head.channels"] == f"{path}:10"
    assert sources["data.crop_size"] == f"{path}:5"
    assert sources["data.options.a"] == f"{path}:3" and sources["data.options.b.c"] == f"{path}:3"
    assert sources["eval.flip"] == sources["model.head.q_act"] == "command line"
    assert not any(key in sources for key in ("data", "model.head", "eval"))


def test_format_config_shows_every_value_with_its_source(complete):
    config, sources = load_config_with_sources(complete, ["seed=3", f"data.root='a: b  # c{' long path' * 30}'"])
    text = format_config(config, sources)
    lines = {line.split(":")[0].strip(): line.split() for line in text.splitlines()}
    assert lines["seed"] == ["seed:", "3", "#", "command", "line"]
    assert lines["lr"] == ["lr:", "6e-05", "#", f"{complete}:12"]
    assert lines["pretrained"] == ["pretrained:", "null", "#", "default"]
    assert lines["options"] == ["options:", "{}", "#", "default"]
    assert lines["crop_size"] == ["crop_size:", "[64,", "96]", "#", f"{complete}:3"]
    assert lines["root"][-3:] == ["#", "command", "line"]
    assert text.count(" # ") == len(sources) + 1  # one of them inside data.root's text
    complete.write_text(text, encoding="utf-8")
    assert load_config(complete) == config


def test_written_config_loads_alone_to_an_equal_one(tmp_path, complete):
    overrides = [
        "model.head.steps=[1, {a: [2, 3.5]}, null]",
        "model.head.nested={b: {c: on, d: ''}, e: {}}",
        "data.options={text: 'null', number: '1e3', date: '2024-05-01', lines: \"a\\nb # c\", tiny: 1e-300, big: 1e22}",
        f"data.root={'long path ' * 30}",
        "eval.mode=slide",
        "eval.stride=[32, 48]",
        "eval.scales=[0.5, 1, 1.75]",
        "optimizer.lr=0.1",
    ]
    config = load_config(complete, overrides)
    written = write(tmp_path, config_to_yaml(config), "other/config.yaml")
    again, sources = load_config_with_sources(written)
    assert again == config and again.name == "run"
    assert again.data.options["lines"] == "a\nb # c" and again.data.options["big"] == 1e22
    assert "default" not in sources.values()  # complete: a later change of a default does not reach a finished run


def test_adamw_poly_is_the_recipe(tmp_path):
    text = COMPLETE.replace("optimizer:\n  name: adamw\n  lr: 6e-5\ntrain:\n  steps: 100\n  batch_size: 2\n", "")
    path = write(tmp_path, f"_base_: {ROOT / 'config/_base_/adamw_poly.yaml'}\n{text}")
    config = load_config(path)
    optimizer, train = config.optimizer, config.train
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.betas) == (
        "adamw",
        6e-5,
        0.01,
        (0.9, 0.999),
    )
    assert (optimizer.warmup_steps, optimizer.warmup_ratio, optimizer.power, optimizer.min_lr) == (1500, 1e-6, 1.0, 0.0)
    assert (optimizer.head_lr_multiplier, optimizer.clip_norm) == (1.0, 0.0)
    assert (train.steps, train.batch_size, train.accumulate) == (160000, 2, 1)


@pytest.mark.parametrize("key", list(known_keys(Config)))
def test_every_key_refuses_a_wrong_type(complete, key):
    with pytest.raises(ConfigError) as caught:
        load_config(complete, [f"{key}=[[[]]]"])
    message = str(caught.value)
    assert f"for '{key}' (command line): wanted " in message and "got [[[]]]" in message


def test_lookup():
    table = {"ecenet": 1, "fcn": 2}
    assert lookup(table, "fcn", "head") == 2
    with pytest.raises(ValueError, match=r"^unknown head 'ecnet'; known: ecenet, fcn; did you mean 'ecenet'\?$"):
        lookup(table, "ecnet", "head")
    with pytest.raises(ValueError, match=r"^unknown loss 'zzz'; known: ecenet, fcn$"):
        lookup(table, "zzz", "loss")
