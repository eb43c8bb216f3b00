"""Trains a network: python train.py --config FILE [key=value ...]

Goes on from the newest good checkpoint of the run's folder, output_dir/name, where there is one. SIGTERM, SIGUSR1 or
SIGINT (Ctrl-C) end it after the present step, saved, with exit code 85; the same command goes on from there.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from src import cli, distributed
from src.config import Config, config_to_yaml, format_config, load_config_with_sources
from src.data import create_eval_samples, create_train_batches, load_classes, load_items
from src.data.bad_samples import BadSamples
from src.doctor.data import check_first
from src.engine import checkpoint, weights
from src.engine.evaluator import evaluate
from src.engine.graph_cache import graph_cache, require_folder
from src.engine.graphs import NetworkLogits
from src.engine.inference import predict_label, require_fit
from src.engine.optimizer import create_optimizer, learning_rates
from src.engine.run_folder import open_run
from src.engine.stopping import Stopped, StopSignals
from src.engine.train_step import TrainStep
from src.engine.trainer import BAD_SAMPLES, EVALUATION_DUE, Loop, Parts, fit, known_bad_samples
from src.log import get_console, silence_other_ranks
from src.losses import check_outputs, create_loss
from src.losses.counts import batch_counts
from src.models import create_model
from src.models.layers import has_batch_norm, synchronise_norms

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
    network = create_model(config.model, len(classes), config.data.crop_size)
    synchronise_norms(network, world_size)
    if config.train.batch_size * world_size == 1 and has_batch_norm(network):
        get_console().print("warning: batch normalisation over a batch of 1 image; use model.head.norm=group")
    loss = create_loss(config.loss, len(classes))
    check_outputs(network.head, loss)
    samples = create_eval_samples(config.data, rank, world_size)
    items = load_items(config.data, config.data.train_split)
    splits = {config.data.train_split: items, config.data.val_split: samples.items}
    for finding in check_first(config.data, classes, splits):
        get_console().print(f"warning: {finding.text}\n    {finding.mend}", markup=False, soft_wrap=True)
    if config.eval.mode == "whole":
        require_fit(samples.sizes(), config.eval)
    if config.device.compile_cache:
        require_folder(config.device.compile_cache, config.device.mode)
    run = open_run(config.output_dir, config.name, config_to_yaml(config), create=rank == 0)
    optimizer = create_optimizer(network, config.optimizer)
    state = start(config, run, network, optimizer, classes, rank, world_size)
    checksum = distributed.checksum(parameter.asnumpy() for parameter in network.get_parameters())
    facts = {"the step to go on from": state.get("step", 0), "the checksum of the weights": checksum}
    distributed.require_agreement(facts, rank, world_size)
    if state.get("step", 0) >= config.train.steps and EVALUATION_DUE not in state:
        get_console().print(f"{run}: all {config.train.steps} steps are done")
        return state
    loop = create_loop(config, run, state.get("step", 0), classes, rank, world_size)
    step_cell = TrainStep(
        network, loss, optimizer, columns_of(loss),
        clip_norm=config.optimizer.clip_norm, accumulate=config.train.accumulate, world_size=world_size,
    )  # fmt: skip
    bad = None
    if config.data.on_bad_sample == "skip":
        bad = BadSamples(items, classes.table, config.data.max_bad_samples, known_bad_samples(run))
    batches = create_batches(config, loop, len(classes), items, bad, step_cell.columns)
    parts = Parts(
        network, step_cell, rates(config), batches, count,
        create_validation(config, network, classes, samples, rank, world_size, stop),
        graph_cache(config.device.compile_cache, graph_facts(config, len(classes), rank, world_size)),
        stop, items, bad,
    )  # fmt: skip
    try:
        return fit(loop, parts, state)
    finally:
        if bad and bad.names:
            listed = ", ".join(bad.names)
            get_console().print(f"{len(bad.names)} training samples left out: {listed} ({run / BAD_SAMPLES})")


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


def graph_facts(config: Config, num_classes: int, rank: int, world_size: int) -> dict:
    """Everything besides the sources that the compiled training step depends on."""
    settings = config.model_dump(mode="json")
    sections = {name: settings[name] for name in ("model", "loss", "optimizer")}
    del sections["model"]["pretrained"], sections["model"]["reset_classifier"]
    for name in ("lr", "min_lr", "power", "warmup_steps", "warmup_ratio"):  # numbers of a step, inputs of the graph
        del sections["optimizer"][name]
    sizes = {
        "crop_size": config.data.crop_size, "max_classes": config.data.max_classes, "num_classes": num_classes,
        "batch_size": config.train.batch_size, "accumulate": config.train.accumulate,
    }  # fmt: skip
    return {**sections, **sizes, "target": config.device.target, "rank": rank, "world_size": world_size}


def start(config: Config, run: Path, network, optimizer, classes, rank: int, world_size: int) -> dict:
    """Loads the first that exists: the run's newest good checkpoint, pretrained weights; the checkpoint's state."""
    state = checkpoint.resume(run, network, optimizer, classes.names, rank, world_size)
    if state is not None:
        return state
    source = config.model.pretrained
    if not source:
        get_console().print("fresh weights")
    elif config.model.reset_classifier:
        file, fresh = weights.load_except_classes(network, source)
        get_console().print(f"weights from {file}, fresh because they depend on the classes: {', '.join(fresh)}")
    else:
        get_console().print(f"backbone from {weights.load_pretrained(network, source)}")
    return {}


def rates(config: Config) -> np.ndarray:
    """Learning rate of every step, (steps,)."""
    o = config.optimizer
    return learning_rates(
        o.lr, config.train.steps, warmup_steps=o.warmup_steps, warmup_ratio=o.warmup_ratio, power=o.power,
        min_lr=o.min_lr,
    )  # fmt: skip


def count(group: list[dict]) -> np.ndarray:
    """Counts of the micro-batches of one step, for the loss: (3,) float32."""
    return np.sum([batch_counts(batch) for batch in group], axis=0, dtype=np.float32)


def create_validation(config: Config, network, classes, samples, rank: int, world_size: int, stop: StopSignals):
    """A function that evaluates the network's present weights as eval.py would, and returns the summary.

    It gives up, and returns None, where a signal asks any rank to stop.
    """
    make = NetworkLogits(
        partial(create_model, config.model, len(classes)), partial(weights.copy_weights, network)
    )
    predict = partial(predict_label, settings=config.eval, make=make, num_classes=len(classes))
    all_reduce = distributed.sum_counts if world_size > 1 else None
    if len(samples):  # settings that do not fit the images are refused now, not after hours
        evaluate(predict, [samples[0]], classes, config.eval.boundary_radius, progress=False)

    def validate() -> dict | None:
        make.refresh()
        radius = config.eval.boundary_radius
        return evaluate(predict, samples, classes, radius, rank == 0, all_reduce, stop.asked)

    return validate


if __name__ == "__main__":
    cli.run(main)
