"""Worker that runs the PyTorch twin: eager, compiled, or in bfloat16 autocast.

Letters: B images, K classes, n noise columns, H x W image.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.torch_twin.ecenet import Twin, create_twin, resize
from benchmarks.torch_twin.loss import TERMS, ClassMaskLoss, pairs_of
from benchmarks.torch_twin.weights import load_weights
from benchmarks.workers.serving import Call, Worker, serve

KINDS = ("eager", "compile", "bfloat16")
NO_DECAY = ("pos_embed", "relative_position_bias_table")
PREFIX = "weight/"


class Weights(dict):
    """Names of inputs.npz's weights; an array is read when it is asked for, so that only one is held at a time."""

    def __init__(self, inputs) -> None:
        super().__init__((name.removeprefix(PREFIX), None) for name in inputs.files if name.startswith(PREFIX))
        self.inputs = inputs

    def __getitem__(self, name: str) -> np.ndarray:
        return self.inputs[PREFIX + name]


class Forward(nn.Module):
    """Image and noise -> logits; `autocast`: in bfloat16."""

    def __init__(self, network: Twin, autocast: bool) -> None:
        super().__init__()
        self.network, self.autocast = network, autocast

    def forward(self, image: Tensor, noise: Tensor | None = None) -> dict:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.network(image, noise)


class Training(nn.Module):
    """Forward and loss of a training step -> (terms (4,), logits). The loss is in float32."""

    def __init__(self, forward: Forward, loss: nn.Module) -> None:
        super().__init__()
        self.network, self.loss = forward, loss

    def forward(self, image: Tensor, noise: Tensor, label: Tensor, pairs: tuple, counts: Tensor) -> tuple:
        outputs = self.network(image, noise)
        return self.loss(outputs, label, pairs, counts), outputs["logits"]


class Served(nn.Module):
    """RGB image (H, W, 3) uint8 -> label map (H, W) uint8 and the network's logits."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.network = forward

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(picture.permute(2, 0, 1).unsqueeze(0))["logits"]
        return resize(logits, picture.shape[:2]).argmax(1).to(torch.uint8)[0], logits


def parameter_groups(network: Twin, settings: dict) -> list[dict]:
    """Groups by weight decay (none for norms, position embeddings and bias tables) and by multiplier of the rate."""
    plain = (nn.LayerNorm, nn.BatchNorm2d)
    norms = {id(p) for module in network.modules() if isinstance(module, plain) for p in module.parameters()}
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in network.named_parameters():
        decay = 0.0 if id(parameter) in norms or name.endswith(NO_DECAY) else settings["weight_decay"]
        multiplier = settings["head_lr_multiplier"] if name.startswith("head.") else 1.0
        groups.setdefault((decay, multiplier), []).append(parameter)
    return [{"params": p, "weight_decay": key[0], "multiplier": key[1]} for key, p in groups.items()]


def create_step(row: dict, network: Forward, batch: dict, kind: str) -> Call:
    """One optimiser step on the batch: rate -> terms; for rate 0 also the gradient norm and the logits."""
    settings = row["optimizer"]
    if settings["name"] != "adamw" or row["loss"] != {"name": "class_mask"}:
        raise ValueError(f"the twin trains with adamw and the default class_mask loss, not {settings}, {row['loss']}")
    training = Training(network, ClassMaskLoss()).train()
    graph = torch.compile(training) if kind == "compile" else training
    parameters = list(training.parameters())
    groups = parameter_groups(network.network, settings)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=tuple(settings["betas"]), eps=settings["epsilon"], fused=True)

    def step(rate: float) -> dict[str, object]:
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        pairs = pairs_of(tensors["present"])
        for group in optimizer.param_groups:
            group["lr"] = rate * group["multiplier"]
        terms, logits = graph(tensors["image"], tensors["noise"], tensors["label"], pairs, tensors["counts"])
        optimizer.zero_grad(set_to_none=True)
        terms.sum().backward()
        outputs = dict(zip(TERMS, terms.tolist(), strict=True))
        if rate == 0.0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            outputs |= {"norm": float(norm), "logits": logits.detach().float().numpy()}
        if settings["clip_norm"] > 0.0:
            torch.nn.utils.clip_grad_norm_(parameters, settings["clip_norm"])
        optimizer.step()
        return outputs

    return step


def prepare(kind: str, row: dict, folder: Path) -> Call:
    """The call of a row: a training step, the forward of a batch, or labels of one image."""
    with np.load(folder / "inputs.npz") as inputs:
        twin = create_twin(row["model"], row["classes"], tuple(row["size"]))
        load_weights(twin, Weights(inputs))
        batch = {name: inputs[f"batch/{name}"] for name in ("image", "label", "present")}
        batch |= {"noise": inputs["noise"], "counts": inputs["counts"]}
        picture = inputs["picture"]
    network = Forward(twin.to(memory_format=torch.channels_last), kind == "bfloat16")
    if row["mode"] == "train":
        return create_step(row, network, batch, kind)
    module = (Served(network) if row["mode"] == "infer" else network).eval()
    graph = torch.compile(module) if kind == "compile" else module
    names = ("labels", "logits")

    def infer(rate: float) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            if row["mode"] == "infer":
                labels, logits = graph(torch.from_numpy(picture))
                return dict(zip(names, (labels.numpy(), logits.float().numpy()), strict=True))
            return {"logits": graph(torch.from_numpy(batch["image"]))["logits"].float().numpy()}

    return infer


def multiply(rows: int, inner: int, columns: int) -> Callable[[], object]:
    """A call that multiplies once and waits."""
    x, w = torch.randn(rows, inner), torch.randn(columns, inner)
    return lambda: nn.functional.linear(x, w)


def main() -> None:
    """Reads which kind of PyTorch this is and starts answering."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    kind = parser.parse_args().kind
    versions = {"torch": torch.__version__, "torch_threads": str(torch.get_num_threads())}
    serve(Worker(lambda row, folder: prepare(kind, row, folder), multiply, versions))


if __name__ == "__main__":
    main()
