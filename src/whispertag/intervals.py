"""Confidence intervals by the bootstrap: what is resampled are clips or utterances, the independent units."""

import numpy as np

RESAMPLES = 2000


def bootstrap(
    numerator_N: np.ndarray, denominator_N: np.ndarray | None = None, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of Σ numerator / Σ denominator (default: the mean) over N units."""
    n = len(numerator_N)
    denominator_N = np.ones(n) if denominator_N is None else denominator_N
    rng = np.random.default_rng(seed)
    # How often each unit is drawn: the sums follow without copying the units
    times_RN = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    ratios_R = (times_RN @ numerator_N) / np.maximum(times_RN @ denominator_N, 1e-12)
    low, high = np.quantile(ratios_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def student(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean over a few independent runs."""
    from scipy.stats import t

    half = t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)
