"""How pass@N grows with the number of tries at each temperature.

Part of `bonaware.estimators`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats, as_probability

__all__ = ["CoScaling", "fit_coscaling"]


@dataclass(frozen=True)
class CoScaling:
    """pass@N(T) = exp(a(T) N**b(T)), fitted by `fit_coscaling`.

    Attributes
    ----------
    temperatures : float64, shape [T]
        Rising.
    a, b : float64, shape [T]
        Of each temperature; a < 0.
    residual : float64, shape [T]
        Root mean square of log pass@N minus its fit, over the points that were used.
    left_out : int64, shape [T]
        Points that were 0 or 1 and therefore not used.
    """

    temperatures: Floats
    a: Floats
    b: Floats
    residual: Floats
    left_out: NDArray[np.int64]

    def predict(self, n: ArrayLike, temperature: ArrayLike) -> Floats:
        """pass@n at a temperature.

        Parameters
        ----------
        n : float, any shape
            Tries, >= 1; beyond the fitted range too.
        temperature : float, broadcast against n
            Within the fitted temperatures; log(-a) and b are interpolated linearly.

        Returns
        -------
        float64, broadcast shape
            A probability in (0, 1).

        Raises
        ------
        ValueError
            n < 1, or a temperature outside the fitted range.
        """
        n, temperature = np.asarray(n, np.float64), np.asarray(temperature, np.float64)
        if not (n >= 1).all():
            raise ValueError(f"n must be >= 1, got {n.min()}")
        low, high = self.temperatures[[0, -1]]
        if not ((low <= temperature) & (temperature <= high)).all():
            raise ValueError(f"temperature must be in [{low}, {high}], got {temperature}")
        size = np.interp(temperature, self.temperatures, np.log(-self.a))
        power = np.interp(temperature, self.temperatures, self.b)
        return np.exp(-np.exp(size + power * np.log(n)))

    def best_temperature(self, n: ArrayLike) -> Floats:
        """The temperature with the highest predicted pass@n.

        Parameters
        ----------
        n : float, any shape
            Tries, >= 1.

        Returns
        -------
        float64, shape of n
            One of the fitted temperatures: between two of them log(-log pass@n) is linear
            in T, so the best is always at an end. The lowest of equals.

        Raises
        ------
        ValueError
            n < 1.
        """
        predicted = self.predict(np.asarray(n)[..., None], self.temperatures)
        return self.temperatures[predicted.argmax(-1)]


def fit_coscaling(temperatures: ArrayLike, ks: ArrayLike, pass_at: ArrayLike) -> CoScaling:
    """Fit of pass@N(T) = exp(a(T) N**b(T)), to predict more tries and the best temperature.

    Parameters
    ----------
    temperatures : float, shape [T]
        Rising.
    ks : int, shape [K]
        Numbers of tries, all different, >= 1.
    pass_at : float, shape [T, K] or [P, T, K]
        pass@k in [0, 1]; with a prompt axis its mean over prompts is fitted, because
        leaving out single prompts at 0 or 1 would bias the curve.

    Returns
    -------
    CoScaling
        With a and b of each temperature. Points at 0 or 1 have no finite log(-log) and
        are left out and counted.

    Raises
    ------
    ValueError
        Shapes do not fit, temperatures do not rise, a value is outside [0, 1], or a
        temperature has fewer than 2 points strictly between 0 and 1.

    Notes
    -----
    Least squares on log pass@N, by Gauss-Newton from the straight line of log(-log
    pass@N) over log N.
    Source: Chow et al. 2024, arXiv:2412.15287 (co-scaling of N and T).

    Examples
    --------
    >>> ks = np.array([1, 2, 4, 8])
    >>> cold, hot = np.exp(-0.9 * ks**-0.2), np.exp(-1.2 * ks**-0.5)
    >>> fit = fit_coscaling([0.5, 1.0], ks, [cold, hot])
    >>> fit.a.round(6), fit.b.round(6)
    (array([-0.9, -1.2]), array([-0.2, -0.5]))
    >>> fit.best_temperature([1, 64])
    array([0.5, 1. ])
    """
    temperatures = np.array(temperatures, np.float64)
    tries = np.array(ks, np.float64)
    passed = as_probability(pass_at, "pass_at")
    if passed.ndim == 3:
        passed = passed.mean(0)
    if (
        tries.ndim != 1
        or temperatures.ndim != 1
        or passed.shape != temperatures.shape + tries.shape
    ):
        raise ValueError(
            f"need temperatures [T], ks [K] and pass_at [T, K] or [P, T, K], got "
            f"{temperatures.shape}, {tries.shape} and {np.shape(pass_at)}"
        )
    if not (np.diff(temperatures) > 0).all():
        raise ValueError(f"temperatures must rise, got {temperatures}")
    if not (tries >= 1).all() or len(np.unique(tries)) != len(tries):
        raise ValueError(f"ks must be >= 1 and all different, got {tries}")
    used = (passed > 0) & (passed < 1)
    if (used.sum(1) < 2).any():
        at = int(np.argmax(used.sum(1) < 2))
        raise ValueError(
            f"need at least 2 values of pass_at between 0 and 1 per temperature, but "
            f"temperature {temperatures[at]} has {used[at].sum()} of {len(tries)}"
        )
    fits = [
        _fit_power(np.log(tries[on]), np.log(row[on])) for row, on in zip(passed, used, strict=True)
    ]
    a, b, residual = np.array(fits).reshape(-1, 3).T
    return CoScaling(temperatures, a, b, residual, (~used).sum(1))


def _fit_power(log_n: Floats, log_pass: Floats) -> tuple[float, float, float]:
    """a, b and the root mean square error of log_pass = a exp(b log_n)."""
    design = np.stack([np.ones_like(log_n), log_n], axis=1)

    def curve(at: Floats) -> Floats:
        return -np.exp(design @ at)

    def error(at: Floats) -> float:
        return float(np.sqrt(np.mean((log_pass - curve(at)) ** 2)))

    at = np.linalg.lstsq(design, np.log(-log_pass), rcond=None)[0]  # log(-a), b
    for _ in range(100):
        fitted = curve(at)
        step = np.linalg.lstsq(design * fitted[:, None], log_pass - fitted, rcond=None)[0]
        while error(at + step) > error(at) and np.abs(step).max() > 1e-12:
            step = step / 2
        at = at + step
        if np.abs(step).max() <= 1e-12:
            break
    return -math.exp(at[0]), float(at[1]), error(at)
