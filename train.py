"""Trains a network: python train.py --config FILE [key=value ...]

Goes on from the newest good checkpoint of the run's folder, output_dir/name, where there is one.
"""

from functools import partial
from pathlib import Path

import numpy as np

from src import cli, distributed
from src.config import Config, config_to_yaml, format_config, load_config_with_sources
from src.data import create_eval_samples, create_train_batches, load_classes
from src.engine import checkpoint, weights
from src.engine.evaluator import evaluate
from src.engine.graph_cache import graph_cache, require_folder
from src.engine.graphs import NetworkLogits
from src.engine.inference import predict_label, require_fit
from src.engine.optimizer import create_optimizer, learning_rates
from src.engine.run_folder import open_run
from src.engine.train_step import TrainStep
from src.engine.trainer import Loop, fit
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
    train(config, rank, world_size)


def train(config: Config, rank: int = 0, world_size: int = 1) -> dict:
    """Trains as configured; returns the state after the last step, with `miou` and `best_miou`."""
    distributed.set_seed(config.seed)
    classes = load_classes(config.data)
    network = create_model(config.model, len(classes), config.data.crop_size)
    synchronise_norms(network, world_size)
    if config.train.batch_size * world_size == 1 and has_batch_norm(network):
        get_console().print("warning: batch normalisation over a batch of 1 image; use model.head.norm=group")
    loss = create_loss(config.loss, len(classes))
    check_outputs(network.head, loss)
    samples = create_eval_samples(config.data, rank, world_size)
    if config.eval.mode == "whole":
        require_fit(samples.sizes(), config.eval)
    if config.device.compile_cache:
        require_folder(config.device.compile_cache, config.device.mode)
    run = open_run(config.output_dir, config.name, config_to_yaml(config), create=rank == 0)
    optimizer = create_optimizer(network, config.optimizer)
    state = start(config, run, network, optimizer, classes, rank, world_size)
    first_step, settings = state.get("step", 0), config.train
    weights = distributed.checksum(parameter.asnumpy() for parameter in network.get_parameters())
    facts = {"the step to go on from": first_step, "the checksum of the weights": weights}
    distributed.require_agreement(facts, rank, world_size)
    if first_step >= settings.steps:
        get_console().print(f"{run}: all {settings.steps} steps are done")
        return state
    step_cell = TrainStep(
        network, loss, optimizer, COLUMNS,
        clip_norm=config.optimizer.clip_norm, accumulate=settings.accumulate, world_size=world_size,
    )  # fmt: skip
    per_step = settings.batch_size * settings.accumulate  # samples of this rank
    batches = create_train_batches(
        config.data, max_classes=config.data.max_classes or len(classes), seed=config.seed, rank=rank,
        world_size=world_size, batch_size=settings.batch_size, first_sample=first_step * per_step,
        num_samples=(settings.steps - first_step) * per_step,
    )  # fmt: skip
    loop = Loop(
        run=run, steps=settings.steps, first_step=first_step, batch_size=settings.batch_size,
        accumulate=settings.accumulate, log_every=settings.log_every, evaluate_every=settings.evaluate_every,
        checkpoint_every=settings.checkpoint_every, keep_checkpoints=settings.keep_checkpoints,
        seed=config.seed, rank=rank, world_size=world_size,
        classes={"names": classes.names, "palette": classes.palette},
    )  # fmt: skip
    validate = create_validation(config, network, classes, samples, rank, world_size)
    cache = graph_cache(config.device.compile_cache, graph_facts(config, len(classes), rank, world_size))
    return fit(loop, network, step_cell, rates(config), batches, count, validate, state, cache)


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


def create_validation(config: Config, network, classes, samples, rank: int, world_size: int):
    """A function that evaluates the network's present weights as eval.py would, and returns the summary."""
    make = NetworkLogits(
        partial(create_model, config.model, len(classes)), partial(weights.copy_weights, network)
    )
    predict = partial(predict_label, settings=config.eval, make=make, num_classes=len(classes))
    all_reduce = distributed.sum_counts if world_size > 1 else None
    if len(samples):  # settings that do not fit the images are refused now, not after hours
        evaluate(predict, [samples[0]], classes, config.eval.boundary_radius, progress=False)

    def validate() -> dict:
        make.refresh()
        return evaluate(predict, samples, classes, config.eval.boundary_radius, rank == 0, all_reduce)

    return validate


if __name__ == "__main__":
    cli.run(main)
