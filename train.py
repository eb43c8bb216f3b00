"""Trains a network: python train.py --config FILE [key=value ...]

Goes on from the newest good checkpoint of the run's folder, output_dir/name, where there is one. SIGTERM, SIGUSR1 or
SIGINT (Ctrl-C) end it after the present step, saved, with exit code 85; the same command goes on from there.
"""

import math
import sys
import time
from functools import partial
from pathlib import Path

import src  # noqa: F401  (before MindSpore, whose log level it sets)

# isort: split
import mindspore as ms
import numpy as np

from src import cli, distributed
from src.class_text import give_text
from src.config import Config, config_to_yaml, format_config, load_config_with_sources
from src.data import asks_for_classes, create_eval_samples, create_train_batches, is_scribbled, load_classes, load_items
from src.data.bad_samples import BadSamples
from src.doctor.data import check_first
from src.engine import checkpoint, weights
from src.engine.evaluator import evaluate
from src.engine.graph_cache import graph_cache, require_folder
from src.engine.graphs import NetworkLogits
from src.engine.inference import predict_label, require_fit
from src.engine.optimizer import batch_factor, create_optimizer, learning_rates
from src.engine.precision import half_type
from src.engine.preflight import rehearse, tell_plan
from src.engine.run_folder import open_run
from src.engine.run_logs import BAD_SAMPLES, known_bad_samples
from src.engine.stopping import Stopped, StopSignals
from src.engine.train_step import TrainStep
from src.engine.trainer import EVALUATION_DUE, IMAGES, Loop, Parts, fit
from src.log import get_console, silence_other_ranks
from src.losses import check_fit, check_outputs, create_loss
from src.losses.counts import batch_counts
from src.models import create_model
from src.models.layers import has_batch_norm, synchronise_norms
from src.models.plain import multiply_in

COLUMNS = ("image", "label", "valid", "present")


def main() -> None:
    """Reads the command line and trains."""
    arguments = cli.config_parser(__doc__).parse_intermixed_args()
    config, sources = load_config_with_sources(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(format_config(config, sources))
        return
    rank, world_size = distributed.setup(config.device.target, config.device.mode)
    silence_other_ranks(rank)
    try:
        train(config, rank, world_size)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(cli.RESUME)


def train(config: Config, rank: int = 0, world_size: int = 1) -> dict:
    """Trains as configured; returns the state after the last step, with `miou` and `best_miou`.

    Raises Stopped where a signal ended the run before its last step, FloatingPointError where its numbers went bad.
    """
    with StopSignals(cli.INTERRUPTED) as stop:
        return prepare_and_train(config, rank, world_size, stop)


def prepare_and_train(config: Config, rank: int, world_size: int, stop: StopSignals) -> dict:
    """Checks everything that can be checked before the first step, then trains."""
    distributed.set_seed(config.seed)
    classes = load_classes(config.data)
    network, half = create_network(config, classes.names, world_size)
    loss = create_loss(config.loss, len(classes))
    check_outputs(network.head, loss)
    sparse = is_scribbled(config.data, config.data.train_split)
    check_fit(loss, config.data.crop_size, sparse, asks_for_classes(config.data))
    samples = create_eval_samples(config.data, rank, world_size)
    items = load_items(config.data, config.data.train_split)
    check_data(config, classes, items, samples)
    if config.device.compile_cache:
        require_folder(config.device.compile_cache, config.device.mode)
    run = open_run(config.output_dir, config.name, config_to_yaml(config), create=rank == 0)
    optimizer = create_optimizer(network, config.optimizer, config.train.ema_decay)
    state = start(config, run, network, optimizer, classes, rank, world_size)
    checksum = distributed.checksum(parameter.asnumpy() for parameter in network.get_parameters())
    facts = {"the step to go on from": state.get("step", 0), "the checksum of the weights": checksum}
    facts |= {"whether products are taken in float16": half == ms.float16}
    distributed.require_agreement(facts, rank, world_size)
    if state.get("step", 0) >= config.train.steps and EVALUATION_DUE not in state:
        get_console().print(f"{run}: all {config.train.steps} steps are done")
        return state
    loop = create_loop(config, run, state.get("step", 0), classes, rank, world_size)
    step_cell = TrainStep(
        network, loss, optimizer, columns_of(loss),
        clip_norm=config.optimizer.clip_norm, accumulate=config.train.accumulate, world_size=world_size,
        scaled=half == ms.float16,
    )  # fmt: skip
    bad = create_bad_samples(config, run, items, classes)
    schedule = rates(config, world_size)
    if rank == 0:
        tell_plan(loop, config.optimizer, schedule, len(items), network, optimizer)
    validate, evaluation_seconds = create_validation(config, step_cell, classes, samples, rank, world_size, stop)
    batches = create_batches(config, loop, len(classes), items, bad, step_cell.columns)
    parts = Parts(network, step_cell, schedule, batches, count, validate, stop, items, bad)
    cache = graph_cache(config.device.compile_cache, graph_facts(config, len(classes), rank, world_size, half))
    try:
        return fit(loop, rehearse(loop, parts, state, cache, evaluation_seconds), state)
    finally:
        if bad and bad.names:
            listed = ", ".join(bad.names)
            place = f" ({run / BAD_SAMPLES})" if (run / BAD_SAMPLES).is_file() else ""
            text = f"{len(bad.names)} training samples left out: {listed}{place}"
            get_console().print(text, markup=False, soft_wrap=True)


def check_data(config: Config, classes, items, samples) -> None:
    """Looks at the first samples of both splits and prints warnings; raises ValueError for what cannot be used."""
    splits = {config.data.train_split: items, config.data.val_split: samples.items}
    for finding in check_first(config.data, classes, splits):
        get_console().print(f"warning: {finding.text}\n    {finding.mend}", markup=False, soft_wrap=True)
    if config.eval.mode == "whole":
        require_fit(samples.sizes(), config.eval)


def create_network(config: Config, names: tuple[str, ...], world_size: int):
    """The network with fresh weights, its norms over all devices; and the type of its products, None for float32.

    names: of the classes, whose text it is given where it is told by text.
    """
    network = create_model(config.model, len(names), config.data.crop_size)
    give_text(network, config.model, names, config.data.unseen)
    synchronise_norms(network, world_size)
    if config.train.batch_size * world_size == 1 and has_batch_norm(network):
        get_console().print("warning: batch normalisation over a batch of 1 image; use model.head.norm=group")
    return network, choose_precision(config, network)


def choose_precision(config: Config, network):
    """Sets the type of the network's products, see precision.py; returns it, None for float32."""
    half = half_type(config.train.amp_level, config.device.target)
    if half is not None:
        scaled = ", the loss scaled" if half == ms.float16 else ""
        get_console().print(f"linear layers, convolutions and attention multiply in {half}{scaled}")
        multiply_in(network, half)
    return half


def create_loop(config: Config, run: Path, first_step: int, classes, rank: int, world_size: int) -> Loop:
    """The settings of the training loop."""
    settings = config.train
    return Loop(
        run=run, steps=settings.steps, first_step=first_step, batch_size=settings.batch_size,
        accumulate=settings.accumulate, log_every=settings.log_every, evaluate_every=settings.evaluate_every,
        checkpoint_every=settings.checkpoint_every, keep_checkpoints=settings.keep_checkpoints,
        max_bad_steps=settings.max_bad_steps, seed=config.seed, rank=rank, world_size=world_size,
        classes={"names": classes.names, "palette": classes.palette},
    )  # fmt: skip


def create_bad_samples(config: Config, run: Path, items, classes) -> BadSamples | None:
    """What notes the samples that cannot be read, those of earlier starts included; None where they are errors."""
    if config.data.on_bad_sample != "skip":
        return None
    return BadSamples(items, classes.table, config.data.max_bad_samples, known_bad_samples(run))


def columns_of(loss) -> tuple[str, ...]:
    """Names of the batch's arrays that a training step with this loss takes."""
    return (*COLUMNS, *getattr(loss, "columns", ()))


def create_batches(config: Config, loop: Loop, num_classes: int, items, bad: BadSamples | None, columns=COLUMNS):
    """The batches that this rank has still to take; none after the last step, which may await its evaluation."""
    if loop.first_step == loop.steps:
        return iter(())
    per_step = loop.batch_size * loop.accumulate  # samples of this rank
    return create_train_batches(
        config.data, max_classes=config.data.max_classes or num_classes, seed=config.seed, rank=loop.rank,
        world_size=loop.world_size, batch_size=loop.batch_size, first_sample=loop.first_step * per_step,
        num_samples=(loop.steps - loop.first_step) * per_step, items=items, bad=bad, columns=columns,
    )  # fmt: skip


def graph_facts(config: Config, num_classes: int, rank: int, world_size: int, half=None) -> dict:
    """Everything besides the sources that the compiled training step depends on; half: see `choose_precision`."""
    settings = config.model_dump(mode="json")
    sections = {name: settings[name] for name in ("model", "loss", "optimizer")}
    del sections["model"]["pretrained"], sections["model"]["reset_classifier"]
    for name in ("lr", "min_lr", "power", "warmup_steps", "warmup_ratio", "reference_batch"):
        del sections["optimizer"][name]  # they end up in numbers of a step, inputs of the graph
    sizes = {
        "crop_size": config.data.crop_size, "max_classes": config.data.max_classes, "num_classes": num_classes,
        "batch_size": config.train.batch_size, "accumulate": config.train.accumulate,
        "ema": config.train.ema_decay is not None, "half": str(half),
    }  # fmt: skip
    return {**sections, **sizes, "target": config.device.target, "rank": rank, "world_size": world_size}


def start(config: Config, run: Path, network, optimizer, classes, rank: int, world_size: int) -> dict:
    """Loads the first that exists: the run's newest good checkpoint, pretrained weights; the checkpoint's state."""
    state = checkpoint.resume(run, network, optimizer, classes.names, rank, world_size)
    if state is not None:
        require_images(run, state, math.prod(step_shape(config, world_size)))
        return state
    source = config.model.pretrained
    if not source:
        get_console().print("fresh weights")
    elif config.model.reset_classifier:
        file, fresh = weights.load_except_classes(network, source)
        get_console().print(f"weights from {file}, fresh because they depend on the classes: {', '.join(fresh)}")
    else:
        get_console().print(f"backbone from {weights.load_pretrained(network, source)}")
    weights.begin_averages(optimizer)
    return {}


def require_images(run: Path, state: dict, images: int) -> None:
    """Raises ValueError where the run in a folder has made its steps of another number of images."""
    if state.get(IMAGES, images) != images:
        raise ValueError(
            f"{run} was trained with {state[IMAGES]} images a step, now there would be {images}: the learning rate and "
            "the order of the samples are for the former. Start it on as many devices as before, or give this run "
            "another name=..."
        )


def step_shape(config: Config, world_size: int) -> tuple[int, int, int]:
    """Images of a micro-batch, micro-batches, devices: their product is the images a step."""
    return config.train.batch_size, config.train.accumulate, world_size


def rates(config: Config, world_size: int) -> np.ndarray:
    """Learning rate of every step, (steps,); says aloud where it is not that of the settings."""
    o, batch = config.optimizer, step_shape(config, world_size)
    factor = batch_factor(o.name, math.prod(batch), o.reference_batch)
    if o.reference_batch is not None:
        get_console().print(
            f"learning rate {o.lr:g} for {o.reference_batch} images a step is {o.lr * factor:g} for "
            f"{math.prod(batch)} = {batch[0]} x {batch[1]} micro-batches x {batch[2]} devices "
            f"({'linear' if o.name == 'sgd' else 'square root'}, optimizer.reference_batch)",
            soft_wrap=True,
        )
    return factor * learning_rates(
        o.lr, config.train.steps, warmup_steps=o.warmup_steps, warmup_ratio=o.warmup_ratio, power=o.power,
        min_lr=o.min_lr,
    )  # fmt: skip


def count(group: list[dict]) -> np.ndarray:
    """Counts of the micro-batches of one step, for the loss: (3,) float32."""
    return np.sum([batch_counts(batch) for batch in group], axis=0, dtype=np.float32)


def create_validation(config: Config, step_cell, classes, samples, rank: int, world_size: int, stop: StopSignals):
    """A function that evaluates the present weights, or their averages, as eval.py would, and returns the summary.

    It gives up, and returns None, where a signal asks any rank to stop. Also returns its seconds, estimated from the
    first image.
    """
    make = NetworkLogits(
        partial(create_model, config.model, len(classes)),
        partial(weights.copy_weights, step_cell.network, step_cell.optimizer),
    )
    predict = partial(predict_label, settings=config.eval, make=make, num_classes=len(classes))
    all_reduce = distributed.sum_counts if world_size > 1 else None
    radius, seconds = config.eval.boundary_radius, 0.0
    if len(samples):
        seconds = len(samples) * try_out(predict, samples[0], classes, radius)

    def validate() -> dict | None:
        make.refresh()
        return evaluate(predict, samples, classes, radius, rank == 0, all_reduce, stop.asked)

    return validate, seconds


def try_out(predict, sample, classes, radius: float) -> float:
    """Evaluates an image, so that settings that do not fit are refused now, not after hours; seconds of a second time.

    The first time compiles.
    """
    evaluate(predict, [sample], classes, radius, progress=False)
    began = time.perf_counter()
    evaluate(predict, [sample], classes, radius, progress=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    cli.run(main)
