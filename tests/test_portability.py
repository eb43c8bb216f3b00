"""Every operator of the exported and of the training graphs runs on Ascend, GPU and CPU; exceptions are documented."""

import inspect
import json
import re
import subprocess
import sys

import pytest
from mindspore.ops import Primitive, operations
from mindspore.ops.auto_generate import gen_ops_prim

from src.models import BACKBONES, HEADS
from tests import portability
from tests.conftest import ROOT
from tests.portability import ASCEND, CPU, GPU, PLATFORMS
from tests.portability_graphs import BROADCAST_SIZE, CASES, SLOW_CASES, broadcasts_of_text, primitives_of_text

# Nodes by which MindSpore orders and groups others: the runtime acts on them itself, no device has a kernel for them.
BOOKKEEPING = {
    "Depend": "order", "UpdateState": "order of side effects", "Load": "read of a parameter", "MakeTuple": "grouping",
    "TupleGetItem": "grouping", "Partial": "control flow", "Switch": "control flow",
}  # fmt: skip


QUICK = ("vit-ecenet", "vit-ecenet-cpu")


@pytest.fixture(scope="module", autouse=True)
def plugins():
    patterns = [*portability.KERNEL_LIBRARIES.values(), portability.ADAPTER_LIBRARY]
    absent = [pattern for pattern in patterns if portability.library(pattern) is None]
    if absent:
        pytest.skip(f"this MindSpore comes without {', '.join(absent)}, so its kernels cannot be listed")


def trace(cases) -> dict[str, dict[str, set[str]]]:
    """Operators of each graph of the cases, from a process of its own."""
    command = [sys.executable, "-m", "tests.portability_graphs", *cases]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    return {case: {graph: set(names) for graph, names in graphs.items()} for case, graphs in found.items()}


@pytest.fixture(scope="module")
def graphs(request):
    """All cases with --slow, else those of the main network."""
    return trace(CASES if request.config.getoption("--slow") else QUICK)


def of_whole(graphs: dict) -> bool:
    return graphs.keys() == CASES.keys()


def exceptions() -> dict[str, tuple[frozenset[str], tuple[str, ...]]]:
    """The table of docs/portability.md: primitive -> (platforms, primitives that take its place)."""
    text = (ROOT / "docs" / "portability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([^|]*) \| [^|]+ \|$", text, re.M)
    return {name: (frozenset(where.split(", ")), tuple(re.findall(r"`(\w+)`", what))) for name, where, what in rows}


def lacking(names: set[str]) -> dict[str, frozenset[str]]:
    """Operators that are not proven to run everywhere, and where."""
    missing = {name: portability.missing_platforms(name) for name in names - set(BOOKKEEPING)}
    return {name: where for name, where in missing.items() if where}


def union(graphs: dict, *kinds: str) -> set[str]:
    return set().union(*(case[kind] for case in graphs.values() for kind in kinds))


def test_every_backbone_family_and_head_has_a_case():
    families = {name.split("_")[0] for name in BACKBONES}
    assert {case[0] for case in CASES.values()} == families
    assert {case[1] for case in (CASES | SLOW_CASES).values()} == set(HEADS)


def test_graphs_are_the_whole_graphs(graphs):
    for case, found in graphs.items():
        transformer = case.startswith(("vit", "swin"))
        layers = {"MatMul", "LayerNorm", "Softmax"} if transformer else {"Conv2D"}
        layers |= {"Gather"} if "alignseg" in case else set()
        assert {"ResizeBilinearV2", "Argmax", *layers} <= found["inference"], case
        if found["training"]:
            convolutions = set() if "segvit" in case else {"Conv2DBackpropFilter"}
            assert {"AddN"} | convolutions <= found["training"], case
            if transformer:
                assert ("LayerNormGrad" in found["training"]) != case.endswith("-cpu"), case
    assert "AdamWeightDecay" in graphs["vit-ecenet"]["training"]
    if of_whole(graphs):
        # The update of the parameters stands in a branch of its own where gradients are accumulated.
        assert {"Switch", "AssignAdd", "Assign", "Cast"} <= graphs["vit-fcn-half"]["training"]


def test_operators_run_everywhere_but_for_the_table(graphs):
    listed = {name: where for name, (where, _) in exceptions().items()}
    missing = lacking(union(graphs, "inference", "training"))
    assert missing == ({name: listed.get(name) for name in missing} if not of_whole(graphs) else listed)


@pytest.mark.slow
def test_operators_of_other_settings_are_in_the_table_too():
    listed = {name: where for name, (where, _) in exceptions().items()}
    found = trace(SLOW_CASES)
    missing = lacking(union(found, "inference", "training"))
    assert missing == {name: listed.get(name) for name in missing}
    assert lacking(union(found, "selected")) == {}
    assert not found["vit-segvit-cpu"]["broadcasts"]


def test_operators_without_kernel_are_replaced_by_some_that_every_platform_has(graphs):
    for pattern in (portability.KERNEL_LIBRARIES[GPU], "libmindspore_cpu.so"):
        assert portability.expands(portability.library(pattern)), pattern
    selected = union(graphs, "selected")
    assert lacking(selected) == {}
    used = exceptions() if of_whole(graphs) else {}  # some case uses each of them
    for name, (where, replaced) in used.items():
        if replaced:
            assert where == {GPU, CPU} and name not in selected and set(replaced) <= selected, name
        else:
            assert where <= portability.documented(name), f"{name}: neither replaced nor documented"


def test_training_on_cpu_broadcasts_nothing_large(graphs):
    """Such operators are slow on CPU and hold large tables of indices (functional.spread)."""
    found = {case: graph["broadcasts"] for case, graph in graphs.items() if graph["training"]}
    on_cpu = {case: each for case, each in found.items() if case.endswith("-cpu")}
    assert "vit-ecenet-cpu" in on_cpu and on_cpu == dict.fromkeys(on_cpu, set())
    assert found["vit-ecenet"]  # those for Ascend and GPU do broadcast: the search finds them


def test_search_says_no():
    assert portability.missing_platforms("MadeUpOperator") == set(PLATFORMS)
    assert portability.missing_platforms("Grad") == set(PLATFORMS)  # the end of many names
    assert portability.missing_platforms("FlashAttentionScore") == {GPU, CPU}
    assert portability.missing_platforms("Lstsq") == {ASCEND, GPU}
    assert portability.missing_platforms("TripletMarginLoss") == {ASCEND, CPU}
    assert portability.missing_platforms("CholeskyInverse") == {ASCEND}
    assert portability.missing_platforms("TopK") == set()  # registered with the older of the GPU's factories
    assert portability.missing_platforms("BiasAddGrad") == set()  # Ascend: an adapter only, without documentation
    # As text this name stands in the GPU's plugin, between zero bytes.
    assert b"\0SoftmaxBackward\0" in portability.library(portability.KERNEL_LIBRARIES[GPU]).read_bytes()
    assert "SoftmaxBackward" not in portability.registered(GPU)


@pytest.mark.parametrize("platform", [GPU, CPU])
def test_registries_agree_with_the_documentation(platform):
    """The names read from machine code are those that the documentation states independently.

    Not all: MindSpore documents operators that need no kernel (Depend, Rank, StopGradient) and replaced ones (Dense).
    """
    classes = {**vars(operations), **vars(gen_ops_prim)}
    primitives = [name for name, found in classes.items() if inspect.isclass(found) and issubclass(found, Primitive)]
    stated = {name: portability.documented(name) for name in primitives if portability.documented(name)}
    registered = portability.registered(platform)
    inside = [name in registered for name, platforms in stated.items() if platform in platforms]
    outside = [name in registered for name, platforms in stated.items() if platform not in platforms]
    assert min(len(inside), len(outside)) > 50
    assert sum(inside) > 0.85 * len(inside)
    assert sum(outside) < 0.1 * len(outside)


def test_printed_graphs_are_read_completely():
    text = "  %0(a) = PrimFunc_Add(%para1_x, %para2_y)\n  %1(b) = L2Loss(%0) a: {b}\n  %2(c) = %1[@Union(@f, @g)]()\n"
    assert primitives_of_text(text) == {"Add", "L2Loss"}
    with pytest.raises(ValueError, match="cannot read this node"):
        primitives_of_text(text + "  %3(d) = <odd>(%2)\n")


def test_broadcasts_of_printed_graphs_are_found():
    def printed(operator: str, operands: str, shape: str) -> str:
        types = f"({operands}) -> (<Tensor[Float32], ({shape})>)"
        return f"  %0(a) = PrimFunc_{operator}(%para1_x, %para2_y)\n      : {types}\n"

    wide, row = "<Tensor[Float32], (2, 40)>", "<Ref[Tensor[Float32]], (40), ref_key=x.b>"
    assert BROADCAST_SIZE < 2 * 40
    assert broadcasts_of_text(printed("Add", f"{wide}, {row}", "2, 40")) == {"Add [(2, 40), (40,)] -> (2, 40)"}
    assert broadcasts_of_text(printed("Add", f"{wide}, {wide}", "2, 40")) == set()
    assert broadcasts_of_text(printed("Mul", f"{wide}, <Tensor[Float32], (), value=...>", "2, 40")) == set()
    assert broadcasts_of_text(printed("Mul", f"<Tensor[Float32], (1, 1)>, {wide}", "2, 40")) == set()
    assert broadcasts_of_text(printed("MatMul", f"{wide}, {row}", "2, 40")) == set()
    assert broadcasts_of_text(printed("Sub", f"{row}, <Tensor[Float32], (1)>", "40")) == set()
    with pytest.raises(ValueError, match="cannot read the types"):
        broadcasts_of_text(printed("Add", f"{wide}, {row}", "2, 40").splitlines()[0])
