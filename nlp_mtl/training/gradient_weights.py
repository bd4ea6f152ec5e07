"""What each task's gradient counts in a step, as the papers of gradient methods define it.

All of them combine the tasks' gradients linearly, by weights that depend on nothing but the Gramian, the products of
each two gradients. Pure functions in float64: from the Gramian, [tasks, tasks], to weights, [tasks]. Where all
gradients are equal, weights add up to the number of tasks, as in a sum, but for ``conflict_averse_weights`` (1 + c
times that), and ``bargained_weights`` and ``fair_weights``, whose scale is their own. No gradient is zero.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

Array = NDArray[np.float64]

_LEAST = 1e-12
"""Of the largest eigenvalue: what is less is taken for rounding."""


_NEAREST = 1 - 1e-6
"""The largest cosine: beyond, a turn towards it has no end."""


def projected_weights(gramian: Array, order: np.random.Generator) -> Array:
    """PCGrad (Yu et al. 2020, arXiv 2001.06782): each gradient without its part against others, in random order."""
    found = np.eye(len(gramian))
    for task, mine in enumerate(found):
        for other in order.permutation(len(gramian)):
            product = mine @ gramian[other]
            if other != task and product < 0:
                mine[other] -= product / gramian[other, other]
    weights: Array = found.sum(axis=0)
    return weights


def vaccinated_weights(gramian: Array, targets: Array, beta: float, order: np.random.Generator) -> tuple[Array, Array]:
    """GradVac (Wang et al. 2021, arXiv 2010.05874): gradients turned to each other until cosines are as on average.

    Args:
        targets: [tasks, tasks] the cosines' moving averages, 0 at first.
        beta: how much of a new cosine goes into its average.

    Returns:
        the weights and the new averages.
    """
    targets = targets.copy()
    norms = np.sqrt(np.diag(gramian))
    found = np.eye(len(gramian))
    for task, mine in enumerate(found):
        for other in order.permutation(len(gramian)):
            if other == task:
                continue
            norm = _length(mine, gramian)
            if norm == 0:
                continue
            cosine = np.clip(mine @ gramian[other] / (norm * norms[other]), -_NEAREST, _NEAREST)
            target = targets[task, other]
            if cosine < target:
                turn = target * np.sqrt(1 - cosine**2) - cosine * np.sqrt(1 - target**2)
                mine[other] += norm * turn / (norms[other] * np.sqrt(1 - target**2))
            targets[task, other] = (1 - beta) * target + beta * cosine
    weights: Array = found.sum(axis=0)
    return weights, targets


def shortest_weights(gramian: Array) -> Array:
    """MGDA (Désidéri 2012; Sener and Koltun 2018, arXiv 1810.04650): the shortest of the gradients' weighted means."""
    # The minimum over the simplex is where that of w G w / 2 - sum(w) over w >= 0 points.
    weights = _least_nonnegative(gramian, np.ones(len(gramian)))
    mean: Array = weights / weights.sum()
    return mean * len(gramian)


def conflict_averse_weights(gramian: Array, c: float) -> Array:
    """CAGrad (Liu et al. 2021, arXiv 2110.14048): what is best for the worst task, near the mean gradient.

    Within ``c`` of the mean's length. Not scaled by 1 / (1 + c^2), as some of its authors' experiments are: the
    optimizer takes no notice of scale.
    """
    count = len(gramian)
    mean = np.full(count, 1 / count)
    scale = np.trace(gramian) / count
    gramian = gramian / scale
    to_mean, length = gramian @ mean, _length(mean, gramian)

    def cost(weights: Array) -> tuple[float, Array]:
        products = gramian @ weights
        norm = max(_length(weights, gramian), _LEAST)
        return float(weights @ to_mean + c * length * norm), to_mean + c * length / norm * products

    simplex = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda weights: np.ones(count)}
    found = minimize(
        cost, mean, jac=True, bounds=[(0, 1)] * count, constraints=simplex, method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    ).x.clip(0)  # fmt: skip
    norm = _length(found, gramian)
    turned: Array = mean + (c * length / norm * found if norm > np.sqrt(_LEAST) else 0.0)
    return turned * count


def impartial_weights(gramian: Array) -> Array:
    """IMTL-G (Liu et al. 2021, ICLR): the sum has the same projection on each gradient's direction."""
    weights = np.linalg.pinv(gramian, hermitian=True) @ np.sqrt(np.diag(gramian))
    total = weights.sum()
    if abs(total) <= _LEAST * np.abs(weights).max():  # opposite gradients: there is no such direction
        return np.zeros(len(gramian))
    scaled: Array = weights / total * len(gramian)
    return scaled


def bargained_weights(gramian: Array) -> Array:
    """Nash-MTL (Navon et al. 2022, arXiv 2202.01017): the solution w of ``gramian @ w = 1 / w``."""
    return fair_weights(gramian, 1.0)


def fair_weights(gramian: Array, alpha: float) -> Array:
    """FairGrad (Ban and Ji 2024, arXiv 2402.15638): the solution w of ``gramian @ w = w ** (-1 / alpha)``.

    It is the minimum of a convex function, found by Newton's method with a line search.
    """
    # At length one the equation's numbers are moderate; the scale is put back at the end.
    scale = np.trace(gramian) / len(gramian)
    # Opposite gradients would have no end; so the weights stay below a hundred thousand.
    gramian, power = gramian / scale + 1e-10 * np.eye(len(gramian)), 1 / alpha

    def value(weights: Array) -> float:
        """w gramian w / 2 - sum of the integral of w^-power."""
        integrals = np.log(weights) if power == 1 else weights ** (1 - power) / (1 - power)
        return float(weights @ gramian @ weights / 2 - integrals.sum())

    weights = np.ones(len(gramian))
    for _ in range(500):
        # Slope and curvature where each weight is taken for one: so the smallest and the largest are found alike.
        slope = weights * (gramian @ weights) - weights ** (1 - power)
        if np.abs(slope).max() <= 1e-12 * max(np.abs(weights ** (1 - power)).max(), 1):
            break
        curvature = np.outer(weights, weights) * gramian + power * np.diag(weights ** (1 - power))
        step = np.linalg.solve(curvature, slope)
        length, least, fall = min(1.0, 0.95 / max(step.max(), 1e-300)), value(weights), float(slope @ step)
        if fall <= 1e-20 * max(abs(least), 1):  # as near as numbers come
            break
        while length > 1e-10 and value(weights * (1 - length * step)) > least - 0.1 * length * fall + 1e-14 * abs(
            least
        ):
            length /= 2
        weights = weights * (1 - length * step)
    found: Array = weights * scale ** (-1 / (1 + power))
    return found


def aligned_weights(gramian: Array) -> Array:
    """Aligned-MTL (Senushkin et al. 2023, arXiv 2305.19000): the gradients' singular values made equal to the least."""
    values, vectors = np.linalg.eigh(gramian)
    kept = values > values.max() * len(gramian) * np.finfo(np.float32).eps  # products are
    values, vectors = values[kept], vectors[:, kept]
    weights: Array = vectors @ (vectors.sum(axis=0) * np.sqrt(values.min() / values))
    return weights


def unconflicting_weights(gramian: Array) -> Array:
    """UPGrad (Quinton and Rey 2024, arXiv 2406.16232): the sum of gradients projected to where no task's loss rises."""
    found = np.eye(len(gramian))
    for task in range(len(gramian)):
        # The nearest v >= e_task: v = e_task + w, and w >= 0 minimises (e + w) G (e + w).
        found[task] += _least_nonnegative(gramian, -gramian[task])
    weights: Array = found.sum(axis=0)
    return weights


def _length(weights: Array, gramian: Array) -> float:
    """Of the gradients' sum by weights."""
    return math.sqrt(max(float(weights @ gramian @ weights), 0.0))


def _least_nonnegative(gramian: Array, linear: Array) -> Array:
    """The w >= 0 that minimises ``w @ gramian @ w / 2 - linear @ w``."""
    scale = np.trace(gramian) / len(gramian)
    values, vectors = np.linalg.eigh(gramian / scale)
    values = values.clip(_LEAST * values.max())  # gradients that depend on each other: the minimum may have no end
    root = np.sqrt(values)[:, None] * vectors.T
    weights: Array = nnls(root, (vectors.T @ linear) / scale / np.sqrt(values), maxiter=100 * len(gramian))[0]
    return weights
