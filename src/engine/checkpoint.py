"""Checkpoints: one folder a step, `latest` and `best` naming them; and loading of weights with every mismatch listed.

    RUN/checkpoints/step_00000100/{weights.safetensors, optimizer.safetensors, state.json}
    RUN/checkpoints/latest -> step_00000100        RUN/checkpoints/best -> step_00000080
"""

import json
import os
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
LATEST, BEST = "latest", "best"
CLASSES = "classes"  # metadata of the weights: names and palette of what they were trained for


def save_checkpoint(
    run: Path, step: int, network: nn.Cell, optimizer: nn.Cell, state: dict, best: bool, classes: dict | None = None
) -> Path:
    """Writes the checkpoint of a step, points `latest` (and `best`) at it and removes those that nothing names.

    state: JSON-able facts of the run, kept beside the weights; classes: `names` and `palette`, kept with the weights.
    The folder appears whole or not at all.
    """
    root = run / "checkpoints"
    final, draft = root / f"step_{step:08d}", root / f"step_{step:08d}.incomplete"
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(parents=True)
    described = {} if classes is None else {CLASSES: json.dumps(classes)}
    save_file(parameters_of(network), draft / WEIGHTS, {**network.weight_metadata(), **described})
    save_file(parameters_of(optimizer), draft / OPTIMIZER)
    for file in (WEIGHTS, OPTIMIZER):
        (draft / file).chmod(0o644)  # safetensors writes files for the owner alone
    (draft / STATE).write_text(json.dumps({**state, "step": step}, indent=1))
    if final.exists():
        shutil.rmtree(final)
    os.replace(draft, final)
    for link in (LATEST, BEST) if best else (LATEST,):
        point(root / link, final.name)
    kept = {os.readlink(root / link) for link in (LATEST, BEST) if (root / link).is_symlink()}
    for folder in root.glob("step_*"):
        if folder.name not in kept:
            shutil.rmtree(folder)
    return final


def point(link: Path, target: str) -> None:
    """Makes the symbolic link name `target`, atomically."""
    fresh = link.with_name(link.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)


def latest_checkpoint(run: Path) -> Path | None:
    """Folder of the run's latest checkpoint, None where there is none."""
    link = run / "checkpoints" / LATEST
    if link.is_symlink() and not link.exists():
        raise FileNotFoundError(f"{link} names {os.readlink(link)}, which is gone; restore it, or remove {run}")
    return link.resolve() if link.exists() else None


def restore(folder: Path, network: nn.Cell, optimizer: nn.Cell) -> dict:
    """Loads weights and optimiser state of a checkpoint folder; returns its state, with `step`."""
    load_weights(network, folder)
    path = folder / OPTIMIZER
    tensors, _ = read_tensors(path)
    assign(optimizer, tensors, path)
    return json.loads((folder / STATE).read_text())


def parameters_of(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Every parameter of a cell by name, buffers such as running statistics included, except trained ones of others.

    For an optimiser these are its own states: the network's weights that it holds are left out.
    """
    own = {id(p) for p in getattr(cell, "parameters", ())}
    return {p.name: p.asnumpy() for p in cell.get_parameters() if id(p) not in own}


def weights_file(path: str | Path) -> Path:
    """The weights that a path means: a .safetensors file, a checkpoint folder or a run's folder (its `best`)."""
    path = Path(path)
    candidates = [path] if path.suffix == ".safetensors" else [path / WEIGHTS, path / "checkpoints" / BEST / WEIGHTS]
    candidates += [] if path.suffix == ".safetensors" else [path / "checkpoints" / LATEST / WEIGHTS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no weights at {path}; looked for {', '.join(map(str, candidates))}")


def require_classes(path: str | Path, names: tuple[str, ...]) -> None:
    """Raises ValueError where weights say that they were trained for other classes, or the same in another order."""
    file = weights_file(path)
    metadata = read_metadata(file)
    if CLASSES not in metadata:
        return  # converted from public weights, which name no classes
    trained = tuple(json.loads(metadata[CLASSES])["names"])
    if trained != tuple(names):
        raise ValueError(
            f"{file} was trained for the {len(trained)} classes {', '.join(trained)}; the data set of the config has "
            f"the {len(names)} classes {', '.join(names)}; use the config and data that it was trained with"
        )


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of a .safetensors file, without its tensors."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable .safetensors file ({error}); write it again") from error


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a .safetensors file."""
    metadata = read_metadata(path)
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def load_weights(network: nn.Cell, path: str | Path) -> Path:
    """Loads all weights of a network (see `weights_file`); position embeddings are resized to its grid.

    Raises ValueError that lists every parameter that is missing, unexpected or of another shape.
    """
    file = weights_file(path)
    tensors, metadata = read_tensors(file)
    assign(network, network.adapt_weights(tensors, metadata), file)
    return file


def load_pretrained(network: nn.Cell, path: str | Path) -> Path:
    """Loads a backbone from a file of `tools/convert_weights.py`; the head and output norms of the taps stay fresh."""
    file = weights_file(path)
    tensors, metadata = read_tensors(file)
    tensors = {name: array for name, array in tensors.items() if name.startswith("backbone.")}
    if not tensors:
        raise ValueError(f"{file}: holds no 'backbone.' weights; make it with tools/convert_weights.py")
    optional = tuple(f"backbone.{prefix}" for prefix in network.backbone.fresh_prefixes)
    assign(network, network.adapt_weights(tensors, metadata), file, prefix="backbone.", optional=optional)
    return file


def copy_weights(source: nn.Cell, target: nn.Cell) -> None:
    """Gives a network of the same kind, perhaps of another image size, the weights of `source`."""
    assign(target, target.adapt_weights(parameters_of(source), source.weight_metadata()), "the network in training")


def assign(cell: nn.Cell, tensors: dict, origin, *, prefix: str = "", optional: tuple[str, ...] = ()) -> None:
    """Sets the parameters of a cell from arrays by name; ValueError lists all that do not match.

    Only parameters under `prefix` take part; those under an `optional` prefix may be absent from the file.
    """
    own = {id(p) for p in getattr(cell, "parameters", ())}
    wanted = {p.name: p for p in cell.get_parameters() if p.name.startswith(prefix) and id(p) not in own}
    missing = [n for n in wanted if n not in tensors and not (optional and n.startswith(optional))]
    problems = [f"missing: {name} {tuple(wanted[name].shape)}" for name in missing]
    problems += [f"unexpected: {name} {array.shape}" for name, array in tensors.items() if name not in wanted]
    for name, array in tensors.items():
        if name in wanted and tuple(wanted[name].shape) != array.shape:
            problems.append(f"shape: {name} is {array.shape} in the file, {tuple(wanted[name].shape)} in the network")
    if problems:
        hint = class_hint(tensors, wanted)
        raise ValueError(f"{origin} does not fit the network{hint}:\n  " + "\n  ".join(problems))
    for name, array in tensors.items():
        wanted[name].set_data(ms.Tensor(np.ascontiguousarray(array.astype(np.float32))))


def class_hint(tensors: dict, wanted: dict) -> str:
    """For an error message: says so when file and network differ in their number of classes."""
    for name in (name for name in wanted if name.startswith("head.") and name.endswith("classifier.weight")):
        if name in tensors and tensors[name].shape[0] != wanted[name].shape[0]:
            return (
                f" (the file was trained for {tensors[name].shape[0]} classes, the data set of the config has "
                f"{wanted[name].shape[0]}; use the config that the checkpoint was trained with)"
            )
    return ""
