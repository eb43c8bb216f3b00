"""Does a configuration build, fit into memory and match the weights that it names?"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from src.config import Config, config_to_yaml, load_config
from src.data import asks_for_classes, is_scribbled, load_classes
from src.doctor import memory
from src.doctor.finding import ERROR, NOTE, WARNING, Finding
from src.engine import weights
from src.engine.checkpoint import FOLDER
from src.engine.checkpoint_files import newest_good
from src.engine.run_folder import CONFIG, refuse_other_settings
from src.losses import check_fit, check_outputs, create_loss
from src.models import create_model

ASSUMED_CLASSES = 150
MEASURES = "`python tools/benchmark.py --config FILE --synthetic` measures"
SURE = 1.15  # how far the estimate of the memory may be off either way
CHECKPOINT_COPIES = 3  # weights and two moments


def examine(path: str, overrides: Sequence[str], checkpoint: str | None) -> tuple[list[Finding], dict]:
    """All that can be said of a configuration without running it; checkpoint: weights that it shall load, too."""
    try:
        config = load_config(path, overrides)
    except ValueError as error:
        return [Finding("config", ERROR, str(error), (path,))], {}
    found: list[Finding] = []
    names = class_names(config, found)
    count = len(names) if names else ASSUMED_CLASSES
    training = build(config, count, "data.crop_size", found)
    if training is not None:
        build(config, count, "eval.size", found)
    facts = {"name": config.name, "classes": count, "target": config.device.target}
    if training is None or not check_loss(config, training, count, found):
        return found, facts
    facts["parameters"] = sum(parameter.size for parameter in training.trainable_params())
    found += check_weights(config, training, names, checkpoint)
    facts["memory"] = check_memory(config, training, count, found)
    facts["disk"] = check_disk(config, training, found)
    if config.data.workers > memory.cores():
        text = f"data.workers is {config.data.workers}, but {memory.cores():g} cores may be used"
        found.append(Finding("workers", NOTE, text, (), "no more workers are started than there are cores"))
    return found, facts


def class_names(config: Config, found: list[Finding]) -> tuple[str, ...]:
    """The classes of the data set; none, with a warning, where it cannot be read."""
    try:
        return load_classes(config.data).names
    except (ValueError, OSError) as error:
        text = f"{error}. {ASSUMED_CLASSES} classes are assumed for everything below"
        found.append(Finding("classes_unknown", WARNING, text))
        return ()


def build(config: Config, count: int, key: str, found: list[Finding]) -> nn.Cell | None:
    """The network for the size that a key names, without values; None, with an error, where it cannot be built."""
    size = config.data.crop_size if key == "data.crop_size" else config.eval.size
    try:
        with no_init_parameters():
            return create_model(config.model, count, size)
    except ValueError as error:
        found.append(Finding("build", ERROR, f"the network for {key} {list(size)} cannot be built: {error}", (key,)))
        return None


def check_loss(config: Config, network: nn.Cell, count: int, found: list[Finding]) -> bool:
    """Whether the loss builds, fits crops and labels, and the head gives what it reads."""
    try:
        loss = create_loss(config.loss, count)
        check_outputs(network.head, loss)
        sparse = is_scribbled(config.data, config.data.train_split)
        check_fit(loss, config.data.crop_size, sparse, asks_for_classes(config.data))
    except ValueError as error:
        found.append(Finding("build", ERROR, f"the loss cannot be built: {error}", ("loss",)))
        return False
    return True


def check_weights(config: Config, network: nn.Cell, names: tuple[str, ...], checkpoint: str | None) -> list[Finding]:
    """The weights that a run would load: of the run itself, else model.pretrained; and the given checkpoint."""
    found, run = [], Path(config.output_dir) / config.name
    model = config.model
    if checkpoint:
        found += loads("checkpoint", checkpoint, partial(load_whole, network, names, checkpoint))
    if (run / FOLDER).is_dir():
        found += loads("run", str(run), partial(load_run, config, network, names, run))
    elif model.pretrained and model.reset_classifier:
        found += loads("pretrained", model.pretrained, partial(weights.load_except_classes, network, model.pretrained))
    elif model.pretrained:
        found += loads("pretrained", model.pretrained, partial(weights.load_pretrained, network, model.pretrained))
    return found


def loads(code: str, place: str, load: Callable[[], object]) -> list[Finding]:
    """A finding if loading raises what wrong weights raise."""
    try:
        load()
    except (ValueError, OSError) as error:
        return [Finding(code, ERROR, str(error), (place,))]
    return []


def load_whole(network: nn.Cell, names: tuple[str, ...], path: str) -> None:
    """Loads a checkpoint as eval.py does. Without names of classes their number alone is compared."""
    if names:
        weights.require_classes(weights.weights_file(path), names)
    weights.load_weights(network, path)


def load_run(config: Config, network: nn.Cell, names: tuple[str, ...], run: Path) -> None:
    """What train.py would do to go on with a run: same settings, an undamaged checkpoint, same classes."""
    if (run / CONFIG).is_file():
        refuse_other_settings(run, (run / CONFIG).read_text(encoding="utf-8"), config_to_yaml(config))
    chosen, damaged = newest_good(run / FOLDER)
    if chosen is None and damaged:
        raise ValueError(f"no usable checkpoint in {run / FOLDER}: {', '.join(map(str, damaged))} are damaged")
    if chosen is not None:
        load_whole(network, names, str(chosen))


def check_memory(config: Config, network: nn.Cell, count: int, found: list[Finding]) -> dict:
    """Estimate against what is free; how both are known is in the finding and in the facts."""
    train, target = config.train, config.device.target
    free, source = memory.available(target)
    if not memory.is_measured(network.backbone):
        text = f"no training step with {config.model.backbone['name']} was measured, so nothing is said of its memory"
        found.append(Finding("memory_unknown", NOTE, f"{text}; {MEASURES} it"))
        return {"estimate": None, "estimated": text, "available": free, "source": source}
    estimate = memory.step_memory(
        network, config.data.crop_size, train.batch_size, count, config.optimizer.name, train.accumulate
    )
    how = (
        "from the sizes of parameters, tokens, attention scores, maps and logits, with factors fitted to training "
        "steps measured on CPU" + ("" if target == "CPU" else f"; no {target} was measured")
    )
    facts = {"estimate": estimate, "estimated": how, "available": free, "source": source}
    needed = f"a training step takes about {gibibytes(estimate['total'])} (estimated {how})"
    largest = max((name for name in estimate if name != "total"), key=estimate.__getitem__)
    mend = (
        f"most of it is for: {largest}. Lower train.batch_size (raise train.accumulate by the same factor: the step "
        f"stays the same) or data.crop_size; {MEASURES} it"
    )
    if free is None:
        found.append(Finding("memory_unknown", WARNING, f"{needed}; {source}"))
    elif estimate["total"] > free / SURE:
        severity = ERROR if estimate["total"] > free * SURE else WARNING
        found.append(Finding("memory", severity, f"{needed}; available are {gibibytes(free)} ({source})", (), mend))
    else:
        found.append(Finding("memory", NOTE, f"{needed}; available are {gibibytes(free)} ({source})"))
    return facts


def check_disk(config: Config, network: nn.Cell, found: list[Finding]) -> dict:
    """Room for the checkpoints that are kept, the best and the one being written."""
    place = existing(Path(config.output_dir))
    free = shutil.disk_usage(place).free
    parameters = sum(parameter.size for parameter in network.get_parameters())
    needed = (config.train.keep_checkpoints + 2) * CHECKPOINT_COPIES * memory.FLOAT * parameters
    if needed > free:
        text = f"the run's checkpoints take up to {gibibytes(needed)}, but {place} has {gibibytes(free)} left"
        mend = "make room, set output_dir, or lower train.keep_checkpoints"
        found.append(Finding("disk", ERROR, text, (str(place),), mend))
    return {"place": str(place), "checkpoints": needed, "free": free}


def existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    return path if path.exists() else existing(path.parent)


def gibibytes(size: int) -> str:
    """`3.2 GiB`."""
    return f"{size / 2**30:.1f} GiB"
