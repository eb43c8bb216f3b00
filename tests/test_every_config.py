"""Every experiment in config/ loads and builds, and its evaluation fits its network."""

from pathlib import Path

import pytest
from mindspore.nn.utils import no_init_parameters

from src.config import load_config
from src.losses import create_loss
from src.models import create_model
from tests.conftest import ROOT

EXPERIMENTS = sorted(p for p in (ROOT / "config").rglob("*.yaml") if p.parent.name != "_base_")
CLASSES = 9


def test_there_are_experiments():
    assert len(EXPERIMENTS) >= 4


def test_no_two_experiments_share_a_run_folder():
    names = [load_config(path).name for path in EXPERIMENTS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_builds(path: Path):
    config = load_config(path)
    loss = create_loss(config.loss, CLASSES)
    assert loss.terms
    with no_init_parameters():
        training = create_model(config.model, CLASSES, config.data.crop_size)
        served = create_model(config.model, CLASSES, config.eval.size)
    assert [p.name for p in served.get_parameters()] == [p.name for p in training.get_parameters()]
    assert "Train:" in path.read_text().split("_base_:")[0], "the header says how to train it"


def test_wrong_arguments_name_their_place():
    config = load_config(ROOT / "config/ecenet/vit_tiny_camvid.yaml", ["model.head.chanels=64"])
    with pytest.raises(ValueError, match=r"model\.head \(ecenet\).*chanels.*It takes .*channels"):
        create_model(config.model, CLASSES, (320, 320))
    config = load_config(ROOT / "config/ecenet/vit_tiny_camvid.yaml", ["model.backbone.name=vit_tinny"])
    with pytest.raises(ValueError, match="unknown backbone 'vit_tinny'.*did you mean 'vit_tiny'"):
        create_model(config.model, CLASSES, (320, 320))


def test_sizes_that_do_not_fit_are_refused():
    config = load_config(ROOT / "config/ecenet/vit_tiny_camvid.yaml")
    with pytest.raises(ValueError, match=r"\(360, 480\) is not a multiple of 16; use \(368, 480\)"):
        create_model(config.model, CLASSES, (360, 480))
