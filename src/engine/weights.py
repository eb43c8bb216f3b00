"""Weights of networks: files that hold them, and loading with every mismatch listed.

Two kinds of file: .safetensors, and MindSpore's own .ckpt, which `mindspore.load_checkpoint` and `load_param_into_net`
take as it is. In both the names are those of the network's parameters.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from src.engine.checkpoint_files import BEST, LATEST, MARKER, WEIGHTS, problems_of, write_file
from src.engine.tensor_files import read_safetensors, read_safetensors_metadata, tensor_blocks
from src.log import get_console

RAW = "raw."  # before the names of trained weights in an optimiser's file, where the weights file holds averages
CLASSES = "classes"  # metadata of the weights: names and palette of what they were trained for
MISSING = "missing"  # metadata of converted weights: JSON list of parameters that the source did not have
SAFETENSORS, CKPT = ".safetensors", ".ckpt"


def named_parameters(cell: nn.Cell) -> dict[str, Parameter]:
    """The parameters of a cell by the names that they have in files.

    Of a network: all, buffers such as running statistics included. Of an optimiser: its own states, not the network's
    weights that it holds; but where it keeps averages of these, which then are what a weights file holds, the weights
    as raw.NAME instead of the averages.
    """
    trained, averages = getattr(cell, "parameters", ()), getattr(cell, "averages", ())
    others = {id(p) for p in (*trained, *averages)}
    raw = {RAW + p.name: p for p in trained} if len(averages) else {}
    return {p.name: p for p in cell.get_parameters() if id(p) not in others} | raw


def parameters_of(cell: nn.Cell) -> dict[str, np.ndarray]:
    """Values of `named_parameters`."""
    return {name: p.asnumpy() for name, p in named_parameters(cell).items()}


def weights_in_use(network: nn.Cell, optimizer: nn.Cell) -> dict[str, np.ndarray]:
    """The weights of a network in training to evaluate and to keep: the averages where its optimiser has some."""
    pairs = zip(optimizer.parameters, optimizer.averages, strict=False)  # no averages, no pairs
    averaged = {p.name: average.asnumpy() for p, average in pairs}
    return parameters_of(network) | averaged


def begin_averages(optimizer: nn.Cell) -> None:
    """Makes the averages that an optimiser may keep equal to the present weights."""
    for parameter, average in zip(optimizer.parameters, optimizer.averages, strict=False):
        average.set_data(ms.Tensor(parameter.asnumpy()))


def weights_file(path: str | Path) -> Path:
    """The weights that a path means: a .safetensors or .ckpt file, a checkpoint folder or a run's folder (its `best`).

    Raises FileNotFoundError where there are none, ValueError where a checkpoint's are not what was written.
    """
    path = Path(path)
    named = path.suffix in (SAFETENSORS, CKPT)
    links = [path / "checkpoints" / link for link in (BEST, LATEST)]
    links = [link for link in links if link.is_symlink()][:1] or links  # a broken `best` does not mean `latest`
    candidates = [path] if named else [folder / WEIGHTS for folder in (path, *links)]
    for file in candidates:
        if file.is_file():
            if not named or (file.name == WEIGHTS and (file.parent / MARKER).exists()):
                require_undamaged(file)
            return file
    broken = [link for link in links if link.is_symlink() and not link.exists()]
    gone = "".join(f"; {link} points at {link.readlink()}, which is gone" for link in broken)
    if named:
        raise FileNotFoundError(
            f"no weights at {path}; tools/convert_weights.py makes such a file of public weights (docs/weights.md)"
        )
    raise FileNotFoundError(f"no weights at {path}; looked for {', '.join(map(str, candidates))}{gone}")


def require_undamaged(file: Path) -> None:
    """Raises ValueError where the weights of a checkpoint folder are not those that its marker tells of."""
    found = problems_of(file.parent, (file.name,))
    if found:
        raise ValueError(f"checkpoint {file.parent} is not usable: {'; '.join(found)}; name another checkpoint")


def require_classes(file: Path, names: tuple[str, ...]) -> None:
    """Raises ValueError where a weights file says that it is of other classes, or of the same in another order."""
    metadata = read_metadata(file)
    if CLASSES not in metadata:
        return  # converted from public weights, which name no classes
    trained = tuple(json.loads(metadata[CLASSES])["names"])
    if trained != tuple(names):
        raise ValueError(
            f"{file} was trained for the {len(trained)} classes {', '.join(trained)}; the data set of the config has "
            f"the {len(names)} classes {', '.join(names)}; use the config and data that it was trained with"
        )


def read_metadata(file: Path) -> dict[str, str]:
    """Metadata of a .safetensors or .ckpt file."""
    return read_ckpt(file)[1] if file.suffix == CKPT else read_safetensors_metadata(file)


def read_tensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a .safetensors or .ckpt file; ValueError where it is not readable."""
    return read_ckpt(file) if file.suffix == CKPT else read_safetensors(file)


def read_ckpt(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of a .ckpt file, and its texts as metadata; a checksum, where it has one, is checked."""
    try:
        loaded = ms.load_checkpoint(str(file), crc_check=True)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file}: not a readable .ckpt file ({reason}); write it again") from error
    texts = {name: value for name, value in loaded.items() if isinstance(value, str)}
    tensors = {name: value for name, value in loaded.items() if name not in texts}
    # NumPy has no bfloat16.
    wide = {name: value.astype(ms.float32) if value.dtype == ms.bfloat16 else value for name, value in tensors.items()}
    return {name: value.asnumpy() for name, value in wide.items()}, texts


def write_weights(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a .safetensors or .ckpt file, by its suffix, which appears whole or not at all."""
    draft = file.with_name(f".{file.stem}.incomplete{file.suffix}")
    try:
        if file.suffix == CKPT:
            data = [{"name": name, "data": ms.Tensor(array)} for name, array in tensors.items()]
            ms.save_checkpoint(data, str(draft), append_dict=dict(metadata), crc_check=True)
            draft.chmod(0o644)  # MindSpore makes it read-only
        else:
            write_file(draft, tensor_blocks(tensors, metadata))
        os.replace(draft, file)
    finally:
        for rest in (draft, draft.with_suffix(".tmp")):  # MindSpore's own draft of a .ckpt ends in .tmp
            rest.unlink(missing_ok=True)


def load_weights(network: nn.Cell, path: str | Path) -> Path:
    """Loads all weights of a network (see `weights_file`); position embeddings are resized to its grid.

    Raises ValueError that lists every parameter that is missing, unexpected or of another shape.
    """
    file = weights_file(path)
    tensors, metadata = read_tensors(file)
    assign(network, adapt(network, file, tensors, metadata), file)
    return file


def load_pretrained(network: nn.Cell, path: str | Path) -> Path:
    """Loads the backbone alone from a weights file; the head and output norms of the taps stay fresh.

    So does what the conversion of public weights, with its leave, did not find (`--least`). Left out is what a backbone
    that is cut short says it does not have (`unbuilt_prefixes`).
    """
    file = weights_file(path)
    tensors, metadata = read_tensors(file)
    unbuilt = tuple(f"backbone.{prefix}" for prefix in getattr(network.backbone, "unbuilt_prefixes", ()))
    tensors = {
        name: array for name, array in tensors.items() if name.startswith("backbone.") and not name.startswith(unbuilt)
    }
    if not tensors:
        raise ValueError(f"{file}: holds no 'backbone.' weights; make it with tools/convert_weights.py")
    optional = tuple(f"backbone.{prefix}" for prefix in network.backbone.fresh_prefixes)
    optional += tuple(json.loads(metadata.get(MISSING, "[]")))
    assign(network, adapt(network, file, tensors, metadata), file, prefix="backbone.", optional=optional)
    return file


def load_except_classes(network: nn.Cell, path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Loads a whole network trained for other classes, without what the head says depends on them, which stays fresh.

    Returns the file and the names of the parameters that stay fresh.
    """
    file = weights_file(path)
    tensors, metadata = read_tensors(file)
    shapes = {name.removeprefix("head."): array.shape for name, array in tensors.items() if name.startswith("head.")}
    if not shapes:
        raise ValueError(
            f"{file}: holds no 'head.' weights, model.reset_classifier=true needs those of a whole network; leave it "
            "out to load the backbone alone"
        )
    fresh = tuple(f"head.{name}" for name in network.head.class_parameters(shapes))
    tensors = {name: array for name, array in tensors.items() if name not in fresh}
    assign(network, adapt(network, file, tensors, metadata), file, optional=fresh)
    return file, fresh


def copy_weights(source: nn.Cell, optimizer: nn.Cell, target: nn.Cell) -> None:
    """Gives a network of the same kind, perhaps of another image size, the weights in use of `source` in training."""
    tensors = target.adapt_weights(weights_in_use(source, optimizer), source.weight_metadata())
    assign(target, tensors, "the network in training")


def adapt(
    network: nn.Cell, file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> dict[str, np.ndarray]:
    """Weights of a file resized to the network; tells on the console what was resized, each pair of shapes once."""
    try:
        adapted = network.adapt_weights(tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    changes = [
        (name.rsplit(".", 1)[-1], array.shape, adapted[name].shape)
        for name, array in tensors.items() if adapted[name].shape != array.shape
    ]  # fmt: skip
    for change in dict.fromkeys(changes):
        name, before, after = change
        get_console().print(f"resized bicubically: {changes.count(change)} x {name} {before} -> {after}")
    return adapted


def assign(cell: nn.Cell, tensors: dict, origin, *, prefix: str = "", optional: tuple[str, ...] = ()) -> None:
    """Sets the parameters of a cell from arrays by name; ValueError lists all that do not match.

    Only parameters under `prefix` take part; those under an `optional` prefix may be absent from the file.
    """
    wanted = {name: p for name, p in named_parameters(cell).items() if name.startswith(prefix)}
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
                f"{wanted[name].shape[0]}; use the config that the checkpoint was trained with, or train on from it "
                "for other classes: model.pretrained=FILE model.reset_classifier=true)"
            )
    return ""
