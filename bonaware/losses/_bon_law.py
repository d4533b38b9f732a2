"""REINFORCE on the law of best-of-k, shared by bon_rl_v and bon_rl_s; their selectors differ."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bonaware import _losses
from bonaware._arguments import Floats, place
from bonaware._parallel import for_rows
from bonaware.estimators import bon_lambda
from bonaware.losses._base import Batch, Loss, empty, need_choice, need_count

__all__ = ["STEPS_PER_SAMPLE", "BonRl", "chances", "need_normaliser"]

STEPS_PER_SAMPLE = 8  # about a nanosecond each, as in _parallel.py
SLACK = 1e-6  # nats, for normalisers that were themselves computed


@dataclass(frozen=True)
class BonRl(Loss):
    """Options and checks of `bon_rl_v` and `bon_rl_s`; see there."""

    ranks_by: ClassVar[tuple[str, ...]] = ()  # what the selector sees, if not the rewards
    kernel_checks = ("rewards", "scores")

    k: int
    variational: bool = True
    draws: str = "policy"
    enumerated: bool = False
    kl: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        need_count(self.k, "k")
        need_choice(self.draws, "draws", "policy", "bon")
        if self.enumerated and (self.kl or self.draws == "bon"):
            raise ValueError('enumerated=True goes with draws="policy" and kl=0 only')

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.ranks_by, "logp") if self.enumerated else self.ranks_by

    @property
    def takes(self) -> tuple[str, ...]:
        if not self.variational or self.draws == "bon":
            return ()
        return ("win_rate",) if self.enumerated else ("win_rate", "log_normaliser")

    @property
    def fewest(self) -> int:
        if self.enumerated:
            return 1
        return 3 if self.draws == "policy" else max(2 * self.k, self.k + 2)

    def check(self, batch: Batch, there: NDArray[np.bool_]) -> None:
        if self.enumerated:
            chances(batch.logp, there)
        need_normaliser(batch, self.k)

    def weigh(self, batch: Batch, scores: Floats) -> tuple[Floats, Floats]:
        """Value and weights where the selector ranks by these scores."""
        chance = None
        if self.enumerated:
            chance = chances(batch.logp, np.broadcast_to(np.True_, scores.shape))
        strength, exact = float(bon_lambda(self.k)), not self.variational
        value, weights = empty(batch)
        for_rows(
            lambda start, stop: _losses.bon_rl(
                scores, batch.rewards, chance, batch.win_rate, batch.log_normaliser, self.k,
                exact, strength, self.draws == "bon", value, weights, start, stop,
            ),
            len(value),
            STEPS_PER_SAMPLE * scores.shape[1],
        )  # fmt: skip
        return value, weights


def need_normaliser(batch: Batch, k: int) -> None:
    """Refuse logarithms of normalisers, if given, that no law of best-of-k has.

    Q is uniform on [0, 1] where nothing ties, and higher with ties.
    """
    given = batch.log_normaliser
    if given is None:
        return
    if batch.win_rate is None:
        raise TypeError("log_normaliser goes with win_rate, which is missing")
    lam = float(bon_lambda(k))
    least = lam + np.log(-np.expm1(-lam) / lam) if lam else 0.0
    wrong = ~((given >= least - SLACK) & (given <= lam + SLACK))
    if wrong.any():
        raise ValueError(
            "log_normaliser must be from log((e**lam - 1) / lam) to lam, which for "
            f"k={k} is {least:.6g} to {lam:.6g}, but {place(wrong)} is {given[wrong][0]}"
        )


def chances(logp: Floats, there: NDArray[np.bool_]) -> Floats:
    """Probabilities [P, n] of all outcomes of each prompt, 0 where there is none."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        chance = np.where(there, np.exp(logp), 0.0)
    total = chance.sum(1)
    wrong = ~(np.abs(total - 1) <= 1e-6)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            "enumerated outcomes must have probabilities exp(logp) that add up to 1, but row "
            f"{row} adds up to {total[row]}"
        )
    return chance / total[:, None]
