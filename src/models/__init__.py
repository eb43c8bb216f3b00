"""Networks by name, from their part of the configuration."""

from typing import Any

from src.config import ModelConfig, lookup
from src.config_options import construct
from src.models.backbones.drn import DRN, drn_d_105
from src.models.backbones.mobilenet_v2 import MobileNetV2, mobilenet_v2
from src.models.backbones.resnet import ResNet, resnet_18, resnet_50, resnet_101
from src.models.backbones.swin import SwinTransformer, swin_base, swin_large, swin_small, swin_tiny
from src.models.backbones.vit import VisionTransformer, vit_base, vit_large, vit_small, vit_tiny
from src.models.heads.alignseg import AlignSegHead
from src.models.heads.consistency import ConsistencyHead
from src.models.heads.ecenet import ECENetHead
from src.models.heads.fcn import FCNHead
from src.models.heads.pixel_encoders import PyramidPoolingHead, ReassembleHead
from src.models.heads.segvit import SegViTHead
from src.models.heads.text import PixelTextHead
from src.models.heads.text_ecenet import text_ecenet
from src.models.heads.upernet import UperNetHead
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
    "resnet": ResNet,
    "resnet_18": resnet_18,
    "resnet_50": resnet_50,
    "resnet_101": resnet_101,
    "mobilenet": MobileNetV2,
    "mobilenet_v2": mobilenet_v2,
    "drn": DRN,
    "drn_d_105": drn_d_105,
}


def with_consistency(in_channels, grids, num_classes: int, *, main: dict[str, Any], **options) -> ConsistencyHead:
    """The head that `main` describes, with a feature consistency head beside it."""
    inner = build("model.head.main", HEADS, main, in_channels, grids, num_classes)
    return ConsistencyHead(inner, in_channels, grids, **options)


def pixel_text(in_channels, grids, num_classes, *, encoder: dict, width: int = 512, **kwargs) -> PixelTextHead:
    """`PixelTextHead` over the encoder that `encoder` names with its options, a head of `width` classes."""
    pixels = build("encoder", ENCODERS, encoder, in_channels, grids, width)
    return PixelTextHead(pixels, num_classes, width, **kwargs)


HEADS = {
    "ecenet": ECENetHead,
    "fcn": FCNHead,
    "segvit": SegViTHead,
    "alignseg": AlignSegHead,
    "upernet": UperNetHead,
    "consistency": with_consistency,
    "pixel_text": pixel_text,
    "text_ecenet": text_ecenet,
}
ENCODERS = {
    **{name: HEADS[name] for name in ("ecenet", "fcn", "segvit", "alignseg", "upernet")},
    "reassemble": ReassembleHead,
    "pyramid_pooling": PyramidPoolingHead,
}


def create_model(model: ModelConfig, num_classes: int, image_size: tuple[int, int]) -> Segmentor:
    """The network of a configuration for images of `image_size` (H, W), with fresh weights.

    Raises ValueError for unknown names and for arguments that the backbone or head does not take or allow.
    """
    backbone = build("model.backbone", BACKBONES, model.backbone, tuple(image_size))
    head = build("model.head", HEADS, model.head, backbone.channels, backbone.grids, num_classes)
    return Segmentor(backbone, head, model.mean, model.std)


def build(key: str, table: dict, settings: dict, *args):
    """Calls the builder that `settings["name"]` names with args and the other settings as keyword arguments."""
    if not isinstance(settings.get("name"), str):
        raise ValueError(f"{key} {settings} has no name; known: {', '.join(table)}")
    builder = lookup(table, settings["name"], key.rsplit(".", 1)[-1])
    options = {name: value for name, value in settings.items() if name != "name"}
    return construct(f"{key} ({settings['name']})", builder, options, *args)
