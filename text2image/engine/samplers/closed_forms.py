"""What diffusers' schedulers ask of SciPy, computed without it: it would take 140 MB, and every start a second more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Two points integrate polynomials up to the third degree exactly; those of LMS have no higher one.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(2)
_TINY = 1e-300
_PRECISION = 1e-15
_MOST_TERMS = 200


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Where the distribution function of Beta(a, b) reaches a probability: `scipy.stats.beta.ppf`, by bisection."""
    if not 0 < probability < 1:
        return min(1.0, max(0.0, probability))
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if _beta_distribution(middle, a, b) < probability:
            low = middle
        else:
            high = middle


def _beta_distribution(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_distribution(1 - x, b, a)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log1p(-x)) / a
    # Lentz's method for 1 + d1 / (1 + d2 / (1 + ...)).
    value, c, d = 1.0, 1.0, 0.0
    for term in range(1, _MOST_TERMS):
        m = term // 2
        above = -(a + m) * (a + b + m) if term % 2 else m * (b - m)
        ratio = above * x / ((a + term - 1) * (a + term))
        d = 1 / (1 + ratio * d or _TINY)
        c = 1 + ratio / c or _TINY
        value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return front / value


def beta_sigmas(
    scheduler: Any, in_sigmas: Any, num_inference_steps: int, alpha: float = 0.6, beta: float = 0.6
) -> np.ndarray:
    """Sigmas (steps,) spaced by a beta distribution: what diffusers' `_convert_to_beta` gives.

    From "Beta Sampling is All You Need" (Lee et al. 2024).
    """
    config = scheduler.config
    lowest, highest = config.get("sigma_min"), config.get("sigma_max")
    lowest = float(in_sigmas[-1]) if lowest is None else lowest
    highest = float(in_sigmas[0]) if highest is None else highest
    spread = [beta_quantile(p, alpha, beta) for p in 1 - np.linspace(0, 1, num_inference_steps)]
    return lowest + np.array(spread) * (highest - lowest)


def lms_coefficient(scheduler: Any, order: int, t: int, current_order: int) -> float:
    """The weight of a derivative in step number `t`: what diffusers' `LMSDiscreteScheduler.get_lms_coefficient` gives.

    The integral of a Lagrange polynomial from one sigma to the next (Karras et al. 2022, k-diffusion's
    `linear_multistep_coeff`).
    """
    sigmas = scheduler.sigmas.double().numpy()
    begin, end = sigmas[t], sigmas[t + 1]
    at = (end + begin) / 2 + (end - begin) / 2 * _POINTS
    others = [k for k in range(order) if k != current_order]
    factors = [(at - sigmas[t - k]) / (sigmas[t - current_order] - sigmas[t - k]) for k in others]
    return float((end - begin) / 2 * (_WEIGHTS * np.prod(factors, axis=0)).sum())
