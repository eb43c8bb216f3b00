"""No collective sits where one rank may pass by: a rank that waits for another which never comes hangs for ever.

Read from the source: every condition, loop and early end on the way to a collective must be known to come out alike on
all ranks. "On the way" goes through callers, too: a function that holds a collective is one itself.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    ROOT / "train.py",
    *sorted(file for file in (ROOT / "src").rglob("*.py") if not file.name.startswith("config")),
]

unparse = cache(ast.unparse)  # a node is met once for each way to it

# Names whose use talks to the other ranks. `step_cell` runs TrainStep.construct.
COLLECTIVES = {"all_reduce", "sum_counts", "step_cell"}
HANDED = {"all_reduce"}  # also counts where it is an argument: self.map(self.all_reduce, gradients)
NOT_NAMES = {"construct", "main"}  # too common, and called by what runs every command line

# What comes out alike on all ranks, and why.
ALIKE = {
    "self.world_size > 1": "an argument of the run",
    "world_size > 1": "an argument of the run",
    "world_size == 1": "an argument of the run",
    "self.devices == 1 or not self.training": "an argument of the run, and the phase of the loop",
    "self.accumulate == 1": "of the configuration",
    "last": "the number of the micro-batch",
    "all_reduce is not None": "given where world_size > 1",
    "arguments.print_config": "the command line, which is that of all ranks",
    "first_step >= settings.steps": "after require_agreement",
    "evaluated": "of the step's number",
    "for step in range(loop.first_step, loop.steps)": "after require_agreement",
    "loop.first_step == loop.steps": "after require_agreement",
    "for number in range(1 + REHEARSALS)": "a constant",
    "for (i, batch) in enumerate(batches)": "the configured micro-batches",
    "loop.world_size > 1": "an argument of the run",
    "loop.world_size == 1": "an argument of the run",
    "state.get('step', 0) >= config.train.steps and EVALUATION_DUE not in state": "of the checkpoint that all read",
    "EVALUATION_DUE in state": "of the step's number, or of the checkpoint that all have read",
    "EVALUATION_DUE in state and (not leave)": "as `leave`",
    "leave": "a stop that any rank was asked for, agreed on in the step's all-reduce or in the evaluation's",
    "save and loop.world_size > 1": "of the step's number and as `leave`",
    "state[BAD_STEPS]": "of the norm of the summed gradients",
    "bad < loop.max_bad_steps": "of the norm of the summed gradients",
    "parts.bad is not None": "of the configuration",
}
# Uses that are none: (function, what stands in the way): why.
NONE = {
    ("create_validation", "len(samples)"): "evaluates one image without all_reduce",
    ("change_colours", "saturation == 1.0 and turn == 0"): "OpenCV's merge, not that of the bad samples",
}


class Walk(ast.NodeVisitor):
    """Collects (line, guards) of every use of a collective in one function; nested functions are others' business."""

    def __init__(self, collectives: set[str]) -> None:
        self.collectives, self.guards, self.found = collectives, [], []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # noqa: N802
        return

    def visit_block(self, body: list[ast.stmt]) -> None:
        """Statements in order; one that may end the block early guards those after it."""
        before = len(self.guards)
        for node in body:
            self.visit(node)
            self.guards += early_ends(node)
        del self.guards[before:]

    def guarded(self, guard: str, *bodies: list[ast.stmt]) -> None:
        self.guards.append(guard)
        for body in bodies:
            self.visit_block(body)
        self.guards.pop()

    def visit_If(self, node: ast.If) -> None:  # noqa: N802
        self.visit(node.test)
        self.guarded(unparse(node.test), node.body, node.orelse)

    def visit_While(self, node: ast.While) -> None:  # noqa: N802
        self.guarded(unparse(node.test), node.body)

    def visit_For(self, node: ast.For) -> None:  # noqa: N802
        self.visit(node.iter)
        self.guarded(f"for {unparse(node.target)} in {unparse(node.iter)}", node.body)

    def visit_Try(self, node: ast.Try) -> None:  # noqa: N802
        self.visit_block(node.body)
        self.guarded("except", *[handler.body for handler in node.handlers])
        self.visit_block(node.finalbody)

    def visit_With(self, node: ast.With) -> None:  # noqa: N802
        for item in node.items:
            self.visit(item.context_expr)
        self.visit_block(node.body)

    def visit_IfExp(self, node: ast.IfExp) -> None:  # noqa: N802
        self.guards.append(unparse(node.test))
        self.generic_visit(node)
        self.guards.pop()

    def visit_BoolOp(self, node: ast.BoolOp) -> None:  # noqa: N802
        self.visit(node.values[0])
        self.guards.append(unparse(node.values[0]))
        for value in node.values[1:]:
            self.visit(value)
        self.guards.pop()

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.guards += [f"for {unparse(node.target)} in {unparse(node.iter)}", *map(unparse, node.ifs)]

    def visit_loop(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        before = len(self.guards)
        for generator in node.generators:
            self.visit(generator)
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.visit(part)
        del self.guards[before:]

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_loop  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802
        handed = {last_name(argument) for argument in node.args} & HANDED
        if last_name(node.func) in self.collectives or handed:
            self.found.append((node.lineno, tuple(self.guards)))
        self.generic_visit(node)


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@cache
def early_ends(node: ast.stmt) -> list[str]:
    """Conditions in a statement under which what follows it is passed by. A raise is none: it ends the process."""
    if isinstance(node, ast.FunctionDef):
        return []
    ends = (ast.Return, ast.Break, ast.Continue) if isinstance(node, ast.If) else (ast.Return,)
    branches = [x for x in ast.walk(node) if isinstance(x, ast.If)]
    return [unparse(x.test) for x in branches if any(isinstance(y, ends) for y in ast.walk(x))]


def functions(trees: dict[str, ast.Module]) -> list[tuple[str, ast.FunctionDef]]:
    return [(file, x) for file, tree in trees.items() for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]


def uses(trees: dict[str, ast.Module]) -> list[tuple[str, str, int, tuple[str, ...]]]:
    """(file, function, line, guards) of all uses of collectives, after names have been handed on to callers."""
    collectives, everywhere = set(COLLECTIVES), functions(trees)
    while True:
        found = []
        for file, function in everywhere:
            walk = Walk(collectives)
            walk.visit_block(function.body)
            found += [(file, function.name, line, guards) for line, guards in walk.found]
        holders = {name for _, name, _, _ in found} - NOT_NAMES
        if holders <= collectives:
            return found
        collectives |= holders


def complaints(trees: dict[str, ast.Module]) -> list[str]:
    """Everything in the way of a collective that is not known to come out alike."""
    return [
        f"{file}:{line} in {name}: is `{guard}` the same on all ranks? Then add it to ALIKE with the reason"
        for file, name, line, guards in uses(trees)
        for guard in guards
        if guard not in ALIKE and (name, guard) not in NONE
    ]


def test_nothing_that_differs_between_ranks_stands_before_a_collective():
    trees = {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    places = {(file, name) for file, name, _, _ in uses(trees)}
    assert places >= {
        ("src/engine/train_step.py", "construct"), ("src/engine/train_step.py", "apply"), ("train.py", "train"),
        ("src/models/layers.py", "construct"), ("src/engine/evaluator.py", "evaluate"),
        ("src/engine/trainer.py", "fit"),
    }  # fmt: skip
    assert complaints(trees) == []


@pytest.mark.parametrize(
    "body",
    [
        "if rank == 0:\n        sum_counts(x)",
        "for sample in samples:\n        sum_counts(x)",
        "if bad:\n        return\n    sum_counts(x)",
        "for y in x:\n        if bad:\n            return\n    sum_counts(x)",
        "for step in range(loop.first_step, loop.steps):\n        if bad:\n            continue\n        helper(x)",
        "try:\n        helper(x)\n    except ValueError:\n        helper(x)",
        "y = helper(x) if rank else x",
        "y = rank and helper(x)",
        "y = [helper(x) for x in samples]",
        "while waiting:\n        self.map(self.all_reduce, x)",
    ],
)
def test_differing_conditions_are_found(body):
    source = f"def helper(x):\n    return sum_counts(x)\n\n\ndef f(self, rank, samples):\n    {body}\n"
    assert len(complaints({"f.py": ast.parse(source)})) == 1


def test_alike_conditions_are_accepted():
    source = """
def f(world_size, x):
    if world_size > 1:
        sum_counts(x)
    if bad:
        raise ValueError
    sum_counts(x)
"""
    assert complaints({"f.py": ast.parse(source)}) == []
