"""The PyTorch twin computes what our networks, losses and training steps compute; the side-by-side run and its report.

Letters: B batch, K classes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from src.engine.train_step import draw_noise, run_step
from src.losses import batch_counts
from tests.running import to_arrays
from tests.tiny import BACKBONES, SIZE, K, draw_batch, tiny_network, tiny_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -r requirements-bench.txt")

from benchmarks import growth, report, side_by_side, start_up  # noqa: E402
from benchmarks.results_file import add_result, read_results  # noqa: E402
from benchmarks.torch_twin.ecenet import create_twin  # noqa: E402
from benchmarks.torch_twin.loss import TERMS, ClassMaskLoss, pairs_of  # noqa: E402
from benchmarks.torch_twin.weights import load_weights  # noqa: E402
from benchmarks.workers import rows, session  # noqa: E402
from benchmarks.workers.driving import Process, WorkerError  # noqa: E402
from benchmarks.workers.mindspore_worker import Logits  # noqa: E402

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
HEAD = {"name": "ecenet", "channels": 16, "norm": "sync_batch", "dropout": 0.3}
OFFSIDE = {"vit": (48, 32), "swin": (50, 38)}  # Swin pads patches, windows and merges at odd sizes


def random_network(backbone: str, size=SIZE):
    """Our network and its weights by name, norms and biases far from 1 and 0."""
    network = tiny_network(backbone, "ecenet", size, norm="sync_batch")
    random = np.random.default_rng(5)
    for name, parameter in network.parameters_dict().items():
        value = parameter.asnumpy()
        if name.endswith(("gamma", "moving_variance")):
            value = 0.5 + random.random(value.shape)
        else:
            value = value + random.normal(scale=0.3 if value.ndim == 1 else 0.02, size=value.shape)
        parameter.set_data(Tensor(value.astype(np.float32)))
    return network, {name: p.asnumpy().copy() for name, p in network.parameters_dict().items()}


def twin_of(backbone: str, weights: dict, size=SIZE):
    twin = create_twin({"backbone": BACKBONES[backbone], "head": HEAD, "mean": MEAN, "std": STD}, K, size)
    load_weights(twin, weights)
    return twin.to(memory_format=torch.channels_last)


def assert_close(ours, theirs, tolerance=2e-5):
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * max(1.0, np.abs(ours).max()))


@pytest.mark.parametrize("backbone", OFFSIDE)
def test_outputs_of_evaluation_agree(backbone):
    size = OFFSIDE[backbone]
    network, weights = random_network(backbone, size)
    image = draw_batch(2, size=size)["image"]
    ours = to_arrays(network.set_train(False)(Tensor(image)))
    with torch.no_grad():
        theirs = twin_of(backbone, weights, size).eval()(torch.from_numpy(image))
    assert_close(ours["logits"], theirs["logits"].numpy())
    assert_close(sum(ours["masks"]), theirs["mask"].numpy())
    for level, diverse in enumerate(ours["diverse"]):
        assert_close(diverse, theirs["diverse"][level].numpy())
    assert np.ptp(ours["logits"]) > 0.1


def test_logits_of_training_agree(backbone="swin"):
    network, weights = random_network(backbone)
    image, noise = draw_batch(2)["image"], draw_noise(network.noise_rates, 0, 0, 2)[0]
    assert (noise == 0.0).any()  # something is dropped
    # Through a cell that returns logits only: the graph of the whole dict takes minutes to compile in training.
    ours = Logits(network.set_train())(Tensor(image), Tensor(noise)).asnumpy()
    with torch.no_grad():
        theirs = twin_of(backbone, weights).train()(torch.from_numpy(image), torch.from_numpy(noise))
    assert_close(ours, theirs["logits"].numpy())


def twin_gradients(twin, batch: dict, noise: np.ndarray, counts: np.ndarray):
    """Terms and gradients by the twin's names."""
    outputs = twin.train()(torch.from_numpy(batch["image"]), torch.from_numpy(noise))
    pairs = pairs_of(torch.from_numpy(batch["present"]))
    terms = ClassMaskLoss()(outputs, torch.from_numpy(batch["label"]), pairs, torch.from_numpy(counts))
    terms.sum().backward()
    return dict(zip(TERMS, terms.tolist(), strict=True)), {n: p.grad.numpy() for n, p in twin.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_loss_terms_and_gradients_agree(backbone):
    network, weights = random_network(backbone)
    batch = draw_batch(2)
    noise, counts = draw_noise(network.noise_rates, 0, 0, 2), batch_counts(batch)
    step = tiny_step(network)
    ours, norm, _ = run_step(step, step.optimizer.inputs(0, 1.0), noise, [batch], counts)  # SGD with rate 1: p = p - g
    theirs, gradients = twin_gradients(twin_of(backbone, weights), batch, noise[0], counts)
    assert theirs == pytest.approx(ours, abs=1e-4) and min(ours.values()) > 0.0
    assert norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradients.values())), rel=1e-3)
    for name, parameter in network.parameters_dict().items():
        last = {"gamma": "weight", "beta": "bias"}.get(name.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1])
        if parameter.requires_grad:
            gradient = (weights[name] - parameter.asnumpy()).reshape(weights[name].shape)
            twin_gradient = gradients[f"{name.rsplit('.', 1)[0]}.{last}"].reshape(gradient.shape)
            np.testing.assert_allclose(twin_gradient, gradient, rtol=0, atol=1e-4, err_msg=name)


def test_weights_that_do_not_fit_are_listed():
    _, weights = random_network("vit")
    weights["head.more.gamma"] = weights.pop("head.fusion.weight")
    weights["head.confidence.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="head.fusion.weight: not in the weights") as error:
        twin_of("vit", weights)
    assert "head.more.gamma: not in the twin" in str(error.value)
    assert "head.confidence.bias: (3,), the twin has (4,)" in str(error.value)


def test_switches_that_the_twin_lacks_are_refused():
    with pytest.raises(ValueError, match="attn_sign='reversed' only"):
        model = {"backbone": BACKBONES["vit"], "head": {**HEAD, "attn_sign": "standard"}, "mean": MEAN, "std": STD}
        create_twin(model, K, SIZE)


def test_every_row_is_a_network_that_both_sides_have():
    for row in (rows.ROWS | rows.SMALL_ROWS).values():
        described = json.loads(json.dumps(rows.describe(row)))
        assert described["loss"] == {"name": "class_mask"} and described["optimizer"]["name"] == "adamw"
        with torch.device("meta"):
            twin = create_twin(described["model"], row.classes, row.size)
        batch = rows.draw_batch(described)
        assert batch["image"].shape == (row.batch, 3, *row.size) and batch["label"].shape == (row.batch, *row.size)
        assert sum(p.numel() for p in twin.parameters()) > 1e4
    assert sum(p.numel() for p in twin.parameters()) < 1e6  # the last one is small


def test_present_classes_are_those_of_the_label():
    described = rows.describe(rows.SMALL_ROWS["small_train"])
    batch = rows.draw_batch(described)
    for label, present in zip(batch["label"], batch["present"], strict=True):
        assert set(present[present >= 0]) == set(np.unique(label)) - {255} and len(set(np.unique(label))) > 4
    np.testing.assert_array_equal(batch["image"], rows.draw_batch(described)["image"])


def test_outputs_that_differ_stop_the_run(tmp_path):
    value = np.array([10.0, -20.0, 0.0])
    np.savez(tmp_path / "reference.npz", logits=value)
    np.savez(tmp_path / "mindspore.npz", ce=np.float64(2.0))
    np.savez(tmp_path / "eager.npz", logits=value + 1e-3, ce=np.float64(2.0))
    np.savez(tmp_path / "bfloat16.npz", logits=value + 1.0, ce=np.float64(2.5))
    found = session.compare(tmp_path, ("mindspore", "eager", "bfloat16"))
    assert found["eager"] == pytest.approx({"logits": 5e-5, "ce": 0.0})  # scaled by 20
    assert found["bfloat16"] == pytest.approx({"logits": 0.05, "ce": 0.25})
    assert found["mindspore"] == {}
    np.savez(tmp_path / "eager.npz", logits=value + 3e-3, ce=np.float64(np.nan))
    with pytest.raises(session.DisagreementError, match="eager: logits differs by 0.00015") as error:
        session.compare(tmp_path, ("mindspore", "eager"))
    assert "eager: ce differs by nan" in str(error.value)


def test_label_maps_may_differ_in_few_pixels(tmp_path):
    for name, others in (("mindspore", 0), ("few", 5), ("many", 6)):
        np.savez(tmp_path / f"{name}.npz", labels=np.arange(5000) < others)
    assert session.compare(tmp_path, ("mindspore", "few"))["few"] == {"labels": 1e-3}
    with pytest.raises(session.DisagreementError, match="labels"):
        session.compare(tmp_path, ("mindspore", "many"))


class FakeProcess:
    """Answers as a worker does; its n-th step takes n times `unit` seconds."""

    def __init__(self, name: str, unit: float, journal: list) -> None:
        self.name, self.unit, self.journal, self.steps = name, unit, journal, 0

    def ask(self, do: str, **_) -> dict:
        self.journal.append((self.name, do))
        self.steps += do == "step"
        return {"seconds": self.steps * self.unit, "growth": self.steps, "macs_per_s": 5e9 * self.unit}


def test_rounds_alternate_and_warm_up_is_not_counted():
    journal: list[tuple[str, str]] = []
    names = ("mindspore", "eager", "compile")
    processes = {name: FakeProcess(name, i + 1.0, journal) for i, name in enumerate(names)}
    seconds, memory, peak = session.take_turns(processes, 2, "test")
    assert seconds == {"mindspore": [3.0, 4.0], "eager": [6.0, 8.0], "compile": [9.0, 12.0]}
    assert memory["eager"]["growth"] == session.WARM_UP and peak == 10e9
    steps = [name for name, do in journal if do == "step"]
    assert steps == [*names, *names[1:], names[0], names[2], *names[:2], *names]
    products = [name for name, do in journal if do == "product"]
    assert products == ["mindspore", "eager"] * 2  # only in counted rounds, one of each framework


def test_ratios_floor_and_shares():
    reports = {
        "mindspore": {"seconds": [2.0, 3.0, 4.0], "median": 3.0}, "eager": {"seconds": [1.0, 2.0, 1.0], "median": 1.0},
        "compile": {"error": "no g++"},
    }  # fmt: skip
    row = rows.describe(rows.SMALL_ROWS["small_train"])
    result = session.summarise(row, {"backbone": 0.2, "head": 0.05}, reports, 1e10)
    assert result["gmacs_per_call"] == pytest.approx(0.25 * 3 * 2)  # three forwards, two images
    assert result["floor_seconds"] == pytest.approx(0.15) and result["peak_gflops"] == 20.0
    assert result["ratios"] == {"eager": {"median": 2.0, "min": 1.5, "max": 4.0}}
    assert result["contenders"]["mindspore"]["peak_share"] == pytest.approx(0.05)
    assert result["contenders"]["compile"] == {"error": "no g++"}


def test_pairs_keep_the_ratio_of_their_own_session(monkeypatch):
    def measure(row, names, rounds, title):
        assert names[0] == "mindspore" and rounds == 3
        ratio = {"eager": 2.0, "compile": 3.0}[names[1]]
        reports = {"mindspore": {"median": ratio}, names[1]: {"median": 1.0, "differences": {}}}
        return {"contenders": reports, "ratios": {names[1]: ratio}}

    monkeypatch.setattr(side_by_side, "measure_row", measure)
    result = side_by_side.measure_pairs({}, ["eager", "mindspore", "compile"], 3, "row")
    assert result["ratios"] == {"eager": 2.0, "compile": 3.0} and list(result["contenders"])[1:] == ["eager", "compile"]
    assert result["contenders"]["mindspore"] == {"median": 2.0}  # of the first session
    with pytest.raises(ValueError, match="--pairs needs mindspore"):
        side_by_side.measure_pairs({}, ["mindspore"], 3, "row")


def test_a_worker_stands_still_between_requests_and_reports_errors(tmp_path):
    with Process("torch_worker", ("eager",), tmp_path / "log") as process:
        with pytest.raises(WorkerError, match="FileNotFoundError"):
            process.ask("build", row={}, folder=str(tmp_path / "nowhere"))
        assert process.ask("product")["macs_per_s"] > 0.0
        assert Path(f"/proc/{process.process.pid}/stat").read_text().split()[2] == "T"
    assert process.process.returncode == 0
    failure = pytest.raises(WorkerError, match="(?s)ended with code 1.*no_such_worker")
    with Process("no_such_worker", (), tmp_path / "other") as process, failure:
        process.ask("build")


def result_entry(title: str, mode: str = "train") -> dict:
    run = {"processor": "P", "cores": 2, "load_before": 0.0, "date": "D", "command": "C"}
    reports = {
        "mindspore": {"seconds": [3.0], "median": 3.0, "memory": {"growth": 2**20, "peak": 2**21}},
        "eager": {"seconds": [1.5], "median": 1.5, "memory": {"growth": 2**21, "peak": 2**22}},
        "compile": {"error": "no g++"},
    }
    row = rows.describe(rows.SMALL_ROWS["small_train"]) | {"title": title, "mode": mode}
    return {"run": run, **session.summarise(row, {"backbone": 0.5, "head": 0.5}, reports, 1e10)}


def test_report_fills_the_page(tmp_path):
    page, figure = tmp_path / "page.md", tmp_path / "growth.png"
    page.write_text((Path(__file__).resolve().parents[1] / report.PAGE).read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ["--results", str(tmp_path), "--page", str(page), "--figure", str(figure)]
    before = page.read_text()
    with pytest.raises(FileNotFoundError, match="no results"):
        report.main(arguments)
    assert page.read_text() == before and not figure.exists()
    add_result(tmp_path / "side_by_side.json", "row", result_entry("row Z"))
    add_result(tmp_path / "side_by_side.json", "row", result_entry("row A"))  # in place of row Z
    for mode in ("forward", "train"):
        for value, gmacs, factor in ((256, 1.0, 1.0), (1024, 4.0, 5.0)):
            entry = result_entry("point", mode) | {"series": "tokens", "value": value, "gmacs_per_call": gmacs}
            del entry["contenders"]["compile"]
            entry["contenders"]["mindspore"]["median"] *= factor
            add_result(tmp_path / "growth.json", f"tokens/{value}/{mode}", entry)
    start = dict.fromkeys(start_up.PHASES, 2.0)
    starts = {"run": result_entry("")["run"], "title": "row A", "starts": {"cold": [start, start]}}
    add_result(tmp_path / "start_up.json", "row", starts)
    report.main(arguments)
    text = page.read_text()
    assert "| row A | 1 | 3.000 | 1.500 | failed, see below | - | **2.00** (2.00 to 2.00) |" in text
    assert "- torch.compile, row A: no g++" in text and "row Z" not in text
    assert "| tokens | train | 256 to 1024 | 4.00 | 5.00 | 1.00 | 2.00, 2.00 | 0.50 |" in text
    operators = before.split("operators: begin")[1].split("operators: end")[0]
    assert operators in text  # there is no file of operators: the section stays
    assert "| row A | cold | 2 | 2.0 | 2.0 | 2.0 | 2.0 | 2.0 |" in text and figure.stat().st_size > 0
    page.write_text("no markers")
    with pytest.raises(ValueError, match="side by side: begin"):
        report.main(arguments)


def test_misuse_is_refused(capsys):
    for command in (side_by_side.main, growth.main):
        with pytest.raises(SystemExit):
            command(["--rounds", "0"])
        assert "at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_small_rows_run_from_end_to_end(tmp_path):
    out = tmp_path / "results.json"
    options = ["--rounds", "1", "--contenders", "mindspore", "eager", "bfloat16", "--out", str(out)]
    side_by_side.main(["--rows", "small_train", "small_infer", *options])
    results = read_results(out)
    for name, keys in (("small_train", {*TERMS, "norm", "logits"}), ("small_infer", {"labels", "logits"})):
        entry = results[name]
        assert entry["ratios"]["eager"]["median"] > 0.0
        assert set(entry["contenders"]["eager"]["differences"]) >= keys - {"logits"}
        assert all(len(report["seconds"]) == 1 for report in entry["contenders"].values())
