"""Features of images for eigenproblems, from a pretrained network (spec sazs, section 6.2).

Letters: H x W image, P pixels along a node, h x w grid of nodes, N = h w, D width of a feature.
"""

import hashlib
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config import ModelConfig
from src.engine.weights import CLASSES, load_pretrained, read_metadata, read_tensors, weights_file
from src.models import BACKBONES, build, create_model
from src.models.backbones.vit import VisionTransformer
from src.spectral.options import SpectralOptions
from src.spectral.segments import grid_of

SMALLEST = (32, 32)  # image that tells the strides of a backbone


class LastKeys(nn.Cell):
    """Normalised image (B, 3, H, W) -> keys (B, N, D) of the last block of a Vision Transformer."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone

    def construct(self, image):
        return self.backbone.last_keys(image)


class FinestMap(nn.Cell):
    """Normalised image (B, 3, H, W) -> the backbone's finest map as (B, N, D)."""

    def __init__(self, backbone: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone

    def construct(self, image):
        finest = self.backbone(image)[0]
        return finest.reshape(finest.shape[0], finest.shape[1], -1).transpose(0, 2, 1)


class FeatureMaker:
    """Features of images of any size: a network is built for each grid.

    Args:
        model: whose backbone is asked. weights: what it loads. allow_finetuned: accept weights of a run of ours.

    `facts` are what decides the features besides the options, as plain values. The image is resized so that a patch is
    as wide as the network's stride. Raises ValueError for fine-tuned weights (they have seen masks, which eigensegments
    promise not to), for keys of a backbone that is no Vision Transformer, and for features through drawn weights.
    """

    def __init__(
        self, model: ModelConfig, weights: str | Path, options: SpectralOptions, allow_finetuned: bool = False
    ) -> None:
        self.model, self.options, self.weights = model, options, weights_file(weights)
        if CLASSES in read_metadata(self.weights) and not allow_finetuned:
            raise ValueError(
                f"{self.weights} was trained on masks; eigensegments need pretrained weights "
                "(tools/convert_weights.py), or --allow-finetuned where that is meant"
            )
        self.facts = {
            "weights_sha256": hashlib.sha256(self.weights.read_bytes()).hexdigest(), "backbone": model.backbone,
            "mean": list(model.mean), "std": list(model.std),
        }  # fmt: skip
        backbone = build("model.backbone", BACKBONES, model.backbone, SMALLEST)
        if options.features in ("dino_k", "backbone_k") and not isinstance(backbone, VisionTransformer):
            raise ValueError(f"spectral.features={options.features} needs a Vision Transformer; use backbone_map")
        self.require_loaded(backbone)
        self.stride = backbone.strides[0]
        self.networks: dict[tuple[int, int], nn.Cell] = {}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(N, D) float32 of an image (H, W, 3) uint8 RGB, its incomplete patches left out."""
        patch, (height, width) = self.options.patch, grid_of(image.shape[:2], self.options.patch)
        image, size = image[: height * patch, : width * patch], (height * self.stride, width * self.stride)
        if size != image.shape[:2]:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        normalised = (image.astype(np.float32) - np.float32(self.model.mean)) / np.float32(self.model.std)
        if size not in self.networks:
            self.networks[size] = self.build(size)
        tokens = self.networks[size](Tensor(normalised.transpose(2, 0, 1)[None], ms.float32)).asnumpy()[0]
        if len(tokens) != height * width:
            raise ValueError(f"the network gives {len(tokens)} features for {height} x {width} patches; use a ViT")
        return tokens

    def require_loaded(self, backbone: nn.Cell) -> None:
        """Raises ValueError where the file lacks weights of the backbone that are used and start as random numbers.

        Fresh normalisations are ones and zeros: they change nothing from run to run.
        """
        unused = () if self.options.features == "backbone_map" else tuple(backbone.fresh_prefixes)
        known = {name.removeprefix("backbone.") for name in read_tensors(self.weights)[0]}
        fresh = {name: p for name, p in backbone.parameters_and_names() if name not in known}
        drawn = [name for name, p in fresh.items() if not name.startswith(unused) and np.ptp(p.asnumpy()) > 0]
        if drawn:
            raise ValueError(
                f"{self.weights} lacks {', '.join(drawn)}, which --features {self.options.features} goes through and "
                "which would be drawn at random; use keys, model.backbone.readout=drop or weights that have them"
            )

    def build(self, size: tuple[int, int]) -> nn.Cell:
        """The network of one image size, its weights loaded."""
        network = create_model(self.model, 2, size)
        load_pretrained(network, self.weights)
        cell = FinestMap if self.options.features == "backbone_map" else LastKeys
        return cell(network.backbone).set_train(False)
