"""The held-out tenth of a split."""

import pytest

from src.config import load_config
from src.data import load_items
from src.data.holdout import held_positions, select_part, split_part


def test_parts_share_all_items_between_them():
    items = list(range(367))
    fit, held = select_part(items, "fit"), select_part(items, "held")
    assert len(held) == 36 and sorted(fit + held) == items
    assert fit == sorted(fit) and held == sorted(held)
    assert select_part(items, None) == items


def test_held_items_are_runs_of_neighbours_over_the_whole_list():
    # 40 items: 1 in the middle of each ten. 367: four runs of 9.
    assert held_positions(40) == {5, 15, 25, 35}
    held = sorted(held_positions(367))
    starts = [position for position in held if position - 1 not in held_positions(367)]
    assert starts == [41, 133, 225, 317]
    assert held == [start + i for start in starts for i in range(9)]


def test_names_of_parts():
    assert split_part("train[held]") == ("train", "held")
    assert split_part("train[fit]") == ("train", "fit")
    assert split_part("train") == ("train", None)
    with pytest.raises(ValueError, match=r"unknown part 'rest'.*train\[held\]"):
        split_part("train[rest]")


def test_a_short_list_is_refused():
    with pytest.raises(ValueError, match="39 items are too few"):
        select_part(list(range(39)), "fit")


def test_configured_splits_take_parts():
    config = load_config("config/ecenet/swin_tiny_toy.yaml", ["data.train_split=train[fit]"])
    names = {
        part: [item.name for item in load_items(config.data, f"train{part}")] for part in ("", "[fit]", "[held]")
    }
    assert sorted(names["[fit]"] + names["[held]"]) == names[""]
    assert len(names["[held]"]) == len(names[""]) // 10
    assert config.data.train_split == "train[fit]"
