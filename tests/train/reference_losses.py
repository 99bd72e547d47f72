"""The losses as loops over rows, in float64 NumPy, straight from the papers' formulas.

Texts are lists of arrays (rows, d), one a column. Nothing here is shared with the package.
"""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosine(a: Array, b: Array) -> float:
    lengths = sqrt(float(a @ a)) * sqrt(float(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


def info_nce(
    anchors: Array,
    positives: list[Array],
    negatives: list[Array],
    temperature: float,
    use: str = "batch",
    margin: float | None = None,
    hardness: float = 0.0,
    focal: float = 0.0,
    classes: list[int] | None = None,
) -> list[float]:
    """The loss of every row."""
    rows = range(len(anchors))
    losses = []
    for i in rows:
        passes = []
        for positive in positives:
            best = cosine(anchors[i], positive[i])
            terms = []
            for j in rows:
                others = use == "batch" or (
                    use == "class" and classes is not None and classes[i] != classes[j]
                )
                if j != i and others:
                    terms.append((cosine(anchors[i], positive[j]), 1.0))
                for negative in negatives:
                    s = cosine(anchors[i], negative[j])
                    if j == i:
                        terms.append((s, exp(hardness * s)))
                    elif use in ("batch", "hard"):
                        terms.append((s, 1.0))
            if margin is not None:
                terms = [(s, weight) for s, weight in terms if not s > best + margin]
            against = sum(weight * exp(s / temperature) for s, weight in terms)
            p = exp(best / temperature) / (exp(best / temperature) + against)
            passes.append((1 - p) ** focal * -log(p) if focal else -log(p))
        losses.append(sum(passes) / len(passes))
    return losses


def mixed(negatives: list[Array], first: Array, second: Array, share: Array) -> list[Array]:
    """One column a draw: first, second and share are (mixed, rows)."""
    columns = []
    for m in range(len(first)):
        column = []
        for i in range(len(negatives[0])):
            a = negatives[int(first[m, i])][i]
            b = negatives[int(second[m, i])][i]
            a, b = a / sqrt(float(a @ a)), b / sqrt(float(b @ b))
            between = share[m, i] * a + (1 - share[m, i]) * b
            column.append(between / sqrt(float(between @ between)))
        columns.append(np.array(column))
    return columns


def pearson(x: list[float], y: list[float]) -> float:
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / n
    variance_x = sum((a - mean_x) ** 2 for a in x) / n
    variance_y = sum((b - mean_y) ** 2 for b in y) / n
    return 1 - covariance / (sqrt(variance_x) * sqrt(variance_y))


def softmax(values: list[float]) -> list[float]:
    terms = [exp(value - max(values)) for value in values]
    return [term / sum(terms) for term in terms]


def rank_kl(x: list[float], y: list[float], temperature: float) -> float:
    n = len(x)
    order = sorted(range(n), key=lambda i: -y[i])
    ranks = [0.0] * n
    for i in range(n):
        same = [place for place in range(n) if y[order[place]] == y[i]]
        ranks[i] = sum(same) / len(same)
    wanted = softmax([(n - 1 - r) / (n - 1) / temperature for r in ranks])
    given = softmax([a / temperature for a in x])
    return sum(w * (log(w) - log(g)) for w, g in zip(wanted, given, strict=True))


def pro(x: list[float], y: list[float], temperature: float) -> float:
    n = len(x)
    order = sorted(range(n), key=lambda i: -y[i])
    losses = []
    for place, k in enumerate(order):
        tail = [i for i in order[place + 1 :] if y[k] > y[i]]
        if not tail:
            continue
        most = max(y[k] - y[i] for i in tail)
        head = exp(most * x[k] / temperature)
        rest = sum(exp((y[k] - y[i]) * x[i] / temperature) for i in tail)
        losses.append(-log(head / (head + rest)))
    return sum(losses) / len(losses)


def codiemb_sts(
    first: Array, second: Array, y: list[float], pearson_: float, rank_kl_: float, pro_: float
) -> float:
    x = [cosine(a, b) for a, b in zip(first, second, strict=True)]
    return (
        pearson_ * pearson(x, y) + rank_kl_ * rank_kl(x, y, 0.05) / len(x) + pro_ * pro(x, y, 0.05)
    )


def middle(first: Array, second: Array, y: list[float], threshold: float, t: float) -> float:
    losses = []
    for i in range(len(y)):
        if y[i] >= threshold:
            terms = [exp(cosine(first[i], other) / t) for other in second]
            losses.append(-log(terms[i] / sum(terms)))
    return sum(losses) / len(losses) if losses else 0.0


def cosent(x: list[float], y: list[float], temperature: float) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if y[i] > y[j]]
    return log(1 + sum(exp((x[j] - x[i]) / temperature) for i, j in pairs))
