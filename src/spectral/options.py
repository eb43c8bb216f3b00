"""What eigensegments depend on (spec sazs, sections 6 and 14)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Features = Literal["dino_k", "backbone_k", "backbone_map", "color"]
SOLVERS = ("lanczos", "lobpcg", "dense", "shift_invert")
FEATURES = ("dino_k", "backbone_k", "backbone_map", "color")
HASH_DIGITS = 12


@dataclass(frozen=True)
class SpectralOptions:
    """Settings of the decomposition.

    features: keys of DINO's last block, keys of the backbone's, the backbone's finest map, or colours alone.
    patch: pixels of the image along a node of the graph. color_weight: factor of the colour graph; None: 0 with
    dino_k and 10 with any other features. normalise: the generalised problem with the degrees; else the plain
    Laplacian. threshold: negative cosines become 0. center: subtract the mean feature of the image first.
    num_eigenvectors: without the trivial one when skip_trivial. solver: the first one tried. link_weight: of the
    4-neighbour links that a disconnected graph gets.
    """

    features: Features = "dino_k"
    patch: int = 16
    color_weight: float | None = None
    normalise: bool = True
    threshold: bool = True
    center: bool = False
    num_eigenvectors: int = 5
    skip_trivial: bool = True
    solver: str = "lanczos"
    link_weight: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("features", FEATURES), ("solver", SOLVERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"spectral.{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("patch", "num_eigenvectors"):
            if getattr(self, name) < 1:
                raise ValueError(f"spectral.{name} is {getattr(self, name)}; it must be at least 1")
        if self.colours < 0 or self.link_weight <= 0:
            raise ValueError("spectral.color_weight must be at least 0 and spectral.link_weight above 0")
        if not self.threshold and (self.colours or not self.normalise or self.features == "color"):
            raise ValueError(
                "spectral.threshold=false is for features alone: it needs color_weight=0, normalise=true and other "
                "features than color"
            )

    @property
    def colours(self) -> float:
        """The factor of the colour graph."""
        if self.color_weight is not None:
            return self.color_weight
        return 0.0 if self.features == "dino_k" else 10.0

    @property
    def count(self) -> int:
        """Eigenvectors to compute, the trivial one among them."""
        return self.num_eigenvectors + self.skip_trivial

    def settings(self, network: Mapping[str, Any]) -> dict[str, Any]:
        """These options and the facts of the network that makes the features, as plain values: all that decides."""
        return {**asdict(self), "color_weight": self.colours, **network}

    def digest(self, network: Mapping[str, Any]) -> str:
        """First digits of the SHA-256 of `settings`: the name of a cache."""
        return hashlib.sha256(json.dumps(self.settings(network), sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]
