"""Networks by name, from their part of the configuration."""

import inspect

from src.config import ModelConfig, lookup
from src.models.backbones.swin import SwinTransformer, swin_base, swin_large, swin_small, swin_tiny
from src.models.backbones.vit import VisionTransformer, vit_base, vit_large, vit_small, vit_tiny
from src.models.heads.ecenet import ECENetHead
from src.models.heads.fcn import FCNHead
from src.models.segmentor import Segmentor

BACKBONES = {
    "vit": VisionTransformer,
    "vit_tiny": vit_tiny,
    "vit_small": vit_small,
    "vit_base": vit_base,
    "vit_large": vit_large,
    "swin": SwinTransformer,
    "swin_tiny": swin_tiny,
    "swin_small": swin_small,
    "swin_base": swin_base,
    "swin_large": swin_large,
}

HEADS = {"ecenet": ECENetHead, "fcn": FCNHead}


def create_model(model: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> Segmentor:
    """The network of a configuration for images of `image_size` (H, W), with fresh weights.

    Raises ValueError for unknown names and for arguments that the backbone or head does not take.
    """
    backbone = build("model.backbone", BACKBONES, model.backbone, tuple(image_size))
    head = build("model.head", HEADS, model.head, backbone.channels, backbone.grids, num_classes)
    return Segmentor(backbone, head, model.mean, model.std)


def build(key: str, table: dict, settings: dict, *args):
    """Calls the builder that `settings["name"]` names with args and the other settings as keyword arguments."""
    kind = key.rsplit(".", 1)[-1]
    builder = lookup(table, settings["name"], kind)
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if name != "name"}
    try:
        inspect.signature(builder).bind(*args, **options)
    except TypeError as error:
        raise ValueError(f"{key} ({settings['name']}): {error}; {accepted(builder, len(args))}") from error
    try:
        return builder(*args, **options)
    except TypeError as error:  # a builder that forwards its keyword arguments to the network's constructor
        raise ValueError(f"{key} ({settings['name']}): {error}") from error


def accepted(builder, positional: int) -> str:
    """The keyword arguments of a builder, for an error message."""
    names = [name for name in inspect.signature(builder).parameters if name not in ("self", "kwargs")]
    return f"it takes {', '.join(names[positional:])}"
