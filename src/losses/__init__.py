"""Losses by name, from their part of the configuration.

A loss is a Cell `construct(outputs, batch, counts) -> terms`: a tuple of float32 scalars, already weighted, whose sum
is differentiated; `loss.terms` names them, `loss.needs` the keys of outputs that it reads, and `loss.columns`, where it
has them, what it reads of the batch beyond what every batch has, `loss.align_corners` how it resizes logits (None: not
at all, or as an option says), `loss.softmax_alone` that it takes the softmax of logits even where they are scores.
(Graph mode differentiates tuples reliably, dicts not.) counts (3,) float32 are those of `batch_counts`, added up over
the whole global batch.
"""

from functools import partial
from typing import Any

from mindspore import nn

from src.config import lookup
from src.config_options import construct
from src.losses.alignment import AlignmentLoss
from src.losses.alignseg import AlignSegLoss
from src.losses.class_mask import ClassMaskLoss
from src.losses.class_tokens import ClassTokenLoss
from src.losses.consistency import ConsistencyLoss
from src.losses.counts import batch_counts
from src.losses.cross_entropy import CrossEntropyLoss
from src.losses.dfr import DFRLoss, PartialCrossEntropyLoss
from src.losses.regulariser import Regulariser

__all__ = ["LOSSES", "batch_counts", "check_fit", "check_outputs", "create_loss"]

LOSSES = {
    "cross_entropy": CrossEntropyLoss,
    "class_mask": ClassMaskLoss,
    "class_tokens": ClassTokenLoss,
    "alignseg": AlignSegLoss,
    "alignment": AlignmentLoss,
    "partial_cross_entropy": PartialCrossEntropyLoss,
    "dfr": DFRLoss,
}
DFR_PARTS = {"regulariser": Regulariser, "consistency": ConsistencyLoss}


def create_loss(loss: dict[str, Any], num_classes: int) -> nn.Cell:
    """The loss that `loss["name"]` names, with the other keys as its options.

    Raises ValueError for an unknown name, an option that the loss does not take, and a value that is not allowed.
    """
    builder = lookup(LOSSES, loss["name"], "loss")
    options = {key: value for key, value in loss.items() if key != "name"}
    if builder is DFRLoss:  # made of parts that have options of their own
        base = create_loss(read_base(options.get("base", {"name": "partial_cross_entropy"})), num_classes)
        parts = {
            key: construct(f"loss.{key}", part, read_part(f"loss.{key}", options.get(key, {})), num_classes)
            for key, part in DFR_PARTS.items()
        }
        builder = partial(builder, base=base, **parts)
        options = {key: value for key, value in options.items() if key not in ("base", *parts)}
    return construct(f"loss ({loss['name']})", builder, options, num_classes)


def read_part(place: str, options: Any) -> dict[str, Any]:
    """Options of a part of a loss; ValueError where they are no mapping."""
    if isinstance(options, dict):
        return options
    raise ValueError(f"{place} is {options!r}; give a mapping of its settings, or leave it out")


def read_base(options: Any) -> dict[str, Any]:
    """Settings of the loss beside DFR's terms; ValueError where they name none, or DFR itself."""
    allowed = ", ".join(name for name in LOSSES if name != "dfr")
    if not isinstance(read_part("loss.base", options).get("name"), str):
        raise ValueError(f"loss.base {options} has no name; write {{name: ...}} with one of {allowed}")
    if options["name"] == "dfr":
        raise ValueError(f"loss.base is 'dfr' itself; give the loss on the labelled pixels: {allowed}")
    return options


def check_fit(loss: nn.Cell, crop_size: tuple[int, int], sparse: bool, asked: bool = False) -> None:
    """Raises ValueError where a loss does not fit what it would be trained with.

    That is crops (H, W) of a size that it cannot take; sparse labels where it needs full ones; samples that do not ask
    for one class each (`asked`) where it learns that class against all else.
    """
    if hasattr(loss, "check_crop"):
        loss.check_crop(crop_size)
    mends = getattr(loss, "needs_full_labels", ())
    if sparse and mends:
        raise ValueError(
            f"the labels are strokes, and the loss would take what has none for other classes; set {', '.join(mends)} "
            "in `loss`, or in its `base`"
        )
    if getattr(loss, "needs_asked_class", False) and not asked:
        raise ValueError(
            "loss.protocol=binary needs samples that ask for one class: data.options.samples=pairs of pascal_5i or "
            "coco_20i; else use loss.protocol=multiclass"
        )


def check_outputs(head: nn.Cell, loss: nn.Cell) -> None:
    """Raises ValueError unless the loss reads what the head gives, as it is meant.

    The head has to give (`head.outputs`) all that the loss needs (`loss.needs`); and a loss that resizes logits
    (`loss.align_corners` is not None) has to do it as evaluation does with this head (`head.align_corners`). Where the
    logits are scores (`losses.grids.class_logits`), the loss must not take their softmax.
    """
    corners, scores = getattr(head, "align_corners", False), "class_scores" in head.outputs
    own = next((name for name, cell in LOSSES.items() if type(loss) is cell), type(loss).__name__)
    fitting = [
        name for name, cell in LOSSES.items()
        if set(cell.needs) <= set(head.outputs) and cell.align_corners in (None, corners) and name != own
        and not (scores and takes_softmax(cell))
    ]  # fmt: skip
    instead = f"use loss {' or '.join(fitting)}" if fitting else "use another head"
    missing = [key for key in loss.needs if key not in head.outputs]
    if missing:
        off = "set loss.weights.aux to 0, " if missing == ["auxiliary"] else ""
        raise ValueError(
            f"loss {own!r} needs {', '.join(missing)}, which the head does not give (it gives "
            f"{', '.join(head.outputs)}); {off}{instead}, or a head that gives them instead of {type(head).__name__}"
        )
    if scores and takes_softmax(getattr(loss, "base", loss)):
        raise ValueError(
            f"loss {own!r} takes the softmax of logits, those of {type(head).__name__} are scores, sums of "
            f"confidence times probability; {instead}"
        )
    if loss.align_corners not in (None, corners):
        ways = ("with half-pixel centres", "corner to corner")
        key = {PartialCrossEntropyLoss: "loss.align_corners", DFRLoss: "loss.base.align_corners"}.get(type(loss))
        option = f"set {key} to {str(corners).lower()}, or " if key else ""
        raise ValueError(
            f"loss {own!r} resizes logits {ways[loss.align_corners]}, those of {type(head).__name__} are evaluated "
            f"{ways[corners]}; {option}{instead}"
        )


def takes_softmax(loss: nn.Cell | type[nn.Cell]) -> bool:
    """Whether the loss takes the softmax of logits even where a head's are scores."""
    return getattr(loss, "softmax_alone", False)
