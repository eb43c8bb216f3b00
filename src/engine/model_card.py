"""The text that goes with published weights: data, recipe, scores with their settings, hashes, licence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from src.config import Config

CLASSES_FILE = "classes.yaml"  # of a data set of one's own
UNSTATED = "not stated: ask whoever published this before you use it"


@dataclass(frozen=True)
class Facts:
    """What a card tells. config: of the run, as it was. step: of the weights, None where no checkpoint says it.

    record: line of metrics.jsonl with the scores of that step, None where there is none. classes: names in the order of
    the weights, () where they name none. parameters: numbers in the weights, running statistics included. files: size
    and SHA-256 by name. pretrained: what is known of the weights that training started from. left_out: settings that
    were taken out of the published configuration.
    """

    config: Config
    step: int | None
    record: dict | None
    classes: tuple[str, ...]
    parameters: int
    files: Mapping[str, dict]
    pretrained: str
    licence: str
    left_out: tuple[str, ...]


def write_card(facts: Facts) -> str:
    """The card as Markdown."""
    name, files = facts.config.name, facts.files.items()
    sections = {
        "Licence": [facts.licence or UNSTATED],
        "Use": describe_use(facts),
        "Data": describe_data(facts),
        "Network": describe_network(facts),
        "Recipe": describe_recipe(facts),
        "Scores": describe_scores(facts),
        "Files": table(("file", "bytes", "SHA-256"), [(n, f["bytes"], f"`{f['sha256']}`") for n, f in files]),
    }
    parts = [f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items()]
    return f"# {name}\n\n" + "\n\n".join(parts) + "\n"


def table(head: tuple, rows: list[tuple]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def settings(values: dict) -> str:
    """`key=value` texts of a mapping."""
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def describe_use(facts: Facts) -> list[str]:
    """Commands, run in the folder of the card with this repository's scripts."""
    given = f"--config config.yaml --checkpoint {next(iter(facts.files))}"
    own = CLASSES_FILE in facts.files  # names and palette then come from data.root
    root, classes = " data.root=ROOT" if facts.config.data.root else "", " data.root=." if own else ""
    lines = [
        "```bash",
        f"python eval.py {given}{root}",
        f"python export.py {given} --output {facts.config.name}.mindir{classes}",
        f"python predict.py {given} --input PHOTOS --output RESULTS{classes}",
        "```",
    ]
    if facts.left_out:
        changed = "; ".join(facts.left_out)
        lines += ["", f"Not in the published configuration, because it belongs to one machine: {changed}."]
    return lines


def describe_data(facts: Facts) -> list[str]:
    """Data set, splits, classes in the order of the network's outputs."""
    data = facts.config.data
    names = ", ".join(facts.classes) or "not named by the weights"
    rows = [
        ("data set", data.dataset), ("trained on", data.train_split), ("scored on", data.val_split),
        (f"classes ({len(facts.classes)})", names), ("licence of the data", "see docs/datasets.md"),
    ]  # fmt: skip
    return table(("", ""), rows)


def describe_network(facts: Facts) -> list[str]:
    """Backbone, head, size, normalisation of the input."""
    model = facts.config.model
    return table(("", ""), [
        ("backbone", settings(model.backbone)), ("head", settings(model.head)),
        ("parameters, running statistics included", f"{facts.parameters:,}"),
        ("input", f"RGB, 0 to 255, mean {list(model.mean)}, standard deviation {list(model.std)}"),
    ])  # fmt: skip


def describe_recipe(facts: Facts) -> list[str]:
    """How the weights were trained."""
    config = facts.config
    data = config.data.model_dump(mode="json")
    kinds = ("crop_size", "base_size", "scale_range", "max_class_share", "flip", "photometric")
    return table(("", ""), [
        ("step of these weights", f"{'unknown' if facts.step is None else facts.step} of {config.train.steps}"),
        ("started from", facts.pretrained),
        ("batch per device, accumulated", f"{config.train.batch_size}, {config.train.accumulate} times"),
        ("optimiser", settings(config.optimizer.model_dump(mode="json"))), ("loss", settings(config.loss)),
        ("augmentation", settings({kind: data[kind] for kind in kinds})), ("seed", config.seed),
    ])  # fmt: skip


def describe_scores(facts: Facts) -> list[str]:
    """Scores of exactly these weights, the settings that they were taken with, and IoU by class."""
    if facts.record is None:
        return ["None: the run's log holds no evaluation of these weights."]
    scores = {key: value for key, value in facts.record.items() if isinstance(value, int | float | None)}
    scores.pop("step", None)
    evaluated = settings(facts.config.eval.model_dump(mode="json"))
    rows = [(key.replace("_", " "), show(value)) for key, value in scores.items()]
    lines = [*table(("score", "value"), rows), "", f"Split {facts.config.data.val_split}, {evaluated}.", ""]
    iou = facts.record.get("iou", [])
    names = facts.classes or tuple(map(str, range(len(iou))))
    return [*lines, *table(("class", "IoU"), [(n, show(value)) for n, value in zip(names, iou, strict=True)])]


def show(value: float | None) -> str:
    """A score with four digits; none where a class does not occur."""
    return "none" if value is None else f"{value:.4f}"
