"""ECENet decode head (ECENet spec, sections 2 to 6).

Y. Liu et al., "Boosting Semantic Segmentation from the Perspective of Explicit Class Embeddings", ICCV 2023.

Letters: B batch, K classes, S levels, finest first (level 1 .. S), E decoder width, H_s x W_s grid of level s,
H_o x W_o output grid.
"""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.functional import check_choice, resize_bilinear, spread
from src.models.heads.ecenet_parts import (
    POOL_GRIDS,
    ClassEmbedding,
    ClassMask,
    EmbeddingUpdater,
    GhostUpsample,
    PyramidNeck,
    SemanticsAttention,
    largest_pool_grid,
)
from src.models.heads.feature_reconstruction import FeatureReconstruction
from src.models.layers import conv2d, create_norm, init_linear_layers, init_pixel_classifier, linear

PRESETS = ("auto", "iso16", "iso8", "pyr", "hierarchical")
UPDATERS = ("gated", "replace", "add", "none")
MASK_PRIORS = ("diag", "none", "full")
AGGREGATES = ("concat", "last")
CLASS_LAYERS = ("classifier.", "confidence.", "class_mask.classify.")  # what they compute is one class each


class ECENetHead(nn.Cell):
    """Feature Reconstruction, explicit class extraction, rounds of attention and update, aggregation.

    Args:
        in_channels, grids: channels C_s and grids (H_s, W_s) of the S levels, finest first.
        num_classes, channels, num_heads: K, E, h.
        preset: `hierarchical` takes levels of falling resolution as they come (released); for S equal grids `iso16`
            keeps them, `iso8` doubles each before fusion, `pyr` makes a pyramid first; `auto`: hierarchical unless all
            grids are equal, then iso16.
        fr, fr_gate, fr_ratio: Feature Reconstruction, see there; fr=False passes levels on.
        norm: normalisation of every convolution, see `create_norm`.
        embed_from, pool_ratio: class embeddings, see `ClassEmbedding`; L = int(sqrt(K) * pool_ratio) made odd.
        attn_sign, q_act: see `SemanticsAttention`.
        num_rounds: attention rounds from level S-1 downwards, 0 to S-1 (None: S-1); other levels pass unchanged.
        updater: `gated` (released), `replace` (new), `add` (old + new), `none` (keep the old embedding).
        ghost_up: ghost upsampling of coarse levels before the bilinear resize (hierarchical and pyr).
        aggregate: `concat` all levels (released), or `last`: the finest only.
        mask_prior: term beside the pixel classifier: `diag` (released), `full` (K x K confidences) or `none`.
        dropout: rate of whole channels before the classifier.
        init_linear, init_classifier: see `init_linear_layers`, `init_pixel_classifier` (`normal001`: released).
    """

    outputs: tuple[str, ...] = ("logits", "masks", "finest_mask", "diverse", "embeddings")

    def __init__(
        self, in_channels: tuple[int, ...], grids: tuple[tuple[int, int], ...], num_classes: int, *,
        channels: int = 256, num_heads: int = 4, preset: str = "auto", fr: bool = True, fr_gate: str = "linear",
        fr_ratio: float = 0.5, norm: str = "sync_batch", embed_from: str = "layout", pool_ratio: float = 1.0,
        attn_sign: str = "reversed", q_act: str = "none", num_rounds: int | None = None, updater: str = "gated",
        ghost_up: bool = True, aggregate: str = "concat", mask_prior: str = "diag", dropout: float = 0.1,
        init_linear: str = "fanin", init_classifier: str = "fanin",
    ) -> None:  # fmt: skip
        super().__init__()
        check_switches(preset=preset, updater=updater, mask_prior=mask_prior, aggregate=aggregate)
        self.levels, self.channels, self.num_classes = len(in_channels), channels, num_classes
        rounds = self.levels - 1 if num_rounds is None else num_rounds
        check_sizes(self.levels, rounds, channels, num_heads, pool_ratio)
        self.aggregate, self.mask_prior, self.updater, self.fr = aggregate, mask_prior, updater, fr
        self.first_round = self.levels - 1 - rounds  # index of the finest level that attends
        self.noise_rates = np.full(channels, dropout, np.float32)
        self.preset = resolve_preset(preset, grids, ghost_up)
        self.in_channels = tuple(in_channels)
        if self.preset == "pyr":
            self.neck = PyramidNeck(in_channels[0], norm)
            grids = pyramid_grids(grids[0])
        self.grids = tuple(grids)
        self.ghost_steps = ghost_steps(self.preset, self.levels, ghost_up)
        self.output_grid = tuple(side * (2 if self.preset == "iso8" else 1) for side in self.grids[0])

        if fr:
            self.reconstruct = nn.CellList(
                [FeatureReconstruction(c, norm=norm, gate=fr_gate, ratio=fr_ratio) for c in in_channels]
            )
        self.laterals = nn.CellList([conv2d(c, channels, 1, bias=False) for c in in_channels])
        self.class_mask = ClassMask(channels, num_classes, num_heads)
        self.create_embeddings(embed_from, pool_ratio)
        attending = range(self.first_round, self.levels - 1)
        self.attentions = nn.CellList(
            [SemanticsAttention(channels, num_heads, attn_sign=attn_sign, q_act=q_act) for _ in attending]
        )
        if updater == "gated":
            self.updaters = nn.CellList([EmbeddingUpdater(channels) for _ in attending])
        self.create_fusion(norm)
        self.create_classifier(init_linear, init_classifier)

    def create_embeddings(self, embed_from: str, pool_ratio: float) -> None:
        """Class embeddings of the coarsest level and, unless they are never updated, of every level that attends."""
        sides = (*POOL_GRIDS, largest_pool_grid(self.num_classes, pool_ratio))
        embedded = self.grids[self.first_round :] if self.updater != "none" else self.grids[-1:]
        self.embeddings = nn.CellList([ClassEmbedding(grid, self.channels, sides, embed_from) for grid in embedded])

    def create_fusion(self, norm: str) -> None:
        """Upsampling of the aggregated levels, and the convolution over them."""
        used = self.ghost_steps if self.aggregate == "concat" else self.ghost_steps[:1]
        self.ghosts = nn.CellList(
            [nn.SequentialCell(*[GhostUpsample(self.channels, norm) for _ in range(n)]) if n else nn.Identity()
             for n in used]
        )  # fmt: skip
        self.fusion = conv2d(self.channels * len(used), self.channels, 3, bias=False)
        self.fusion_norm = create_norm(norm, self.channels)

    def create_classifier(self, init_linear: str, init_classifier: str) -> None:
        """Pixel classifier and class confidences, the last layers; then the initial values of all linear layers."""
        self.classifier = conv2d(self.channels, self.num_classes, 1)
        if self.mask_prior != "none":
            self.confidence = linear(self.channels, self.num_classes)
        init_linear_layers(self, init_linear)
        init_pixel_classifier(self.classifier, init_classifier)

    def construct(self, features, noise=None):
        """S maps (B, C_s, H_s, W_s), noise (B, E) or None -> dict of

        logits (B, K, H_o, W_o); masks: raw logits of the levels S .. 2 that have one, and finest_mask: of level 1 (a
        tuple of one or none), all (B, K, H_o, W_o), finest first; diverse: the S gated maps of Feature Reconstruction;
        embeddings: the class embeddings (B, K, E), those of level S first, then after each round's update.
        """
        if self.preset == "pyr":
            features = self.neck(features)
        laterals, diverse = (), ()
        for s in range(self.levels):
            x = features[s]
            if self.fr:
                x, gated = self.reconstruct[s](x)
                diverse += (gated,)
            laterals += (self.laterals[s](x),)
        enhanced, masks, embeddings = self.refine(laterals)
        fused = self.fuse(enhanced)
        if noise is not None:
            fused = fused * spread(noise.expand_dims(-1).expand_dims(-1), fused.shape)
        logits = self.classifier(fused)
        resized = ()
        for mask in masks:
            resized += (resize_bilinear(mask, self.output_grid),)
        if self.mask_prior != "none":
            logits = logits + self.prior(embeddings[-1], sum_maps(resized))
        finest = 1 if self.first_round == 0 and self.levels > 1 else 0
        return {
            "logits": logits, "masks": resized[finest:], "finest_mask": resized[:finest], "diverse": diverse,
            "embeddings": embeddings,
        }  # fmt: skip

    def refine(self, laterals):
        """Lateral maps -> enhanced maps (finest first), masks (finest first), class embeddings (B, K, E) as refined."""
        x = laterals[-1]
        mask = self.class_mask(x)
        embedding = self.embeddings[-1](mask, x)
        enhanced, masks, embeddings = (x,), (mask,), (embedding,)
        for s in range(self.levels - 2, -1, -1):
            x = laterals[s]
            i = s - self.first_round
            if i >= 0:
                x, mask = self.attentions[i](x, embedding)
                masks = (mask, *masks)
                if self.updater != "none":
                    embedding = self.update(i, embedding, self.embeddings[i](mask, laterals[s]))
                    embeddings += (embedding,)
            enhanced = (x, *enhanced)
        return enhanced, masks, embeddings

    def update(self, i, old, new):
        """Class embeddings after round i."""
        if self.updater == "gated":
            return self.updaters[i](old, new)
        return old + new if self.updater == "add" else new

    def fuse(self, enhanced):
        """Enhanced maps -> fused map (B, E, H_o, W_o)."""
        maps = ()
        for i in range(len(self.ghosts)):
            maps += (resize_bilinear(self.ghosts[i](enhanced[i]), self.output_grid),)
        return ops.relu(self.fusion_norm(self.fusion(ops.concat(maps, 1) if len(maps) > 1 else maps[0])))

    def prior(self, embedding, total_mask):
        """Confidence of each class embedding times its summed mask: (B, K, H_o, W_o)."""
        confidence = ops.softmax(self.confidence(embedding), -1)  # (B, K embeddings, K classes)
        share = ops.sigmoid(total_mask)
        if self.mask_prior == "diag":
            diagonal = (confidence * ops.eye(self.num_classes, self.num_classes, ms.float32)).sum(-1)
            return spread(diagonal.expand_dims(-1).expand_dims(-1), share.shape) * share
        b, k, height, width = share.shape
        return ops.matmul(confidence.transpose(0, 2, 1), share.reshape(b, k, -1)).reshape(b, k, height, width)

    def class_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names of the parameters to start afresh where weights of `shapes`, by name, are of other classes.

        The linear layers of the class embeddings are among them where their inputs, the P cells, differ in number.
        """
        own = {name: tuple(p.shape) for name, p in self.parameters_and_names()}
        resized = {
            name.rpartition(".")[0] + "."
            for name, shape in own.items()
            if name.startswith("embeddings.") and shapes.get(name, shape) != shape
        }
        return tuple(name for name in own if name.startswith((*CLASS_LAYERS, *resized)))

    def count_macs(self) -> int:
        """Multiply-accumulates of one image by the closed formulas of spec section 9 (with the neck of `pyr`)."""
        positions = [height * width for height, width in self.grids]
        outputs = self.output_grid[0] * self.output_grid[1]
        e, k = self.channels, self.num_classes
        total = 24 * self.in_channels[0] ** 2 * positions[2] if self.preset == "pyr" else 0
        if self.fr:
            total += sum(cell.count_macs(n) for cell, n in zip(self.reconstruct, positions, strict=True))
        total += sum(n * c * e for n, c in zip(positions, self.in_channels, strict=True))
        total += positions[-1] * (e * e // self.class_mask.group.group + e * k)
        total += sum(cell.count_macs(k) for cell in self.embeddings)
        for cell, n in zip(self.attentions, positions[self.first_round :], strict=False):
            total += cell.count_macs(n, k) + (5 * k * e * e if self.updater == "gated" else 0)
        for n, steps in zip(positions, self.ghost_steps[: len(self.ghosts)], strict=False):
            total += sum(4**j * n * (2 * e * e + 18 * e) for j in range(steps))
        total += 9 * len(self.ghosts) * e * e * outputs + outputs * e * k
        return total + (k * k * e if self.mask_prior != "none" else 0)


def sum_maps(maps):
    """Sum of a tuple of equal maps."""
    total = maps[0]
    for other in maps[1:]:
        total = total + other
    return total


def check_switches(**values: str) -> None:
    """Raises ValueError for an unknown value of preset, updater, mask_prior or aggregate."""
    allowed = {"preset": PRESETS, "updater": UPDATERS, "mask_prior": MASK_PRIORS, "aggregate": AGGREGATES}
    for name, value in values.items():
        check_choice(name, value, allowed[name])


def check_sizes(levels: int, rounds: int, channels: int, num_heads: int, pool_ratio: float) -> None:
    """Raises ValueError for sizes that no head has."""
    if not 0 <= rounds < levels:
        raise ValueError(f"num_rounds {rounds}: {levels} levels allow 0 to {levels - 1}")
    for name, value in (("channels", channels), ("num_heads", num_heads)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    if channels % num_heads:
        raise ValueError(f"channels {channels} is not a multiple of num_heads {num_heads}")
    if not pool_ratio > 0.0:
        raise ValueError(f"pool_ratio is {pool_ratio}; give a number above 0 (released: 1.0)")


def resolve_preset(preset: str, grids: tuple[tuple[int, int], ...], ghost_up: bool) -> str:
    """The preset that `auto` means for these grids, after checking that the grids allow it."""
    equal = len(set(grids)) == 1
    if preset == "auto":
        return "iso16" if equal else "hierarchical"
    if preset in ("iso16", "iso8", "pyr") and not equal:
        raise ValueError(f"preset {preset!r} needs levels of one grid, got {grids}; use 'hierarchical'")
    if preset == "pyr" and len(grids) != 4:
        raise ValueError(f"preset 'pyr' needs 4 levels, got {len(grids)}; use 'iso16' or 'iso8'")
    # Ghost upsampling would double maps that then shrink again. Falling grids, too, can all be 1 x 1: they round up.
    if preset == "hierarchical" and equal and len(grids) > 1 and ghost_up and tuple(grids[0]) != (1, 1):
        raise ValueError(f"preset 'hierarchical' with ghost_up needs falling grids, got {grids}; use 'iso16'")
    return preset


def pyramid_grids(grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Grids that the neck of preset `pyr` makes of one grid."""
    height, width = grid
    return (4 * height, 4 * width), (2 * height, 2 * width), (height, width), (height // 2, width // 2)


def ghost_steps(preset: str, levels: int, ghost_up: bool) -> tuple[int, ...]:
    """Number of ghost upsampling steps of each level, finest first."""
    if preset == "iso8":
        return (1,) * levels
    return tuple(range(levels)) if ghost_up and preset != "iso16" else (0,) * levels
