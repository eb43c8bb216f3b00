"""Speed, memory and arithmetic of a configuration on one device.

train: the training step as train.py runs it, with the data that it reads. infer: one random image of eval.size through
the served graph. data: reading alone, no network. Weights are fresh, so any configuration can be timed before it has
been trained. No run folder is made or changed; the only file written is that of --json.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src  # noqa: E402, F401  (before MindSpore, whose log level it sets)

# isort: split
import mindspore as ms  # noqa: E402
import mindspore.dataset as ds  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import nn  # noqa: E402

from src import cli, distributed  # noqa: E402
from src.config import Config, format_config, load_config_with_sources  # noqa: E402
from src.data import create_eval_samples, create_train_batches, load_classes  # noqa: E402
from src.data.transforms import present_classes  # noqa: E402
from src.engine.benchmark import inference_parts, training_parts  # noqa: E402
from src.engine.benchmark_table import create_table  # noqa: E402
from src.engine.graphs import call_graph  # noqa: E402
from src.engine.optimizer import create_optimizer  # noqa: E402
from src.engine.predict_net import PredictNet  # noqa: E402
from src.engine.timing import (  # noqa: E402
    WARM_UP,
    alternate,
    arithmetic,
    peak_memory,
    shares,
    spread,
    time_steps,
    with_peak,
)
from src.engine.train_step import TrainStep, draw_noise, run_step  # noqa: E402
from src.engine.trainer import PROGRESS  # noqa: E402
from src.log import get_console  # noqa: E402
from src.losses import create_loss  # noqa: E402
from src.models import create_model  # noqa: E402
from train import COLUMNS, choose_precision, columns_of, count  # noqa: E402

STEPS = {"train": 20, "infer": 20, "data": 100}  # modes, and how often each is timed; batches arrive in bursts
RATE = 1e-7  # learning rate: weights hardly move, so that numbers stay finite however many steps are timed
STEP_FORWARDS = 3  # a training step counts as three forwards: one, and two products for each of its products going back
ASSUMED_CLASSES = 150
BUSY = 0.5  # load of other programs, in cores, that is worth a note
APART = "Parts are compiled and timed apart: their shares need not add up to 100 %."
REST = {
    "train": "Rest: normalisation, gradient norm, optimiser, transfer of the batch.",
    "infer": "Rest: normalisation, resizing of image and logits, argmax.",
}

Batch = dict[str, np.ndarray]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, measures, prints the table and writes the file."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--mode", choices=tuple(STEPS), default="train", help="what to time (default: train)")
    parser.add_argument(
        "--steps", type=int, metavar="N",
        help=f"timed steps (train), images (infer) or batches (data), after {WARM_UP} more that are not (default: "
        f"{', '.join(f'{mode} {steps}' for mode, steps in STEPS.items())})",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file; seconds and bytes")
    parser.add_argument(
        "--synthetic", action="store_true",
        help="random images and labels of data.crop_size in place of the data set, which need not be there",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=int, metavar="K",
        help="number of classes; only with --synthetic (default: that of the data set, or "
        f"{ASSUMED_CLASSES}, with a note, where it cannot be read)",
    )  # fmt: skip
    options = parser.parse_intermixed_args(arguments)
    options.steps = STEPS[options.mode] if options.steps is None else options.steps
    check_options(parser, options)
    config, sources = load_config_with_sources(options.config, options.overrides)
    if options.print_config:
        print(format_config(config, sources))
        return
    output = cli.writable(options.json) if options.json else None
    report = measure(config, options)
    get_console().print(create_table(report))
    if output:
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Leaves with exit code 2 for values and combinations that mean nothing."""
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: at least 1")
    if options.synthetic and options.mode == "data":
        parser.error("--synthetic: --mode data times the data set itself; leave one of the two out")
    if options.classes is not None and not options.synthetic:
        parser.error("--classes: only with --synthetic, else the data set says how many there are")
    if options.classes is not None and not 1 <= options.classes <= 255:
        parser.error(f"--classes {options.classes}: 1 to 255")


def measure(config: Config, options: argparse.Namespace) -> dict:
    """The report of one mode, ready for JSON: times in seconds, memory in bytes, shares from 0 to 1."""
    _, world_size = distributed.setup(config.device.target, config.device.mode)
    if world_size > 1:
        raise ValueError(f"the benchmark times one device, but {world_size} processes run; start it without msrun")
    notes: list[str] = []
    report = {
        "mode": options.mode, "config": config.name, "synthetic": options.synthetic, "steps": options.steps,
        "warm_up": WARM_UP, "notes": notes, "machine": describe_machine(config),
    }  # fmt: skip
    if report["machine"]["load"] > BUSY:
        notes.append("Other programs kept the machine busy: trust minima and shares more than medians.")
    if options.mode == "data":
        return report | measure_data(config, options.steps)
    classes = number_of_classes(config, options, notes)
    notes += [APART, REST[options.mode]]
    if options.mode == "infer":
        return report | {"classes": classes} | measure_inference(config, classes, options.steps)
    return report | {"classes": classes} | measure_training(config, classes, options.steps, options.synthetic)


def describe_machine(config: Config) -> dict:
    """What the numbers depend on besides the configuration; `load` is that of other programs, before the start."""
    return {
        "device": config.device.target, "execution": config.device.mode, "processor": processor_name(),
        "cores": os.cpu_count(), "load": os.getloadavg()[0], "mindspore": ms.__version__,
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }  # fmt: skip


def processor_name() -> str:
    """The processor's name where Linux tells it, else at least its architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def number_of_classes(config: Config, options: argparse.Namespace, notes: list[str]) -> int:
    """K of the data set, of --classes, or an assumed one with a note that says why."""
    if options.classes is not None:
        return options.classes
    try:
        return len(load_classes(config.data))
    except (ValueError, FileNotFoundError) as error:
        if not options.synthetic:
            raise
        notes.append(f"{ASSUMED_CLASSES} classes are assumed (--classes K changes that): {error}")
        return ASSUMED_CLASSES


def measure_training(config: Config, classes: int, steps: int, synthetic: bool) -> dict:
    """Steps on the stream of batches; then whole step, parts and matrix products by turns on one batch."""
    train = config.train
    groups = step_groups(config, classes, steps, synthetic)  # first, so that missing data is reported at once
    network = create_model(config.model, classes, config.data.crop_size)
    loss = create_loss(config.loss, classes)
    step = create_step(config, network, loss)
    get_console().print("compiling the training step: half a minute for small networks, minutes for large")
    times, group = time_steps(step, groups, steps, 0 if synthetic else stored_batches() // train.accumulate + 1)
    memory = peak_memory()  # before the parts add theirs
    get_console().print("compiling backbone, head and loss apart")
    noise = draw_noise(network.noise_rates, config.seed, 0, train.batch_size)[0]
    counts = count(group[:1])
    parts = training_parts(network, loss, noise, counts, group[0], columns_of(loss))
    seconds, peak = with_peak({"step": lambda: step(group, 0), **parts}, steps, config.device.target)
    images = train.batch_size * train.accumulate
    total = times["total"]
    return {
        "size": list(config.data.crop_size), "batch_size": train.batch_size, "accumulate": train.accumulate,
        "parameters": sum(p.size for p in network.trainable_params()), "first_step": times["first"],
        "step": spread(total), "images_per_s": float(images * steps / total.sum()),
        "waiting": None if synthetic else float(times["waiting"].sum() / total.sum()), "peak_memory": memory,
        "parts": shares(seconds, "step", train.accumulate),
        **arithmetic(network, STEP_FORWARDS * images / np.median(total), peak),
    }  # fmt: skip


def create_step(config: Config, network: nn.Cell, loss: nn.Cell) -> Callable[[list[Batch], int], None]:
    """A function (micro-batches, number of the step) that runs one optimiser step and waits for its result."""
    train = config.train
    half = choose_precision(config, network)
    cell = TrainStep(
        network, loss, create_optimizer(network, config.optimizer, train.ema_decay), columns_of(loss),
        clip_norm=config.optimizer.clip_norm, accumulate=train.accumulate, scaled=half == ms.float16,
    )  # fmt: skip

    def step(group: list[Batch], number: int) -> None:
        noise = draw_noise(network.noise_rates, config.seed, number, train.batch_size, accumulate=train.accumulate)
        run_step(cell, cell.inputs(number, RATE), noise, group, count(group))

    return step


def step_groups(config: Config, classes: int, steps: int, synthetic: bool) -> Iterator[list[Batch]]:
    """The micro-batches of one step after another."""
    accumulate = config.train.accumulate
    if synthetic:
        return repeat([completed(synthetic_batch(config, classes))] * accumulate)
    needed = (1 + WARM_UP + steps) * accumulate + stored_batches() + accumulate
    batches = map(completed, training_stream(config, needed))
    return iter(lambda: list(islice(batches, accumulate)), [])


def completed(batch: Batch) -> Batch:
    """A batch with what some losses read besides: every part of their schedules on, the crop's classes the image's."""
    return {"image_present": batch["present"], PROGRESS: np.ones(1, np.float32), **batch}


def training_stream(config: Config, batches: int) -> Iterator[Batch]:
    """So many of the batches that train.py would read."""
    return create_train_batches(
        config.data, max_classes=config.data.max_classes or len(load_classes(config.data)), seed=config.seed, rank=0,
        world_size=1, batch_size=config.train.batch_size, first_sample=0,
        num_samples=batches * config.train.batch_size,
    )  # fmt: skip


def stored_batches() -> int:
    """Batches that the pipeline may have read ahead: a queue each before and after samples are made a batch."""
    return 2 * ds.config.get_prefetch_size()


def synthetic_batch(config: Config, classes: int) -> Batch:
    """Noise, and labels in rectangles of no more classes than a crop has room for."""
    rng = np.random.default_rng(config.seed)
    size, room = config.data.crop_size, config.data.max_classes or classes
    samples = []
    for _ in range(config.train.batch_size):
        coarse = rng.integers(0, min(classes, room), (8, 8)).astype(np.uint8)
        label = np.kron(coarse, np.ones([-(-side // 8) for side in size], np.uint8))[: size[0], : size[1]]
        sample = {"image": rng.integers(0, 256, (3, *size), np.uint8), "label": label, "valid": np.ones_like(label)}
        samples.append(present_classes(room)(sample, rng))
    batch = {name: np.stack([sample[name] for sample in samples]) for name in COLUMNS}
    return batch | {"label": batch["label"].astype(np.int32)}


def measure_inference(config: Config, classes: int, steps: int) -> dict:
    """The served graph on one image; whole, parts and matrix products by turns."""
    size = config.eval.size
    network = create_model(config.model, classes, size)
    graph = PredictNet(network, size, "labels")
    image = np.random.default_rng(config.seed).integers(0, 256, (*size, 3), np.uint8)
    get_console().print("compiling the network, then backbone and head apart")
    start = time.perf_counter()
    call_graph(graph, image)
    first = time.perf_counter() - start
    memory = peak_memory()  # before the parts add theirs
    calls = {"image": lambda: call_graph(graph, image), **inference_parts(network, size)}
    seconds, peak = with_peak(calls, steps, config.device.target)
    whole = seconds["image"]
    return {
        "size": list(size), "parameters": sum(p.size for p in network.trainable_params()), "first_call": first,
        "image": spread(whole), "images_per_s": float(1.0 / whole.mean()), "peak_memory": memory,
        "parts": shares(seconds, "image"), **arithmetic(network, 1.0 / np.median(whole), peak),
    }  # fmt: skip


def measure_data(config: Config, steps: int) -> dict:
    """Reading of the training stream and of evaluation images, with nothing else running."""
    batches = training_stream(config, WARM_UP + steps)
    batch = alternate({"batch": lambda: next(batches)}, steps, "training batches")["batch"]
    samples = create_eval_samples(config.data)
    numbers = iter(range(WARM_UP + steps))
    sample = alternate({"image": lambda: samples[next(numbers) % len(samples)]}, steps, "evaluation images")
    return {
        "size": list(config.data.crop_size), "batch_size": config.train.batch_size, "workers": config.data.workers,
        "batch": spread(batch), "train_images_per_s": float(config.train.batch_size * steps / batch.sum()),
        "image": spread(sample["image"]), "eval_images_per_s": float(steps / sample["image"].sum()),
        "peak_memory": peak_memory(),
    }  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
