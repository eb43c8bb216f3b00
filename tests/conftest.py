"""Options and fixtures that several test files share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Few tests of a minute together: begun last, they would leave the other process without work.
LONG_FILES = (
    "test_distributed.py", "test_commands.py", "test_stopping.py", "test_bad_steps.py", "test_portability.py",
    "test_checkpoint.py", "test_gradients.py", "test_train_step.py", "test_graph_cache.py",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--faults", action="store_true", help="run the fault campaigns, and nothing else")


def pytest_collection_modifyitems(config, items):
    faults = config.getoption("--faults")
    dropped = [item for item in items if ("faults" in item.keywords) != faults]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
    if not config.getoption("--slow") and not faults:
        skip = pytest.mark.skip(reason="slow; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
    items.sort(key=lambda item: LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES else len(LONG_FILES))


def pytest_configure(config):
    # One place for every test that runs MindSpore: the mode and device that users run.
    from src import distributed

    distributed.setup("CPU", "graph")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets; the test is skipped where there is none."""
    root = Path(os.environ.get("ECENET_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data at {root}; set ECENET_DATA")
    return root


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """Folder of the released head's golden values; the test is skipped where there is none."""
    root = Path(os.environ.get("ECENET_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not root.is_dir():
        pytest.skip(f"no golden values at {root}; set ECENET_GOLDEN")
    return root
