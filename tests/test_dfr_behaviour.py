"""What the regulariser is for: features separate what colour cannot; and round-off (DFR spec, sections 11.4 and 12)."""

import numpy as np
import pytest

from tests.dfr_reference import softmax
from tests.test_dfr_energy import ALWAYS, APART, Case, float32


def test_round_off_makes_no_pair_more_than_alike():
    """Two like cells of opposite shares, far from the mean: their pair counts 1 in both directions, never more."""
    rng = np.random.default_rng(0)
    embedding = np.full((32, 5, 1, 3), 60.0)
    embedding[..., :2] = rng.normal(size=(32, 5, 1, 1)) * 20
    shares = np.tile(np.array(APART).T.reshape(1, 2, 1, 3), (32, 1, 1, 1))
    case = Case(only={**ALWAYS, "kernels": ((1.0, 0.0, 0.0, 0.5),), "normalise": False, "norm": "sum"})
    colours, inside = np.zeros((32, 3, 1, 3)), np.ones((32, 1, 1, 3))
    values = [
        case("only", *float32(shares, colours, embedding, inside), beta=1.0, weights=weights)[0]
        for weights in np.eye(32, dtype=np.float32)
    ]
    assert max(values) <= 2.0 and max(values) == pytest.approx(2.0, abs=1e-3)


SIDE, SEEDS, STEPS, RATE = 16, 5, 300, 20.0


def test_what_colour_cannot_separate_the_embedding_does():
    """Free logits, two labelled cells a class: halves of two greys, or of one with other embeddings (spec, T1-T4)."""
    regulariser = {**ALWAYS, "kernels": ((1.0, 6.0, 0.0588, 0.5),)}
    case, right = Case(only=regulariser), np.arange(SIDE) >= SIDE // 2
    labels = np.broadcast_to(right, (SIDE, SIDE)).astype(int)
    greys = np.where(right, 0.8, 0.2)[None, None, :].repeat(3, 0).repeat(SIDE, 1)
    flat, deep = np.full((3, SIDE, SIDE), 0.5), np.stack([~right, right]).astype(float)[:, None].repeat(SIDE, 1)
    none = np.zeros_like(deep)  # as beta = 0
    kinds = [(greys, none, 0.0), (greys, none, 1.0), (flat, none, 1.0), (flat, deep, 1.0)]
    colours = np.stack([kind[0] for kind in kinds for _ in range(SEEDS)]).astype(np.float32)
    embedding = np.stack([kind[1] for kind in kinds for _ in range(SEEDS)]).astype(np.float32)
    weights = np.array([kind[2] for kind in kinds for _ in range(SEEDS)], np.float32)
    seeds = [np.random.default_rng(s).normal(scale=0.01, size=(2, SIDE, SIDE)) for s in range(SEEDS)]
    logits = np.stack(seeds * len(kinds))
    true = np.stack([labels == 0, labels == 1]).astype(float)
    drawn = np.zeros((SIDE, SIDE))
    drawn[7:9, [2, 13]] = 1.0
    inside = np.ones((len(logits), 1, SIDE, SIDE), np.float32)
    for _ in range(STEPS):
        shares = softmax(logits.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)
        slope = case("only", *float32(shares, colours, embedding), inside, beta=1.0, weights=weights)[1][0]
        through = shares * (slope - (slope * shares).sum(1, keepdims=True))
        logits -= RATE * (through + drawn * (shares - true) / drawn.sum())
    # Embeddings apart are nothing before beta rises: third and fourth kind have equal gradients for equal shares.
    shares[-SEEDS:] = shares[-2 * SEEDS : -SEEDS]
    slope = case("only", *float32(shares, colours, embedding), inside, beta=0.0, weights=weights)[1][0]
    np.testing.assert_array_equal(slope[-SEEDS:], slope[-2 * SEEDS : -SEEDS])
    slope = case("only", *float32(shares, colours, embedding), inside, beta=1.0, weights=weights)[1][0]
    assert np.abs(slope[-SEEDS:] - slope[-2 * SEEDS : -SEEDS]).max() > 0.0
    accuracy = (logits.argmax(1) == labels).mean((1, 2)).reshape(len(kinds), SEEDS)
    assert (np.abs(accuracy[0] - 0.5) < 0.1).all()
    assert (accuracy[1] == 1.0).all() and (accuracy[3] == 1.0).all()
    assert accuracy[2].max() < 0.95
