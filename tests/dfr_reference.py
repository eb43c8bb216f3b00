"""The pairwise energy, the consistency loss and the labels of cells in float64, pair by pair, from the DFR spec.

Letters: K classes, h x w grid, F features, D embedding width. One image at a time.
"""

import numpy as np


def kernel(first, second, colours, embedding, scales, beta) -> float:
    """K of two places (y, x): sum over scales (weight, xy in cells, rgb, deep) of products of Gaussians."""
    total = 0.0
    for weight, xy, rgb, deep in scales:
        exponent = 0.0
        if xy:
            exponent += ((first[0] - second[0]) ** 2 + (first[1] - second[1]) ** 2) / (2 * xy**2)
        if rgb:
            exponent += ((colours[:, first[0], first[1]] - colours[:, second[0], second[1]]) ** 2).sum() / (2 * rgb**2)
        if deep:
            apart = embedding[:, first[0], first[1]] - embedding[:, second[0], second[1]]
            exponent += beta * (apart**2).sum() / (2 * deep**2)
        total += weight * np.exp(-exponent)
    return total


def energy(shares, colours, embedding, gate, valid, scales, beta, norm="mass", offsets=None):
    """Value and gradient (K, h, w) of one image; offsets: pairs (dy, dx) that count, None for all."""
    _, h, w = shares.shape
    places = [(y, x) for y in range(h) for x in range(w)]
    mass, value, gradient = 0.0, 0.0, np.zeros(shares.shape)
    for i in places:
        for j in places:
            step = (j[0] - i[0], j[1] - i[1])
            if i == j or (offsets is not None and step not in offsets and (-step[0], -step[1]) not in offsets):
                continue
            pair = 0.5 * (gate[i] * valid[j] + gate[j] * valid[i]) * kernel(i, j, colours, embedding, scales, beta)
            mass += pair
            value += pair * (1.0 - shares[:, i[0], i[1]] @ shares[:, j[0], j[1]])
            gradient[:, i[0], i[1]] -= 2 * pair * shares[:, j[0], j[1]]
    divisor = {"mass": max(mass, 1e-6), "pixel": max(1.0, valid.sum()), "sum": 1.0}[norm]
    return value / divisor, gradient / divisor


def softmax(logits):
    """Over the first axis."""
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def affinity(a, b, kind, sigma) -> float:
    """Of two embeddings (D,)."""
    if kind == "gaussian":
        return np.exp(-((a - b) ** 2).sum() / (2 * sigma**2))
    return np.exp(-np.abs(a - b).mean()) if kind == "l1mean" else 1 / (1 + np.exp(-a @ b))


def consistency(embeddings, labels, scribbled, radius, kind="gaussian", sigma=0.5, background=0) -> float:
    """The loss of a batch: embeddings (B, D, h, w), labels (B, h, w) with 255, scribbled (B, h, w) 0 or 1."""
    sets = {"bg": [], "fg": [], "neg": []}
    for embedding, label, own in zip(embeddings, labels, scribbled, strict=True):
        places = [(y, x) for y in range(label.shape[0]) for x in range(label.shape[1]) if label[y, x] != 255]
        for i in places:
            for j in places:
                near = max(abs(i[0] - j[0]), abs(i[1] - j[1])) <= radius
                if i == j or not (near or (own[i] and own[j])):
                    continue
                a = affinity(embedding[:, i[0], i[1]], embedding[:, j[0], j[1]], kind, sigma)
                if label[i] != label[j]:
                    sets["neg"].append(-np.log(1 + 1e-5 - a))
                else:
                    sets["bg" if label[i] == background else "fg"].append(-np.log(a + 1e-5))
    means = {name: sum(costs) / max(1, len(costs)) for name, costs in sets.items()}
    if background is None:
        return means["fg"] / 2 + means["neg"] / 2
    return means["bg"] / 4 + means["fg"] / 4 + means["neg"] / 2


def pool(x, stride):
    """Means of the cells of x (..., H, W)."""
    *front, height, width = x.shape
    return x.reshape(*front, height // stride, stride, width // stride, stride).mean((-3, -1))


def cell_labels(label, stride):
    """(h, w): the one class in each cell of (H, W), else 255."""
    h, w = label.shape[0] // stride, label.shape[1] // stride
    cells = np.full((h, w), 255)
    for y in range(h):
        for x in range(w):
            found = set(label[y * stride : (y + 1) * stride, x * stride : (x + 1) * stride].ravel().tolist()) - {255}
            if len(found) == 1:
                cells[y, x] = found.pop()
    return cells


def differences(function, x, places, step=1e-5):
    """Central differences of a scalar function at some places of an array."""
    slopes = []
    for place in places:
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        slopes.append((function(up) - function(down)) / (2 * step))
    return np.array(slopes)
