"""Who may import whom (the table in docs/architecture.md), and what may happen when a module is imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
MODULES = sorted((ROOT / "src").rglob("*.py"))

CONFIG = ("src.config", "src.config_errors", "src.config_loading", "src.config_options", "src.config_writing")
NOTHING = (
    "src.__init__", "src.constants", "src.functional", "src.metrics", "src.distributed", "src.log", "src.cli",
    "src.zero_shot",
)  # fmt: skip
# Folder or file: what it may import besides its own folder. The first that fits a module counts.
ALLOWED = {
    "src.models.__init__": ("src.models", "src.config", "src.config_options"),
    "src.models.backbones": ("src.models.backbones", "src.models.layers", "src.functional"),
    "src.models.heads": ("src.models.heads", "src.models.layers", "src.functional"),
    "src.models": ("src.models", "src.functional"),
    "src.losses.__init__": ("src.losses", "src.config", "src.config_options"),
    "src.losses": ("src.losses", "src.functional"),
    "src.data.__init__": ("src.data", "src.config", "src.config_options"),
    "src.data": ("src.data", "src.log"),
    "src.engine": ("src.engine", "src.config", "src.metrics", "src.distributed", "src.log"),
    "src.launching": ("src.launching",),
    "src.doctor": (
        "src.doctor", "src.config", "src.config_loading", "src.data", "src.models", "src.losses", "src.engine",
        "src.launching", "src.distributed", "src.log",
    ),
    "src.text": ("src.text",),
    "src.spectral": ("src.spectral", "src.log"),
    "src.analysis": ("src.analysis", "src.text.tables"),
    "src.spectral_features": (
        "src.spectral", "src.config", "src.models", "src.functional", "src.engine.weights",
    ),
    "src.loading_speed": ("src.config", "src.data", "src.engine.timing", "src.log"),
    "src.class_text": ("src.text", "src.config", "src.data.classes", "src.engine.weights", "src.models", "src.log"),
    "src.fused": ("src.spectral", "src.zero_shot", "src.metrics", "src.engine.inference"),
    "src.fused_net": ("src.engine.predict_net",),
    "src.predictor": ("src.engine", "src.config", "src.data.classes", "src.models", "src.class_text"),
    **dict.fromkeys(CONFIG, CONFIG),
    **dict.fromkeys(NOTHING, ()),
}

# Names called while a module is imported: they make constants or register functions of the module itself.
CONSTANTS = {
    "TypeVar", "Annotated", "Field", "AfterValidator", "ConfigDict", "namedtuple", "Classes", "Path", "resolve",
    "range", "len", "type", "tuple", "dict", "set", "frozenset", "sorted", "zip", "join", "float", "str", "items",
    "np.arange", "np.array", "np.zeros", "np.ones", "np.uint64", "ops.MultitypeFuncGraph", "fromkeys", "DeviceConfig",
    "field",
}  # fmt: skip
REGISTRATIONS = {"add_constructor", "add_representer"}
DECORATORS = {
    "dataclass", "cache", "lru_cache", "contextmanager", "classmethod", "staticmethod", "property", "field_validator",
    "model_validator", "constexpr", "register",
}  # fmt: skip
# A tool is started from anywhere and draws without a display; MindSpore reads its log level while it is imported.
EXCEPTIONS = {"tools": {"sys.path.insert", "matplotlib.use"}, "src.__init__": {"os.environ.setdefault"}}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imported(tree: ast.Module, package: str) -> set[str]:
    """Every `src...` name that is imported anywhere in a file: of `from a import b`, both a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: -node.level], *([base] if base else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "src"}


def lies_in(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def forbidden(module: str, source: str) -> list[str]:
    """The imports of a module's source that the table does not allow."""
    allowed = (*next(allowed for place, allowed in ALLOWED.items() if lies_in(module, place)), "src.constants")
    names = imported(ast.parse(source), module)
    # bases of `from src.data import loader`
    packages = {"src", "src.data", "src.models", "src.losses", "src.engine", "src.doctor"}
    specific = {name for name in names if name not in packages or any(lies_in(name, place) for place in allowed)}
    bare = {name for name in names & packages if not any(lies_in(other, name) and other != name for other in names)}
    return sorted(name for name in specific | bare if not any(lies_in(name, place) for place in allowed))


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_imports_keep_to_the_table(file):
    assert forbidden(module_name(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("src.engine.trainer", "from src.models import create_model"),
        ("src.engine.trainer", "import src.losses"),
        ("src.engine.trainer", "def f():\n    from src.data import loader"),
        ("src.models.layers", "from src.config import ModelConfig"),
        ("src.models.backbones.vit", "from src.models.heads.fcn import FCNHead"),
        ("src.models.heads.fcn", "from ..backbones import vit"),
        ("src.losses.class_mask", "from src.models.layers import linear"),
        ("src.data.loader", "from src.functional import one_hot"),
        ("src.metrics", "from src import log"),
        ("src.config_loading", "from src.log import get_console"),
        ("src.predictor", "from src.data import load_classes"),
    ],
)
def test_the_table_refuses(module, line):
    assert forbidden(module, line)


def test_data_and_metrics_hold_no_network_code():
    for file in [*(ROOT / "src" / "data").glob("*.py"), ROOT / "src" / "metrics.py"]:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "import" in line.split("#")[0]]
        found = [line for line in lines if "mindspore" in line]
        assert found == (["import mindspore.dataset as ds"] if file.name == "loader.py" else []), file


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_commands_import_the_project_before_mindspore(file):
    """`src` sets MindSpore's log level, which is read when MindSpore is imported."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    imported = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in body
                if isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
    packages = [name.partition(".")[0] for name in imported]
    assert "mindspore" not in packages or "src" in packages[: packages.index("mindspore")]


def test_one_file_asks_for_the_rank_and_sets_the_device():
    words = {"get_rank", "get_group_size", "set_device", "set_context"}
    users = {
        module_name(file)
        for file in [*MODULES, *SCRIPTS]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and last(called(node)) in words
    }
    assert users == {"src.distributed"}


def called(node: ast.expr) -> str:
    """`np.arange` of np.arange(3) or of np.arange; of a method of a value, such as "".join, the method's name."""
    function = node.func if isinstance(node, ast.Call) else node
    dotted = all(isinstance(part, ast.Attribute | ast.Name | ast.Load) for part in ast.walk(function))
    return ast.unparse(function) if dotted or isinstance(function, ast.Name) else getattr(function, "attr", "?")


def last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def work_at_import(body: list[ast.stmt], allowed: set[str]) -> list[str]:
    """What a module or class body does besides defining names, as source text."""
    found = []
    for node in body:
        calls = {called(call) for call in ast.walk(node) if isinstance(call, ast.Call)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            decorators = {last(called(decorator)) for decorator in node.decorator_list}
            found += sorted(decorators - DECORATORS)
            if isinstance(node, ast.ClassDef):
                found += work_at_import(node.body, allowed)
            else:
                defaults = [default for default in [*node.args.defaults, *node.args.kw_defaults] if default]
                found += [ast.unparse(x) for x in defaults if any(isinstance(y, ast.Call) for y in ast.walk(x))]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found += [ast.unparse(node)] if calls - allowed else []
        elif isinstance(node, ast.Expr):
            harmless = isinstance(node.value, ast.Constant) or {last(c) for c in calls - allowed} <= REGISTRATIONS
            found += [] if harmless else [ast.unparse(node)]
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
            found += [ast.unparse(node)]
    return found


def starts_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


@pytest.mark.parametrize("file", [*MODULES, *SCRIPTS], ids=module_name)
def test_importing_only_defines_names(file):
    body = ast.parse(file.read_text(encoding="utf-8")).body
    script = file in SCRIPTS
    body = [node for node in body if not (script and starts_main(node))]
    allowed = CONSTANTS | EXCEPTIONS.get(module_name(file), EXCEPTIONS.get(file.parent.name, set()))
    assert work_at_import(body, allowed) == []


@pytest.mark.parametrize(
    "source",
    [
        "ms.set_context(mode=0)", "x = open('file')", "for i in range(3):\n    pass", "def f(x=np.load('x')): pass",
        "class A:\n    x = load()", "@registry.add\ndef f(): pass", "if True:\n    x = 1", "print('hello')",
    ],
)  # fmt: skip
def test_work_at_import_is_found(source):
    assert work_at_import(ast.parse(source).body, CONSTANTS)
