"""Parts of a network and its loss, each compiled and run by itself, to be timed.

Parts that are compiled apart cannot share work or overlap as they do in one graph, so their times need not add up.

Letters: B images, n noise columns, L maps.
"""

from collections.abc import Callable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops


class HeadForward(nn.Cell):
    """Runs a head on maps that come one by one; returns its outputs, or `key` of them and leaves all else out."""

    def __init__(self, head: nn.Cell, key: str | None = None, train: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.head, self.key = head, key
        self.set_train(train)

    def construct(self, noise, *features):
        """noise (B, n) or None, L maps (B, C_i, H_i, W_i)."""
        outputs = self.head(features, noise)
        return outputs if self.key is None else outputs[self.key]


class BackbonePass(nn.Cell):
    """Forward of a backbone and the gradients of its parameters for fixed gradients of its maps."""

    def __init__(self, backbone: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone
        self.value_and_grad = ops.value_and_grad(self.forward, None, ParameterTuple(backbone.trainable_params()))
        self.set_train()

    def forward(self, image, noise, *cotangents):
        return inner_product(self.backbone(image, noise), cotangents)

    def construct(self, image, noise, *cotangents):
        """image (B, 3, H, W) normalised, noise (B, n), cotangents like the maps -> (scalar, gradients)."""
        return self.value_and_grad(image, noise, *cotangents)


class HeadPass(nn.Cell):
    """Forward of a head and the gradients of its parameters and of its input maps, for fixed gradients of its outputs.

    Args:
        head: maps, noise -> dict of outputs.
        levels: L.
        places: (key, index) of the outputs that have a gradient, index -1 for one that is no tuple. All others are
            left out of the graph, as in a training step whose loss does not read them.
    """

    def __init__(self, head: nn.Cell, levels: int, places: Sequence[tuple[str, int]]) -> None:
        super().__init__(auto_prefix=False)
        self.head, self.levels = head, levels
        self.keys, self.indices = tuple(key for key, _ in places), tuple(index for _, index in places)
        maps = tuple(range(1, levels + 1))
        self.value_and_grad = ops.value_and_grad(self.forward, maps, ParameterTuple(head.trainable_params()))
        self.set_train()

    def forward(self, noise, *tensors):
        outputs = self.head(tensors[: self.levels], noise)
        used = ()
        for i in range(len(self.keys)):
            output = outputs[self.keys[i]]
            used += (output if self.indices[i] < 0 else output[self.indices[i]],)
        return inner_product(used, tensors[self.levels :])

    def construct(self, noise, *tensors):
        """noise (B, n), L maps, cotangents in the order of places -> (scalar, (gradients of maps, of parameters))."""
        return self.value_and_grad(noise, *tensors)


class LossPass(nn.Cell):
    """Forward of a loss and the gradients of everything it is given to judge.

    Args:
        loss: outputs, batch, counts -> tuple of terms.
        places: (key, index) of the outputs, in the order in which `construct` gets them; see `flatten_outputs`.
        empty: keys of outputs that are empty tuples.
        columns: names of the batch's arrays, in the order in which `construct` gets them.
    """

    def __init__(
        self, loss: nn.Cell, places: Sequence[tuple[str, int]], empty: Sequence[str], columns: Sequence[str]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.columns = loss, tuple(columns)
        self.keys = (*dict.fromkeys(key for key, _ in places), *empty)
        self.lengths = tuple(sum(i >= 0 for name, i in places if name == key) for key in self.keys)
        self.single = tuple((key, -1) in places for key in self.keys)
        first = 1 + len(self.columns)
        self.value_and_grad = ops.value_and_grad(self.forward, tuple(range(first, first + len(places))), None)
        self.set_train()

    def forward(self, counts, *tensors):
        batch = {key: tensors[i] for i, key in enumerate(self.columns)}
        at = len(self.columns)
        values = ()
        for i in range(len(self.keys)):
            if self.single[i]:
                values += (tensors[at],)
                at += 1
            else:
                values += (tensors[at : at + self.lengths[i]],)
                at += self.lengths[i]
        # Not dict(zip(...)): its entries get gradients of zero, without an error.
        terms = self.loss({key: values[i] for i, key in enumerate(self.keys)}, batch, counts)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def construct(self, counts, *tensors):
        """counts (3,), the batch's columns, the outputs -> (total loss, gradients of the outputs)."""
        return self.value_and_grad(counts, *tensors)


def inner_product(maps, cotangents):
    """Sum of map * cotangent over all maps, as matrix products: reductions run on one thread on CPU."""
    total = ops.zeros((1, 1), ms.float32)
    for i in range(len(cotangents)):
        total = total + ops.matmul(maps[i].astype(ms.float32).reshape(1, -1), cotangents[i].reshape(-1, 1))
    return total.sum()


def flatten_outputs(outputs: Mapping) -> tuple[list[tuple[str, int]], list[Tensor], list[str]]:
    """A head's dict of tensors and tuples of tensors -> places (key, index or -1), tensors, keys of empty tuples."""
    places, tensors, empty = [], [], []
    for key, value in outputs.items():
        if not isinstance(value, tuple | list):
            places.append((key, -1))
            tensors.append(value)
            continue
        places += [(key, i) for i in range(len(value))]
        tensors += list(value)
        empty += [] if value else [key]
    return places, tensors, empty


def training_parts(
    network: nn.Cell, loss: nn.Cell, noise: np.ndarray, counts: np.ndarray, batch: Mapping[str, np.ndarray],
    columns: Sequence[str],
) -> dict[str, Callable[[], object]]:  # fmt: skip
    """Calls that run forward and backward of `backbone`, `head` and `loss` once, each a graph of its own.

    The head gets normal maps, the loss the head's outputs for them; their gradients are the loss's own. So an output
    that the loss does not read costs nothing, as in training. noise (B, n), counts (3,) of the batch.
    Raises RuntimeError where the loss has no gradient at all.
    """
    backbone, head, split = network.backbone, network.head, network.backbone_columns
    image, *maps = draw_inputs(network, batch["image"].shape)
    head_noise, backbone_noise = Tensor(noise[:, split:].copy()), Tensor(noise[:, :split].copy())
    places, outputs, empty = flatten_outputs(HeadForward(head, train=True)(head_noise, *maps))
    loss_pass = LossPass(loss, places, empty, columns)
    loss_inputs = [Tensor(counts), *[Tensor(np.ascontiguousarray(batch[name])) for name in columns], *outputs]
    gradients = loss_pass(*loss_inputs)[1]
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    used = [i for i, gradient in enumerate(gradients) if np.any(gradient.asnumpy())]
    if not used:
        raise RuntimeError("the loss has no gradient for any output of the head, so nothing can be timed")
    head_pass = HeadPass(head, len(maps), [places[i] for i in used])
    head_inputs = [head_noise, *maps, *[gradients[i] for i in used]]
    backbone_pass = BackbonePass(backbone)
    return {
        "backbone": lambda: backbone_pass(image, backbone_noise, *maps)[0].asnumpy(),
        "head": lambda: head_pass(*head_inputs)[0].asnumpy(),
        "loss": lambda: loss_pass(*loss_inputs)[0].asnumpy(),
    }


def inference_parts(network: nn.Cell, image_size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """Calls that run the forward of `backbone` and `head` once on one image, each a graph of its own."""
    image, *maps = draw_inputs(network, (1, 3, *image_size))
    backbone, head = network.backbone.set_train(False), HeadForward(network.head, "logits")
    return {
        "backbone": lambda: backbone(image)[-1].asnumpy(),
        "head": lambda: head(None, *maps).asnumpy(),
    }


def draw_inputs(network: nn.Cell, image_shape: tuple[int, ...]) -> list[Tensor]:
    """Normal values for a normalised image (B, 3, H, W) and for the maps that the backbone makes of it."""
    rng = np.random.default_rng(0)
    levels = zip(network.backbone.channels, network.backbone.grids, strict=True)
    shapes = [image_shape, *[(image_shape[0], channels, *grid) for channels, grid in levels]]
    return [Tensor(rng.standard_normal(shape, np.float32)) for shape in shapes]
