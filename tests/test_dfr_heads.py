"""UperNet and consistency head: float64 references, gradient flow, what travels; and training from scribbles."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.config import load_config
from src.data import train_transforms
from src.data.transforms import declared_columns
from src.engine.train_step import TrainStep, run_step
from src.functional import average_pool_matrix, bilinear_matrix
from src.losses import batch_counts, check_outputs, create_loss
from src.models import HEADS, build, create_model
from src.models.heads.upernet import UperNetHead
from tests.commands import run_command
from tests.conftest import ROOT
from tests.network_reference import convolve, normalise, relu
from tests.running import draw, randomise, run
from tests.test_scribbles import write_data
from tests.tiny import HEADS as TINY
from tests.tiny import K, draw_batch, tiny_network, tiny_step
from train import train

CHANNELS, GRIDS = (3, 4, 5, 6), ((8, 12), (4, 6), (2, 3), (1, 2))


def resized(x, size):
    return bilinear_matrix(x.shape[2], size[0]).astype(float) @ x @ bilinear_matrix(x.shape[3], size[1]).T.astype(float)


def pooled(x, cells):
    rows, columns = average_pool_matrix(x.shape[2], cells), average_pool_matrix(x.shape[3], cells)
    return rows.astype(float) @ x @ columns.T.astype(float)


def layer(x, p, name):
    weight = p[f"{name}.conv.weight"]
    return relu(normalise(convolve(x, weight), p, f"{name}.norm"))


def classified(x, p, name):
    return convolve(x, p[f"{name}.weight"], bias=p[f"{name}.bias"])


def maps():
    return tuple(draw(2, c, *grid, seed=i) for i, (c, grid) in enumerate(zip(CHANNELS, GRIDS, strict=True)))


def test_upernet_equals_its_formula():
    head = UperNetHead(CHANNELS, GRIDS, K, channels=4, auxiliary=3, bins=(1, 2, 3), norm="batch")
    p, x = randomise(head), [each.astype(float) for each in maps()]
    parts = [resized(layer(pooled(x[3], bins), p, f"pooled.{i}"), GRIDS[3]) for i, bins in enumerate((1, 2, 3))]
    above = layer(np.concatenate([x[3], *parts], 1), p, "context")
    outputs = [resized(above, GRIDS[0])]
    for s in (2, 1, 0):
        above = layer(x[s], p, f"laterals.{s}") + resized(above, GRIDS[s])
        outputs.insert(0, resized(layer(above, p, f"smooths.{s}"), GRIDS[0]))
    wanted = classified(layer(np.concatenate(outputs, 1), p, "fusion"), p, "classifier")
    found = run(head, maps())
    assert list(found) == ["logits"]  # the auxiliary head is of training alone
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-4, atol=1e-4)


def test_upernet_accounting():
    """Swin-B with UperNet 512 has about 121 million parameters; the head's were counted by hand."""
    config = load_config(ROOT / "config/dfr/swin_base_voc_scribble.yaml")
    with ms.nn.utils.no_init_parameters():
        network = create_model(config.model, 21, config.data.crop_size)
    sizes = {name: p.size for name, p in network.parameters_and_names() if p.requires_grad}
    main = {name: size for name, size in sizes.items() if name.startswith(("backbone.", "head.main."))}
    assert sum(main.values()) / 1e6 == pytest.approx(121, abs=1)
    own = {name: size for name, size in sizes.items() if name.startswith("head.") and name not in main}
    assert sum(size for name, size in own.items() if name.endswith("weight")) == 372_736
    assert sum(size for name, size in own.items() if name.endswith("bias")) == 64 + 128 + 256 + 64
    fcn = UperNetHead((8,), ((2, 3),), 5, channels=4, bins=(1,), auxiliary=0)
    assert fcn.count_macs() == 8 * 4 + 6 * 9 * 12 * 4 + 6 * (9 * 4 * 4 + 4 * 5)


def test_class_parameters_and_names():
    names = {
        "upernet": {
            "classifier.weight", "classifier.bias", "auxiliary_classifier.weight", "auxiliary_classifier.bias",
        },
        "consistency": {"main.classifier.weight", "main.classifier.bias"},
    }  # fmt: skip
    for name, wanted in names.items():
        head = tiny_network(head=name).head
        shapes = {key: p.shape for key, p in head.parameters_and_names()}
        assert set(head.class_parameters(shapes)) == wanted


@pytest.mark.parametrize("main", [name for name in HEADS if name != "consistency"])
def test_every_head_can_have_a_consistency_head(main):
    """By config alone: outputs, noise and classes are the head's own, and DFR finds what it reads."""
    channels, grids = (16, 16), ((2, 3), (2, 3))
    settings = {"name": "consistency", "main": TINY[main]}
    head = build("model.head", HEADS, settings, channels, grids, K)
    own = build("model.head", HEADS, TINY[main], channels, grids, K)
    assert head.outputs == (*own.outputs, "embedding", "coarsest")
    np.testing.assert_array_equal(head.noise_rates, own.noise_rates)
    assert head.align_corners == getattr(own, "align_corners", False) and head.count_macs() == own.count_macs()
    if "logits" in own.outputs:
        base = {"name": "partial_cross_entropy", "align_corners": head.align_corners}
        check_outputs(head, create_loss({"name": "dfr", "base": base}, K))
    if main == "segvit":
        with pytest.raises(ValueError, match="loss 'dfr' takes .* ConsistencyHead are scores"):
            check_outputs(head, create_loss({"name": "dfr", "base": {"name": "cross_entropy"}}, K))


class Values(nn.Cell):
    """What a head gives, in the order of its names, as a loss reads it."""

    def __init__(self, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.head = head

    def construct(self, features):
        outputs = self.head(features)
        return outputs["logits"], outputs["decoder"], outputs["embedding"], outputs["coarsest"]


def test_what_is_given_in_training_alone():
    """The decoder's map is what is classified, and what an embedding may be made of; the coarsest one is passed on."""
    main = {**TINY["fcn"], "norm": "group"}  # which does the same in training
    settings = {"name": "consistency", "main": main, "inputs": "decoder", "channels": 5}
    head, x = build("model.head", HEADS, settings, CHANNELS, GRIDS, K), maps()
    p = randomise(head)
    assert head.outputs == ("logits", "decoder", "embedding", "coarsest")
    found = dict(zip(head.outputs, run(Values(head).set_train(), x), strict=True))
    np.testing.assert_array_equal(found["coarsest"], x[-1])
    decoder = found["decoder"].astype(float)
    assert decoder.shape == (2, 8, *GRIDS[0]) and decoder.min() == 0.0
    for key, name in (("logits", "main.classifier"), ("embedding", "embed")):
        np.testing.assert_allclose(found[key], classified(decoder, p, name), rtol=1e-4, atol=1e-4)


def test_wrong_heads_are_refused():
    for settings, message in (
        ({"name": "consistency", "main": {"name": "fcnn"}}, "did you mean 'fcn'"),
        ({"name": "consistency", "main": {"name": "fcn", "chanels": 3}}, r"model.head.main \(fcn\).*'chanels'"),
        ({"name": "consistency", "main": {"name": "fcn"}, "channels": 0}, "channels is 0"),
        ({"name": "consistency"}, "missing argument 'main'"),
        ({"name": "consistency", "main": {}}, r"model.head.main \{\} has no name; known: ecenet"),
        ({"name": "consistency", "main": {"name": "segvit"}, "inputs": "decoder"}, "which SegViTHead does not give"),
        ({"name": "consistency", "main": {"name": "fcn"}, "inputs": "f8"}, "inputs 'f8' is not known"),
        ({"name": "upernet", "bins": []}, "bins"),
    ):
        with pytest.raises(ValueError, match=message):
            build("model.head", HEADS, settings, (16, 16), ((2, 3), (2, 3)), K)


DFR = {
    "name": "dfr", "base": {"name": "class_mask", "weights": {"diversity": 0.0}},
    "regulariser": {"blocks": 1, "start": 0.5}, "consistency": {"radius": 2},
}  # fmt: skip


@pytest.mark.slow
def test_which_loss_reaches_which_part():
    """ECENet with DFR: the regulariser has no gradient for the consistency head, its loss none for the decode head."""
    network = tiny_network(head="consistency", main=TINY["ecenet"])
    step = tiny_step(network, DFR)
    parameters = step.optimizer.parameters
    names = [p.name for p in parameters]
    at = {term: step.loss.terms.index(term) for term in ("regulariser", "consistency")}

    class OneTerm(ms.nn.Cell):
        def __init__(self, number):
            super().__init__(auto_prefix=False)
            self.step, self.number = step, number

        def construct(self, noise, counts, *columns):
            return self.step.forward(1.0, noise, counts, *columns)[1][self.number]

    batch = draw_batch(2)
    batch = {**batch, "image_present": batch["present"], "progress": np.ones(1, np.float32)}
    noise = np.ones((2, len(network.noise_rates)), np.float32)
    inputs = [Tensor(noise), Tensor(batch_counts(batch)), *[Tensor(batch[name]) for name in step.columns]]
    reached = {}
    for term, number in at.items():
        gradients = ms.grad(OneTerm(number), None, parameters)(*inputs)
        found = [bool(gradient.asnumpy().any()) for gradient in gradients]
        reached[term] = {name for name, any_of_it in zip(names, found, strict=True) if any_of_it}
    own = {name for name in names if name.startswith(("head.reductions", "head.embed"))}
    decode = {name for name in names if name.startswith("head.main")}
    assert own and decode and not own & reached["regulariser"] and not decode & reached["consistency"]
    assert "head.embed.weight" in reached["consistency"] and decode & reached["regulariser"]
    assert any(name.startswith("backbone.") for name in reached["regulariser"])
    assert any(name.startswith("backbone.") for name in reached["consistency"])


@pytest.mark.slow
@pytest.mark.parametrize(("source", "head"), [("decoder", "fcn"), ("coarsest", "consistency")])
def test_other_features_train_without_the_embedding(source, head):
    """A step with the kernel on other features: beta changes the term, so they are read; weights stay finite."""
    regulariser = {"deep_source": source, "blocks": 1, "start": 0.0, "beta_ramp": [0.0, 1.0]}
    network = tiny_network(head=head)
    for parameter in network.get_parameters():
        if parameter.name.endswith("classifier.weight"):
            parameter.set_data(100.0 * parameter)  # shares that differ from place to place
    step = tiny_step(network, {"name": "dfr", "weights": {"consistency": 0.0}, "regulariser": regulariser})
    assert step.loss.needs == ("logits", source)
    batch, found = draw_batch(2), []
    for progress in (0.0, 1.0):
        columns = {"image_present": batch["present"], "progress": np.array([progress], np.float32)}
        noise = np.ones((1, 2, len(step.network.noise_rates)), np.float32)
        found.append(run_step(step, step.inputs(0, 0.0), noise, [{**batch, **columns}], batch_counts(batch)))
    assert 0.0 < found[1].terms["regulariser"] != pytest.approx(found[0].terms["regulariser"], rel=1e-5)
    assert np.isfinite([result.norm for result in found]).all() and len(step.compile_cache) == 1


def test_classes_of_the_whole_image_travel_with_its_crops():
    label = np.full((40, 40), 255, np.uint8)
    label[0, 0], label[39, 39], label[:8, 8:16] = 1, 3, 2
    settings = load_config(ROOT / "config/dfr/vit_tiny_camvid_dfr.yaml", ["data.crop_size=[16, 16]"]).data
    transforms = train_transforms(settings, 11, image_classes=11)
    assert declared_columns(transforms) == ("image_present", "valid", "present")
    rng, sample = np.random.default_rng(0), {"image": np.zeros((40, 40, 3), np.uint8), "label": label}
    crops = set()
    for _ in range(20):
        result = dict(sample)
        for transform in transforms:
            result = transform(result, rng)
        assert result["image_present"].tolist() == [1, 2, 3] + 8 * [-1]
        crops.add(tuple(result["present"].tolist()))
    assert len(crops) > 1
    assert declared_columns(train_transforms(settings, 11)) == ("valid", "present")


def test_training_from_scribbles_end_to_end(tmp_path, monkeypatch):
    """train.py on two drawn images and their simulated scribbles: every term is logged, finite, and on its schedule,
    in one graph for all values of beta."""
    steps = []

    def create_step(*arguments, **options):
        steps.append(TrainStep(*arguments, **options))
        return steps[-1]

    monkeypatch.setattr("train.TrainStep", create_step)
    file, out = write_data(tmp_path / "data"), tmp_path / "drawn"
    assert run_command("tools/make_scribbles.py", "--config", file, "--output", out, "--background", "none").code == 0
    config = load_config(
        file,
        [
            f"output_dir={tmp_path / 'runs'}", f"data.scribbles={out}", "data.crop_size=[64, 64]", "data.workers=1",
            "model.backbone={name: vit, width: 16, depth: 2, num_heads: 2, taps: [1, 2]}",
            "model.head={name: consistency, channels: 8, main: {name: fcn, channels: 8, norm: group}}",
            "loss={name: dfr, regulariser: {blocks: 1, beta_ramp: [0.1, 0.9], start: 0.3}, consistency: {background: "
            "null}}", "optimizer.lr=3e-3", "train.steps=20", "train.batch_size=2", "train.log_every=5",
        ],
    )  # fmt: skip
    train(config)
    assert [len(step.compile_cache) for step in steps] == [1]
    lines = (tmp_path / "runs" / config.name / "metrics.jsonl").read_text().splitlines()
    terms = [record["terms"] for record in map(json.loads, lines) if record["kind"] == "train"]
    assert list(terms[0]) == ["ce", "aux", "regulariser", "consistency", "shallow"]
    assert np.isfinite([list(each.values()) for each in terms]).all()
    assert terms[0]["regulariser"] == 0.0 and terms[-1]["regulariser"] > 0.0 and terms[0]["consistency"] > 0.0
    assert terms[-1]["ce"] < terms[0]["ce"]
    evaluated = [record for record in map(json.loads, lines) if record["kind"] == "eval"]
    assert len(evaluated) == 1 and evaluated[0]["miou"] > 0.0
    curves = tmp_path / "curves.png"
    assert run_command("tools/plot_run.py", tmp_path / "runs" / config.name, "--output", curves).code == 0
    assert curves.is_file()
