"""Operators of the graphs of tiny networks, for test_portability.py.

Run as a program, because MindSpore reads the variables below once, at its first compilation:
python -m tests.portability_graphs CASE... prints {case: {"inference": [...], "training": [...], "selected": [...],
"broadcasts": [...]}}.
"""

import json
import math
import os
import re
import sys
import tempfile
from functools import partial
from pathlib import Path

DUMPS = {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_DUMP_IR_PASSES": "validate,kernel_select"}  # and MS_DEV_SAVE_GRAPHS_PATH
SELECTED = "*_after_kernel_select_*.ir"
B = 2
# Element-wise operators of several operands, whose kernels broadcast.
ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "RealDiv", "DivNoNan", "FloorDiv", "Mod", "FloorMod", "Pow", "Maximum", "Minimum",
    "SquaredDifference", "Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalOr",
    "Select", "SelectV2", "Xdivy", "Xlogy", "Atan2", "BitwiseAnd", "BitwiseOr",
}  # fmt: skip
BROADCAST_SIZE = 64  # elements; of the tiny graphs, arrays of images or tokens have more, tables of classes fewer

# Cases whose name ends in -cpu are built in the formulations for CPU, the others in those for Ascend and GPU; those
# that end in -half multiply in float16 and compute the blocks of the backbone once more in the backward.
# name: (backbone, head, options of the head, loss or None for the exported graph alone, optimiser, options of the step)
CASES = {
    "vit-ecenet": ("vit", "ecenet", {}, "class_mask", {"name": "adamw"}, {"clip_norm": 1.0}),
    "vit-ecenet-cpu": ("vit", "ecenet", {}, "class_mask", {"name": "adamw"}, {"clip_norm": 1.0}),
    "swin-upernet": (
        "swin", "upernet", {}, {"name": "partial_cross_entropy", "weights": {"aux": 0.4}}, {"name": "sgd"}, {},
    ),
    "vit-consistency-cpu": (
        "vit", "consistency", {}, {"name": "dfr", "regulariser": {"blocks": 2}}, {"name": "sgd"}, {},
    ),
    "vit-consistency-half": (
        "vit", "consistency", {}, {"name": "dfr", "regulariser": {"impl": "window", "radius": 1}}, {"name": "sgd"},
        {"scaled": True},
    ),
    "vit-ecenet-pyr": ("vit", "ecenet", {"preset": "pyr", "num_rounds": 1}, None, {}, {}),
    "vit-fcn-half": (
        "vit", "fcn", {"norm": "batch"}, "cross_entropy", {"name": "sgd"},
        {"accumulate": 2, "clip_norm": 1.0, "ema_decay": 0.9, "scaled": True},
    ),
    "swin-fcn-cpu": ("swin", "fcn", {}, "cross_entropy", {"name": "sgd"}, {}),
    "swin-segvit": ("swin", "segvit", {}, "class_tokens", {"name": "sgd"}, {}),
    "resnet-alignseg": ("resnet", "alignseg", {"norm": "sync_batch"}, "alignseg", {"name": "sgd"}, {}),
    "drn-pixel_text-cpu": (
        "drn", "pixel_text", {}, {"name": "alignment", "weights": {"shape": 0.3}}, {"name": "sgd"}, {},
    ),
    "mobilenet-alignseg-cpu": ("mobilenet", "alignseg", {"norm": "sync_batch"}, "alignseg", {"name": "sgd"}, {}),
}  # fmt: skip
SLOW_CASES = {
    "vit-pixel_text": (
        "vit", "pixel_text", {"encoder": {"name": "pyramid_pooling", "norm": "group"}, "normalise": False},
        {"name": "alignment", "protocol": "binary", "edge_operator": "sobel"}, {"name": "sgd"}, {},
    ),
    "vit-text_ecenet-cpu": ("vit", "text_ecenet", {}, "class_mask", {"name": "sgd"}, {}),
    "swin-ecenet": ("swin", "ecenet", {"norm": "sync_batch", "num_rounds": 1}, "class_mask", {"name": "sgd"}, {}),
    "vit-segvit-cpu": ("vit", "segvit", {}, "class_tokens", {"name": "sgd"}, {}),
    "vit-ecenet-pyr-step": (
        "vit", "ecenet", {"preset": "pyr", "num_rounds": 1}, "class_mask", {"name": "sgd", "momentum": 0.9}, {},
    ),
    "vit-ecenet-iso8": ("vit", "ecenet", {"preset": "iso8", "updater": "add"}, "class_mask", {"name": "adamw"}, {}),
    "vit-ecenet-last": (
        "vit", "ecenet", {"mask_prior": "full", "aggregate": "last"}, "class_mask", {"name": "sgd"}, {},
    ),
    "vit-ecenet-plain": (
        "vit", "ecenet", {"fr": False, "updater": "replace", "mask_prior": "none", "ghost_up": False}, "class_mask",
        {"name": "adamw"}, {"accumulate": 2},
    ),
    "swin-ecenet-none": (
        "swin", "ecenet", {"updater": "none", "fr_gate": "sigmoid", "num_rounds": 1}, "cross_entropy",
        {"name": "adamw"}, {},
    ),
    "resnet-alignseg-legacy": (
        "resnet", "alignseg", {"sampler": "legacy", "sampler_align_corners": False, "sampler_padding": "border"},
        {"name": "alignseg", "ce": "ohem", "weights": {"lovasz": 0.8}}, {"name": "adamw"}, {},
    ),
    "resnet-alignseg-plain": (
        "resnet", "alignseg", {"align_up": False, "align_acc": False, "context": "gap", "auxiliary": False},
        {"name": "alignseg", "weights": {"aux": 0.0}}, {"name": "sgd"}, {},
    ),
}  # fmt: skip


def graphs_of(case: str, folder: Path) -> dict[str, set[str]]:
    """Operators of one case, compiled on CPU.

    inference: the exported MindIR. training: the step as it leaves MindSpore's frontend, which is the same for every
    device. selected: the same step after kernels for CPU have been selected; broadcasts: those of its operators that
    `broadcasts_of_text` finds. `folder` is that of the dumps; it is emptied.
    """
    import mindspore as ms

    from src import functional
    from src.engine.graphs import export_mindir
    from src.engine.predict_net import PredictNet
    from src.models.plain import multiply_in
    from tests.tiny import SIZE, tiny_step

    functional.on_cpu = partial(case.endswith, "-cpu")
    _, _, _, loss, optimizer, options = (CASES | SLOW_CASES)[case]
    exported = folder / "model.mindir"
    export_mindir(PredictNet(build(case).set_train(False), SIZE, "labels"), exported, {"kind": "labels"})
    inference = primitives_of_mindir(exported)
    if loss is None:
        return {"inference": inference, "training": set(), "selected": set(), "broadcasts": set()}
    for file in folder.rglob("*.*"):
        file.unlink()
    network = build(case)
    if case.endswith("-half"):
        multiply_in(network, ms.float16)
    compile_step(tiny_step(network, loss, optimizer, **options), network.noise_rates)
    return {
        "inference": inference,
        "training": primitives_of_dumps(folder, "*_validate_*.ir"),
        "selected": primitives_of_dumps(folder, SELECTED),
        "broadcasts": set().union(*(broadcasts_of_text(file.read_text("utf-8")) for file in folder.rglob(SELECTED))),
    }


def build(case: str):
    """The network of a case; `pyr` wants four levels of the backbone, and one shifted block of Swin is enough."""
    from tests import tiny

    backbone, head, options = (CASES | SLOW_CASES)[case][:3]
    levels = 4 if options.get("preset") == "pyr" else 2
    tiny.BACKBONES["vit"].update(depth=levels, taps=list(range(1, levels + 1)), recompute=case.endswith("-half"))
    tiny.BACKBONES["swin"].update(depths=[2, 1, 1, 1] if head == "ecenet" else [1, 1, 1, 1])
    return tiny.tiny_network(backbone, head, **options)


def compile_step(step, rates) -> None:
    """Compiles a train step for a batch of B images, without running it."""
    import numpy as np
    from mindspore import Tensor

    from src.engine.train_step import draw_noise
    from src.losses import batch_counts
    from tests.tiny import draw_batch

    batch = draw_batch(B)
    batch = {**batch, "image_present": batch["present"], "progress": np.array([0.5], np.float32)}
    arrays = [step.inputs(0, 0.1), True, draw_noise(rates, 0, 0, B)[0]]
    arrays.append(np.append(batch_counts(batch), 0.0).astype(np.float32))  # not asked to stop
    step.compile(*[Tensor(np.asarray(array)) for array in [*arrays, *[batch[name] for name in step.columns]]])


def primitives_of_mindir(path: Path) -> set[str]:
    """Types of the operators of an exported file, those of its functions included."""
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    types = {primitive.name: primitive.op_type for primitive in model.primitives}
    nodes = [node.op_type for graph in (model.graph, *model.functions) for node in graph.node]
    return {types[name.removeprefix("REF::")] for name in nodes if name != "Constant"}


def primitives_of_dumps(folder: Path, pattern: str) -> set[str]:
    """Names of the operators in all printed graphs that fit the pattern; FileNotFoundError where there are none."""
    files = list(folder.rglob(pattern))
    if not files:
        raise FileNotFoundError(f"{folder}: MindSpore printed no graph {pattern}; it printed {os.listdir(folder)}")
    return set().union(*(primitives_of_text(file.read_text(encoding="utf-8")) for file in files))


def primitives_of_text(text: str) -> set[str]:
    """Names of the operators in a printed graph; ValueError for a node that is neither an operator nor a call."""
    names = set()
    for line in text.splitlines():
        if not re.match(r"\s+%\d+\(", line):
            continue
        node = re.match(r"\s+%\d+\([^)]*\) = (?:(?:PrimFunc_)?([A-Za-z_]\w*)\(|%\d+\[|call @)", line)
        if node is None:
            raise ValueError(f"cannot read this node of a printed graph: {line.strip()[:200]}")
        names.add(node.group(1))
    return names - {None}


def broadcasts_of_text(text: str) -> set[str]:
    """Element-wise operators of a printed graph that broadcast to more than BROADCAST_SIZE elements, with shapes.

    One does when an operand has neither a single element nor the shape of the output. ValueError where no types follow.
    """
    found, lines = set(), text.splitlines()
    for number, line in enumerate(lines):
        node = re.match(r"\s+%\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(", line)
        if node is None or node.group(1) not in ELEMENTWISE:
            continue
        # A constant among the operands is printed with its values, which may take several lines.
        types = next((text for text in lines[number + 1 :] if re.match(r"\s+(: \(|%\d+\()", text)), "")
        operands, arrow, result = types.partition(") -> (")
        shapes = [shapes_of_types(side) for side in (operands, result)]
        if not arrow or not shapes[0] or len(shapes[1]) != 1:
            raise ValueError(f"cannot read the types of this node of a printed graph: {line.strip()[:200]}")
        output = shapes[1][0]
        if math.prod(output) > BROADCAST_SIZE and any(math.prod(s) > 1 and s != output for s in shapes[0]):
            found.add(f"{node.group(1)} {shapes[0]} -> {output}")
    return found


def shapes_of_types(text: str) -> list[tuple[int, ...]]:
    """Shapes of the tensors in a line of types: `<Tensor[Float32], (2, 3)>`, `<Ref[Tensor[Float32]], (3), ...>`."""
    shapes = re.findall(r"<(?:Ref\[)?Tensor\[\w+\]+, \(([\d, ]*)\)", text)
    return [tuple(int(side) for side in re.findall(r"\d+", shape)) for shape in shapes]


def main(cases: list[str]) -> None:
    """Prints the operators of the cases as JSON, in the last line."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(DUMPS, MS_DEV_SAVE_GRAPHS_PATH=folder)
        from src import distributed

        distributed.setup("CPU", "graph")
        found = {case: graphs_of(case, Path(folder)) for case in cases}
    print(json.dumps(found, default=sorted))


if __name__ == "__main__":
    main(sys.argv[1:])
