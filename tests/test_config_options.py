"""Constructor arguments from the config: unknown, missing, of a wrong type, refused by the constructor."""

import pytest
from mindspore.nn.utils import no_init_parameters

from src.config_options import check_options, construct
from src.losses import LOSSES, check_outputs, create_loss
from src.models import BACKBONES, HEADS, build

GRIDS = ((4, 6),) * 4


class Network:
    """Stands for a network that a function builds with some arguments fixed."""

    def __init__(self, size: int, *, width: int, taps: tuple[int, ...], rate: float = 0.1, token: bool = False) -> None:
        self.size, self.width, self.taps, self.rate, self.token = size, width, taps, rate, token


def small(size, *, taps=(1, 2), **kwargs) -> Network:
    return Network(size, width=4, taps=taps, **kwargs)


def nested(*, pairs: tuple[tuple[int, int], ...] = (), table: dict[str, tuple[int, ...]] | None = None, free=1):
    return pairs, table, free


def divide(size: int, *, parts: int = 1) -> float:
    if parts < 0:
        raise ValueError(f"parts is {parts}")
    return size / parts


def problem(builder, options: dict, positional: int = 1) -> str:
    with pytest.raises(ValueError) as caught:
        check_options("place (it)", builder, options, positional)
    return str(caught.value)


def head(**options):
    with no_init_parameters():
        return build("model.head", HEADS, {"name": "ecenet", "channels": 8, **options}, (8,) * 4, GRIDS, 5)


@pytest.mark.parametrize(("options", "text"), [
    ({"channels": "abc"}, "channels is 'abc', wanted int"),
    ({"channels": None}, "channels is null, wanted int"),
    ({"channels": 8.0}, "channels is 8.0, wanted int"),
    ({"dropout": "yes"}, "dropout is 'yes', wanted float"),
    ({"dropout": True}, "dropout is true, wanted float"),
    ({"num_rounds": "two"}, "num_rounds is 'two', wanted int or null"),
    ({"fr": "off"}, "fr is 'off', wanted bool"),
    ({"fr": 1}, "fr is 1, wanted bool"),
    ({"num_heads": True}, "num_heads is true, wanted int"),
    ({"norm": 3}, "norm is 3, wanted str"),
    ({"fr_gate": "bogus"}, "fr_gate 'bogus' is not known; allowed: linear, sigmoid, one_plus"),
    ({"channels": 0}, "channels is 0; give at least 1"),
    ({"num_heads": 0}, "num_heads is 0; give at least 1"),
    ({"pool_ratio": -1}, "pool_ratio is -1; give a number above 0 (released: 1.0)"),
], ids=str)  # fmt: skip
def test_wrong_values_of_the_head(options, text):
    with pytest.raises(ValueError) as caught:
        head(**options)
    assert str(caught.value) == f"model.head (ecenet): {text}"


def test_unknown_argument_of_the_head():
    with pytest.raises(ValueError) as caught:
        head(chanels=8)
    start = "model.head (ecenet): unexpected argument 'chanels'; did you mean 'channels'? It takes channels, num_heads"
    assert str(caught.value).startswith(start)
    assert "in_channels" not in str(caught.value) and "self" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_large", "swin_tiny", "swin_base"])
def test_arguments_that_backbone_functions_forward(name):
    with pytest.raises(ValueError) as caught:
        build("model.backbone", BACKBONES, {"name": name, "drop_pat": 0.1, "drop_path": "x", "width": 3}, (32, 32))
    text = str(caught.value)
    taken = "taps, depth, drop_path, class_token, readout, tap_norm, recompute, whole_depth"
    taken = taken if name.startswith("vit") else "window, drop_path, mlp_ratio, recompute"
    place = f"- model.backbone ({name}):"
    assert text.splitlines()[:2] == ["3 errors in the options:", f"{place} drop_path is 'x', wanted float"]
    assert f"{place} unexpected argument 'drop_pat'; did you mean 'drop_path'? It takes {taken}" in text.splitlines()
    assert f"{place} unexpected argument 'width'" in text, "the function gives it itself"


def test_type_comes_from_the_class_where_the_function_says_none():
    with pytest.raises(ValueError, match=r"^model\.backbone \(vit_tiny\): taps is 3, wanted \[int, \.\.\.\]$"):
        build("model.backbone", BACKBONES, {"name": "vit_tiny", "taps": 3}, (32, 32))
    assert problem(small, {"taps": [1, "b"]}) == "place (it): taps is [1, 'b'], wanted [int, ...]"


def test_missing_arguments_are_named():
    text = problem(Network, {"token": True})
    assert "place (it): missing argument 'width', wanted int" in text
    assert "place (it): missing argument 'taps', wanted [int, ...]" in text
    with pytest.raises(ValueError, match="missing argument 'embed_width', wanted int"):
        build("model.backbone", BACKBONES, {"name": "swin"}, (32, 32))


def test_all_problems_come_together():
    text = problem(small, {"tokem": True, "rate": "x", "zzz": 1})
    assert text.splitlines() == [
        "3 errors in the options:",
        "- place (it): rate is 'x', wanted float",
        "- place (it): unexpected argument 'tokem'; did you mean 'token'? It takes taps, rate, token",
        "- place (it): unexpected argument 'zzz'. It takes taps, rate, token",
    ]
    assert problem(divide, {"parts": 1, "size": 2}) == "place (it): unexpected argument 'size'. It takes parts"
    assert problem(divide, {1: 2}, 2) == "place (it): unexpected argument 1. It takes no arguments"


def test_right_options_come_back_with_tuples():
    assert check_options("", small, {"taps": [1, 2], "rate": 0, "token": True}, 1) == {
        "taps": (1, 2), "rate": 0, "token": True,
    }  # fmt: skip
    options = {"pairs": [[1, 2], [3, 4]], "table": {"a": [1]}, "free": [[{}]]}
    expected = {"pairs": ((1, 2), (3, 4)), "table": {"a": (1,)}, "free": (({},),)}
    assert check_options("", nested, options, 0) == expected
    assert options["pairs"] == [[1, 2], [3, 4]], "the config is left alone"
    assert check_options("", nested, {"table": None}, 0) == {"table": None}
    assert problem(nested, {"pairs": [[1, 2, 3]]}, 0) == "place (it): pairs is [[1, 2, 3]], wanted [[int, int], ...]"


def test_construct_names_the_place_of_refused_values():
    built = construct("place", small, {"taps": [1], "rate": 1}, 7)
    assert (built.size, built.width, built.taps, built.rate, built.token) == (7, 4, (1,), 1, False)
    with pytest.raises(ValueError, match=r"^place: parts is -1$") as caught:
        construct("place", divide, {"parts": -1}, 4)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match=r"^place: division by zero$") as caught:
        construct("place", divide, {"parts": 0}, 4)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_outputs_of_the_head_fit_the_loss():
    with no_init_parameters():
        fcn = build("model.head", HEADS, {"name": "fcn", "channels": 8}, (8,), GRIDS[:1], 5)
    losses = {name: create_loss({"name": name}, 5) for name in LOSSES}
    for name in ("cross_entropy", "class_mask"):
        check_outputs(head(), losses[name])
    check_outputs(fcn, losses["cross_entropy"])
    with pytest.raises(ValueError) as caught:
        check_outputs(fcn, losses["class_mask"])
    assert str(caught.value) == (
        "loss 'class_mask' needs masks, finest_mask, diverse, which the head does not give (it gives logits, decoder); "
        "use loss cross_entropy or partial_cross_entropy, or a head that gives them instead of FCNHead"
    )
