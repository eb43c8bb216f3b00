"""Checkpoints of a run in training: what they hold, and going on from the newest one that is as it was written."""

import json
import os
from pathlib import Path

import numpy as np
from mindspore import nn

from src import distributed
from src.engine.checkpoint_files import (
    BEST,
    LATEST,
    OPTIMIZER,
    SLACK,
    STATE,
    WEIGHTS,
    clear_debris,
    name_of,
    newest_good,
    numbers_of,
    point,
    problems_of,
    publish,
    set_aside,
    step_folders,
)
from src.engine.tensor_files import tensor_blocks
from src.engine.weights import (
    CLASSES,
    assign,
    begin_averages,
    load_weights,
    parameters_of,
    read_tensors,
    require_classes,
    weights_in_use,
)
from src.log import get_console

FOLDER = "checkpoints"  # of a run
BEST_FACTS = ("best_miou", "best_step")  # of the state: what `best` was chosen by


def save_checkpoint(
    run: Path, step: int, network: nn.Cell, optimizer: nn.Cell, state: dict, best: bool, classes: dict | None = None,
    keep: int = 1,
) -> Path:  # fmt: skip
    """Writes the checkpoint of a step, see `checkpoint_files.publish`; returns its folder.

    state: JSON-able facts of the run, kept beside the weights; classes: `names` and `palette`, kept with the weights.
    """
    files = contents(network, optimizer, {**state, "step": step}, classes)
    return publish(run / FOLDER, step, files, best=best, keep=keep)


def contents(network: nn.Cell, optimizer: nn.Cell, state: dict, classes: dict | None) -> dict[str, list]:
    """The files of a checkpoint by name, as blocks of bytes."""
    described = {} if classes is None else {CLASSES: json.dumps(classes)}
    return {
        WEIGHTS: tensor_blocks(weights_in_use(network, optimizer), {**network.weight_metadata(), **described}),
        OPTIMIZER: tensor_blocks(parameters_of(optimizer), {}),
        STATE: [json.dumps(state, indent=1).encode()],
    }


def checkpoint_size(network: nn.Cell, optimizer: nn.Cell, classes: dict | None = None) -> int:
    """Bytes that a checkpoint takes on the disk, at most."""
    blocks = contents(network, optimizer, {}, classes).values()
    return sum(len(block) for file in blocks for block in file) + SLACK


def resume(
    run: Path, network: nn.Cell, optimizer: nn.Cell, class_names: tuple[str, ...], rank: int = 0, world_size: int = 1
) -> dict | None:
    """Goes on from the run's newest good checkpoint, the same on all ranks; its state, None where there is none.

    Says aloud which checkpoints were passed over and why. Raises ValueError where all are damaged.
    """
    root = run / FOLDER
    folder = agree(root, choose(root) if rank == 0 else None, world_size)
    if folder is None:
        return None
    require_classes(folder / WEIGHTS, class_names)
    state = restore(folder, network, optimizer)
    if not (root / BEST).exists():
        state = {key: value for key, value in state.items() if key not in BEST_FACTS}
    get_console().print(f"going on from {folder}, step {state['step']}", markup=False, soft_wrap=True)
    return state


def choose(root: Path) -> Path | None:
    """The newest good checkpoint; debris is removed, damaged ones are set aside, links that named them mended."""
    clear_debris(root)
    chosen, damaged = newest_good(root)
    told = [f"{folder}: {'; '.join(problems)}" for folder, problems in damaged.items()]
    if chosen is None:
        if told:
            raise ValueError(
                f"no usable checkpoint in {root}; bring one back from a copy, or remove this folder to begin anew:\n  "
                + "\n  ".join(told)
            )
        return None
    for text in told:
        get_console().print(f"warning: passed over {text}", markup=False, soft_wrap=True)
    link = root / LATEST
    if not link.is_symlink() or os.readlink(link) != chosen.name:
        point(link, chosen.name)
    mend_best(root, chosen)
    for folder in damaged:
        set_aside(folder)
    return chosen


def mend_best(root: Path, chosen: Path) -> None:
    """Makes `best` name the good checkpoint that the chosen one counts as best, or nothing where that is lost."""
    link, step = root / BEST, json.loads((chosen / STATE).read_text()).get("best_step")
    for folder in step_folders(root):
        if numbers_of(folder)[0] == step and (folder == chosen or not problems_of(folder)):
            if not link.is_symlink() or os.readlink(link) != folder.name:
                point(link, folder.name)
            return
    if link.is_symlink():
        lost = root / os.readlink(link)
        text = f"warning: {link} is lost, {lost.name}: {'; '.join(problems_of(lost))}"
        get_console().print(f"{text}; the next evaluation counts as the best", markup=False, soft_wrap=True)
        link.unlink()
        set_aside(lost)


def agree(root: Path, folder: Path | None, world_size: int) -> Path | None:
    """Rank 0's folder on all ranks; the others hand in None."""
    numbers = np.array((0, 0) if folder is None else numbers_of(folder), np.int64)
    if world_size > 1:
        numbers = distributed.sum_counts(numbers)
    step, again = map(int, numbers)
    return root / name_of(step, again) if again else None


def restore(folder: Path, network: nn.Cell, optimizer: nn.Cell) -> dict:
    """Loads weights and optimiser state of a checkpoint folder; returns its state, with `step`.

    Where the optimiser keeps averages, the weights file holds these, and the optimiser's file the weights in training.
    """
    load_weights(network, folder)
    begin_averages(optimizer)
    path = folder / OPTIMIZER
    tensors, _ = read_tensors(path)
    assign(optimizer, tensors, path)
    return json.loads((folder / STATE).read_text())
