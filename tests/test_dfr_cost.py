"""The benchmark of DFR's cost: its shares, misuse, and that all of it runs."""

import pytest

from benchmarks import dfr_cost
from benchmarks.results_file import read_results
from src import losses


def test_shares_are_those_of_the_same_round():
    found = dfr_cost.summarise({dfr_cost.STEP: [4.0, 8.0, 2.0], "whole": [1.0, 1.6, 0.6]})["calls"]
    assert found["whole"]["share"] == pytest.approx(0.25) and found[dfr_cost.STEP]["share"] == 1.0
    assert found["whole"]["median"] == 1.0 and found["whole"]["seconds"] == [1.0, 1.6, 0.6]


def test_losses_are_what_they_say():
    made = {name: losses.create_loss(settings, 3) for name, settings in dfr_cost.LOSSES.items()}
    assert made["labelled pixels"].needs == ("logits", "auxiliary")
    on = {name: (loss.regulariser_weight > 0, loss.pairs) for name, loss in made.items() if name != "labelled pixels"}
    assert on == {"with regulariser": (True, False), "with consistency": (False, True), "whole": (True, True)}


def test_misuse_is_refused(capsys):
    with pytest.raises(SystemExit):
        dfr_cost.main(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_all_of_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(dfr_cost, "SMALL_SIDES", (64,))
    dfr_cost.main(["--small", "--rounds", "1", "--out", str(tmp_path / "cost.json")])
    found = read_results(tmp_path / "cost.json")
    assert set(found["time"]["calls"]) == {dfr_cost.STEP, *dfr_cost.LOSSES}
    assert {row["impl"] for row in found["memory"]["rows"]} == set(dfr_cost.IMPLS)
    assert all(row["cells"] == 64 and row["bytes"] > 0 for row in found["memory"]["rows"])
