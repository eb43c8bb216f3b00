"""Predictor: RGB image -> label map, from a checkpoint's network or an exported model."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from src.class_text import loader_of
from src.config import Config, EvalConfig
from src.data.classes import Classes
from src.engine.graphs import MindIR, NetworkLogits
from src.engine.inference import predict_label
from src.models import create_model


class Predictor:
    """RGB image (H, W, 3) uint8 -> label map (H, W) uint8 by the modes of EvalConfig.

    Made by `from_checkpoint` or `from_mindir`. `names` and `palette` describe the classes, `info` what was loaded.
    """

    def __init__(self, predict, names: tuple[str, ...], palette: tuple, info: dict[str, str]) -> None:
        self.predict, self.names, self.palette, self.info = predict, tuple(names), tuple(palette), info

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.predict(image)

    def colour(self, label: np.ndarray) -> np.ndarray:
        """Label map (H, W) -> RGB colours (H, W, 3) uint8; 255 is black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.palette)] = self.palette
        return table[label]

    def overlay(self, image: np.ndarray, label: np.ndarray, opacity: float = 0.5) -> np.ndarray:
        """The image with the label's colours over it: (H, W, 3) uint8 RGB."""
        return cv2.addWeighted(image, 1.0 - opacity, self.colour(label), opacity, 0.0)


def from_checkpoint(config: Config, classes: Classes, path: str | Path, named: bool = False) -> Predictor:
    """Predictor of a checkpoint (folder, run folder, .safetensors or .ckpt file) by the settings of `config.eval`.

    named: the classes are given by name, see `class_text.loader_of`; else those that the weights were trained for.
    """
    file, fill = loader_of(config.model, path, classes.names, named)
    make = NetworkLogits(partial(create_model, config.model, len(classes)), fill)
    make(config.eval.size)  # a file that does not fit is refused here
    predict = partial(predict_label, settings=config.eval, make=make, num_classes=len(classes))
    return Predictor(predict, classes.names, classes.palette, {"weights": str(file)})


def from_mindir(path: str | Path, settings: EvalConfig | None = None) -> Predictor:
    """Predictor of an exported model; without settings as exported: resized in the graph, one scale, no flip.

    Raises ValueError for settings that this export cannot serve.
    """
    model = MindIR(path)
    if model.more_inputs:
        raise ValueError(
            f"{path} takes {', '.join(model.more_inputs)} of every image besides its pixels; call it with MindSpore "
            "(docs/sazs.md), or export it without --fusion"
        )
    names, palette = model.names, model.palette
    plain = settings is None or (settings.mode == "resize" and not settings.flip and settings.scales == (1.0,))
    if plain and (settings is None or (settings.base_size is None and settings.size == model.size)):
        return Predictor(model.labels, names, palette, model.info)
    model.make(settings.size)  # an export that cannot serve these settings is refused here
    predict = partial(predict_label, settings=settings, make=model.make, num_classes=len(names))
    return Predictor(predict, names, palette, model.info)
