"""What every loss shares: its inputs, their checks, rows of different lengths, the KL term.

A loss is a frozen dataclass derived from `Loss`. Its fields are its options, its class
attributes `needs` and `takes` name its inputs, and its method `estimate` computes value and
weights of a `Batch`, in which every row has the same number of samples.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware import _memory
from bonaware._arguments import Floats, as_floats, place
from bonaware._votes import as_mask

__all__ = ["Batch", "Loss", "empty", "has_gaps", "need_choice", "need_count", "need_nonnegative"]


OF_PROMPTS = ("fail", "log_normaliser")  # inputs of shape [P]
WHOLE = (*OF_PROMPTS, "ref_scores")  # inputs that a mask does not belong to


@dataclass(frozen=True, eq=False)
class Batch:
    """The checked inputs of one call; None for those that were not given.

    All rows have n samples; arrays are contiguous and, but for expert, of finite float64.
    """

    rewards: Floats  # [P, n]
    scores: Any = None  # [P, n]
    logp: Any = None  # [P, n], nats
    ref_logp: Any = None  # [P, n], nats
    ref_scores: Any = None  # [P, m], of samples of the reference
    old_logp: Any = None  # [P, n], nats
    lengths: Any = None  # [P, n], tokens, >= 1
    expert: Any = None  # bool [P, n]
    fail: Any = None  # [P], in [0, 1]
    win_rate: Any = None  # [P, n], in [0, 1]
    log_normaliser: Any = None  # [P], nats


class Loss:
    """Base class of the losses; they differ in their options and in `estimate`.

    Attributes
    ----------
    needs : tuple of str
        Inputs that must be given, besides rewards.
    takes : tuple of str
        Inputs that may be given.
    fewest : int
        Samples that every prompt must have, without the KL term.
    kernel_checks : tuple of str
        Inputs of which a C kernel refuses NaN and infinity, in rows without mask.
    kl : float
        Strength beta >= 0 of the KL term, a field of the losses that offer it. It adds
        ``beta * (d_i - mean of the other d) / n`` to the weights, with ``d = logp -
        ref_logp``: the unbiased gradient of ``beta * KL(policy || reference)``, whose
        estimate ``beta * mean of d`` is added to the value. Needs logp, ref_logp and two
        samples. Source: the score-function estimator of the KL divergence with the
        leave-one-out baseline of Kool et al. 2019.
    """

    needs: Any = ()
    takes: Any = ()
    kernel_checks: tuple[str, ...] = ()
    kl = 0.0

    def __post_init__(self) -> None:
        need_nonnegative(self.kl, "kl")

    @property
    def name(self) -> str:
        """Its file's name."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def required(self) -> tuple[str, ...]:
        """Inputs that a call cannot do without, besides rewards.

        Examples
        --------
        >>> from bonaware.losses import get
        >>> get("grpo")(kl=0.1).required
        ('lengths', 'logp', 'ref_logp')
        """
        return tuple(dict.fromkeys((*self.needs, *(("logp", "ref_logp") if self.kl else ()))))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that a call takes, those it needs first; rewards and mask always."""
        return tuple(dict.fromkeys(("rewards", *self.required, *self.takes, "mask")))

    @property
    def fewest(self) -> int:
        return 1

    @property
    def needed(self) -> int:
        """Samples that every prompt must have, also for the KL term."""
        return max(self.fewest, 2 if self.kl else 1)

    def check(self, batch: Batch, there: NDArray[np.bool_]) -> None:
        """Refuse what this loss alone cannot use; there [P, n]: where samples are."""

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        """Value [P] and weights [P, n] of rows that all have n samples, without KL term."""
        raise NotImplementedError

    def __call__(
        self,
        rewards: ArrayLike,
        scores: ArrayLike | None = None,
        logp: ArrayLike | None = None,
        ref_logp: ArrayLike | None = None,
        *,
        ref_scores: ArrayLike | None = None,
        old_logp: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        expert: ArrayLike | None = None,
        fail: ArrayLike | None = None,
        win_rate: ArrayLike | None = None,
        log_normaliser: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> tuple[Floats, Floats]:
        """Estimate of the loss and the weights of its gradient.

        Parameters
        ----------
        rewards : float, shape [P, n]
            The truth about each sample.
        scores : float, shape [P, n]
            What a selector ranks by.
        logp, ref_logp, old_logp : float, shape [P, n]
            Log-probability of each sample in nats, summed over its tokens at the
            temperature it was drawn at: under the policy, the reference policy, and the
            policy that drew it.
        ref_scores : float, shape [P, m]
            Scores of samples of the reference policy.
        lengths : int, shape [P, n]
            Tokens of each sample, >= 1.
        expert : bool, shape [P, n]
            True for a demonstration, False for a sample of the policy.
        fail : float, shape [P]
            Probability of a wrong sample, where it is known.
        win_rate : float, shape [P, n]
            Probability Q that the sample wins against or ties with a fresh one, where it is
            known.
        log_normaliser : float, shape [P]
            Logarithm of the normaliser of the law of best-of-k, the expectation of
            ``exp(lam Q)`` over fresh samples, where it is known; goes with win_rate.
        mask : bool, shape [P, n]
            False where no sample is. What the arrays hold there is not looked at.

        Returns
        -------
        value : float64, shape [P]
            Estimate of the loss of each prompt, which is to be minimised.
        weights : float64, shape [P, n]
            The gradient of prompt p's loss is ``sum_i weights[p, i] * d logp[p, i]``; 0
            where no sample is.

        Raises
        ------
        TypeError
            An input that the loss needs is missing, or one is given that it does not use.
        ValueError
            Shapes differ, a number is NaN or infinite or out of its range, or a prompt has
            too few samples; the message says where.
        """
        given: dict[str, Any] = {
            "scores": scores, "logp": logp, "ref_logp": ref_logp, "ref_scores": ref_scores,
            "old_logp": old_logp, "lengths": lengths, "expert": expert, "fail": fail,
            "win_rate": win_rate, "log_normaliser": log_normaliser,
        }  # fmt: skip
        given = {name: x for name, x in given.items() if x is not None}
        self._check_names(given)
        checked = _Checked(rewards, mask, self.kernel_checks if mask is None else ())
        batch = Batch(checked.rewards, **{name: checked(x, name) for name, x in given.items()})
        self._check_counts(checked.counts)
        self.check(batch, checked.there)
        if checked.mask is None:
            return self._with_kl(batch)
        return self._ragged(batch, checked.mask, checked.counts)

    def _check_names(self, given: dict[str, Any]) -> None:
        missing = [name for name in self.required if name not in given]
        unused = [name for name in given if name not in self.inputs]
        if missing or unused:
            said = f"{missing[0]} is missing" if missing else f"it does not use {unused[0]}"
            raise TypeError(f"loss {self.name}: {said}; its inputs are {', '.join(self.inputs)}")

    def _check_counts(self, counts: NDArray[np.int64]) -> None:
        if (counts < self.needed).any():
            row = int(np.argmax(counts < self.needed))
            raise ValueError(
                f"{self} needs at least {self.needed} samples of every prompt, but row {row} has "
                f"{counts[row]}"
            )

    def _with_kl(self, batch: Batch) -> tuple[Floats, Floats]:
        value, weights = self.estimate(batch)
        if not self.kl:
            return value, weights
        n = batch.rewards.shape[1]
        gap = batch.logp - batch.ref_logp
        mean = gap.mean(1)
        # (d_i - mean of the others) / n = (d_i - mean of all) / (n - 1)
        return value + self.kl * mean, weights + self.kl / (n - 1) * (gap - mean[:, None])

    def _ragged(
        self, batch: Batch, mask: NDArray[np.bool_], counts: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """Rows with equally many samples together, without the places that have none."""
        value, weights = np.empty(len(mask)), np.zeros(mask.shape)
        for n in np.unique(counts):
            rows = counts == n
            there = mask & rows[:, None]
            value[rows], some = self._with_kl(_rows_of(batch, rows, there, int(n)))
            weights[there] = some.ravel()
        return value, weights


def _rows_of(batch: Batch, rows: NDArray[np.bool_], there: NDArray[np.bool_], n: int) -> Batch:
    """The rows of a batch with the n samples that are there."""
    some = {}
    for field in fields(batch):
        x = getattr(batch, field.name)
        if x is not None:
            some[field.name] = x[rows] if field.name in WHOLE else x[there].reshape(-1, n)
    return Batch(**some)


# -- checks --------------------------------------------------------------------


class _Checked:
    """The inputs of one call, checked against its rewards and mask."""

    def __init__(self, rewards: ArrayLike, mask: ArrayLike | None, unseen: tuple[str, ...]) -> None:
        self.mask = None
        self.unseen = unseen  # names of inputs that are not looked at for NaN and infinity
        self.rewards = as_floats(rewards, "rewards")
        self.shape = self.rewards.shape
        if self.rewards.ndim != 2:
            raise ValueError(f"rewards must have the shape [P, n], got {self.shape}")
        if mask is None:
            self.counts = np.full(self.shape[0], self.shape[1])
        else:
            self.mask = as_mask(mask, self.shape, "rewards")
            self.counts = self.mask.sum(1)
        self._finite(self.rewards, "rewards")

    @property
    def there(self) -> NDArray[np.bool_]:
        return np.broadcast_to(np.True_, self.shape) if self.mask is None else self.mask

    def __call__(self, x: ArrayLike, name: str) -> NDArray[Any]:
        if name == "expert":
            return self._bools(x)
        array = self._floats(x, name)
        self._finite(array, name)
        if name in ("fail", "win_rate"):
            self._need((array >= 0) & (array <= 1), array, name, "in [0, 1]")
        if name == "lengths":
            self._need(array >= 1, array, name, ">= 1")
        return array

    def _bools(self, x: ArrayLike) -> NDArray[np.bool_]:
        array = np.ascontiguousarray(x)
        if array.dtype != np.bool_:
            raise TypeError(f"expert must hold bools, got dtype {array.dtype}")
        self._need_shape(array, "expert", self.shape)
        return array

    def _floats(self, x: ArrayLike, name: str) -> Floats:
        array = as_floats(x, name)
        if name == "ref_scores":
            if array.ndim != 2 or len(array) != self.shape[0] or array.shape[1] < 1:
                raise ValueError(
                    f"ref_scores must have the shape [P, m] with P={self.shape[0]} and m >= 1, "
                    f"got {array.shape}"
                )
        else:
            self._need_shape(array, name, self.shape[: 1 if name in OF_PROMPTS else 2])
        return array

    def _need_shape(self, array: NDArray[Any], name: str, shape: tuple[int, ...]) -> None:
        if array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")

    def _finite(self, array: Floats, name: str) -> None:
        if name in self.unseen:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(array.sum()):
                return
        self._need(np.isfinite(array), array, name, "finite")

    def _need(self, fine: NDArray[np.bool_], array: Floats, name: str, what: str) -> None:
        if self.mask is not None and name not in WHOLE:
            fine = fine | ~self.mask
        if not fine.all():
            raise ValueError(f"{name} must be {what}, but {place(~fine)} is {array[~fine][0]}")


def empty(batch: Batch) -> tuple[Floats, Floats]:
    """Arrays for the value [P] and the weights [P, n] that a kernel fills."""
    shape = batch.rewards.shape
    return np.empty(shape[0]), _memory.empty(shape)


def has_gaps(there: NDArray[np.bool_]) -> bool:
    """False for the array that stands for rows without mask: one True, seen everywhere."""
    return any(there.strides)


def need_count(x: int, name: str) -> None:
    """Refuse what is not an int >= 1."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{name} must be an int, got {type(x).__name__}")
    if x < 1:
        raise ValueError(f"{name} must be >= 1, got {x}")


def need_nonnegative(x: float, name: str) -> None:
    """Refuse what is not a finite number >= 0."""
    if isinstance(x, bool) or not isinstance(x, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {type(x).__name__}")
    if not 0 <= x < np.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {x}")


def need_choice(x: str, name: str, *choices: str) -> None:
    """Refuse what is not one of a few words."""
    if x not in choices:
        quoted = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be one of {quoted}, got {x!r}")
