"""The samples of a step: ids, which of them count, and what is known of their probabilities.

From `Samples`, which the policy drew, or from completions that somebody wrote. Knows no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware._arguments import Floats
from bonaware.lm import LM, Prompt
from bonaware.models._fields import show
from bonaware.samples import Samples

__all__ = ["Drawn", "of_completions", "of_samples", "sums"]

Ids = NDArray[np.int32]
UNFINISHED = ("aborted", "pruned")  # what ended them was not the policy
# Truncation, and the values that mean none.
LOWEST = 1e-30  # temperature: logits over it are still float32
TRUNCATION = {"top_k": (None,), "top_p": (None, 1.0), "min_p": (None, 0.0)}


@dataclass(frozen=True, eq=False)
class Drawn:
    """The samples of P prompts.

    Parameters
    ----------
    prompts : P arrays of ids
    texts : P lists of n arrays of ids
    mask : bool, shape [P, n]
        Which samples are there; the others have no ids.
    temperature : float
        Of the policy.
    logp : float64, shape [P, n], or None
        Nats at that temperature, 0 where no sample is; None: not known yet.
    """

    prompts: list[Ids]
    texts: list[list[Ids]]
    mask: NDArray[np.bool_]
    temperature: float
    logp: Floats | None

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, [P, n]."""
        counts = [[len(text) for text in texts] for texts in self.texts]
        return np.array(counts, np.int64).reshape(self.mask.shape)

    def pick(self, some: NDArray[np.bool_]) -> tuple[list[Ids], list[list[Ids]]]:
        """Prompts with some [P, n] of their texts; without prompts that have none."""
        rows = np.flatnonzero(some.any(1))
        return ([self.prompts[p] for p in rows],
                [[self.texts[p][i] for i in np.flatnonzero(some[p])] for p in rows])

    def logp_under(self, lm: LM) -> Floats:
        """Log-probability of each sample under a model, [P, n]; 0 where there is none."""
        prompts: Any
        prompts, texts = self.pick(self.mask)
        return sums(lm.logp(prompts, texts, self.temperature), self.mask, missing=0.0)

    def learned(self, weights: Floats) -> NDArray[np.bool_]:
        """Which samples, [P, n], have a gradient with these weights."""
        return (weights != 0) & (self.lengths > 0)

    def rows(self, some: NDArray[np.bool_]) -> int:
        """Tokens that the engine reads for some samples, [P, n], with their prompts."""
        prompts, texts = self.pick(some)
        return sum(map(len, prompts)) + sum(len(text) for row in texts for text in row)

    def per_token(self, total: Floats, some: NDArray[np.bool_]) -> float | None:
        """Mean per token of totals [P, n] over some samples; those with NaN do not count."""
        some = some & np.isfinite(total)
        tokens = int(self.lengths[some].sum())
        return float(total[some].sum()) / tokens if tokens else None


def of_samples(lm: LM, prompts: Sequence[Prompt], samples: Samples) -> Drawn:
    """What a policy drew; unfinished samples are masked.

    Their logp is known where the weights that drew them are those of the model as it is now.

    Raises
    ------
    ValueError
        There is not one row of samples per prompt, of that prompt; or they were truncated, or
        drawn at several temperatures or at 0: then they are not of the policy that is trained.
    """
    if len(prompts) != len(samples):
        raise ValueError(f"need one row of samples per prompt, got {len(samples)} rows for "
                         f"{len(prompts)} prompts")
    ids = [lm.encode(prompt) for prompt in prompts]
    for p, own in enumerate(ids):
        if not np.array_equal(own, lm.encode(samples.prompts[p])):
            raise ValueError(f"samples must be of the prompts that are given, but row {p} was "
                             f"drawn for {show(samples.prompts[p])}, and prompt {p} is "
                             f"{show(prompts[p])}")
    for name, none in TRUNCATION.items():
        if samples.settings.get(name) not in none:
            raise ValueError(f"samples drawn with {name}={samples.settings[name]} are not of the "
                             "policy that is trained: draw them without top_k, top_p and min_p")
    mask = samples.valid & ~np.isin(samples.finish_reason, UNFINISHED)
    found = np.unique(samples.temperature[mask])
    if len(found) != 1 or not found[0] > 0:
        raise ValueError(f"need samples of one temperature > 0, got {found.tolist()}")
    _check_temperature(float(found[0]))
    logp = None
    if samples.settings.get("fingerprint") == lm.fingerprint:
        logp = np.where(mask, samples.sum_sampled_logp, 0.0)
    return Drawn(ids, samples.tokens, mask, float(found[0]), logp)


def of_completions(lm: LM, prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]],
                   n: int, temperature: float) -> Drawn:
    """Completions as they are given, at most n per prompt, None where there is none.

    Raises
    ------
    ValueError
        There is not one list of completions per prompt, one is longer than n, or the temperature
        is out of its range.
    """
    _check_temperature(temperature)
    rows = [list(texts) for _, texts in lm._pairs(prompts, completions)]
    if (most := max(map(len, rows), default=0)) > n:
        raise ValueError(f"rewards must have a column for each completion, got {n} columns for "
                         f"{most} completions")
    rows = [row + [None] * (n - len(row)) for row in rows]
    mask = np.array([[text is not None for text in row] for row in rows], bool)
    texts = [[lm._completion(() if text is None else text) for text in row] for row in rows]
    return Drawn([lm.encode(prompt) for prompt in prompts], texts, mask.reshape(len(rows), n),
                 temperature, None)


def _check_temperature(temperature: float) -> None:
    if not LOWEST <= temperature <= 1 / LOWEST:
        raise ValueError(f"the temperature of a policy that is trained must be in [{LOWEST:g}, "
                         f"{1 / LOWEST:g}], got {temperature}")


def sums(per_token: Sequence[Sequence[NDArray[np.float32]]], some: NDArray[np.bool_], *,
         missing: float) -> Floats:
    """Sums over the tokens of some samples in their places of [P, n]."""
    result = np.full(some.shape, missing)
    result[some] = [tokens.sum(dtype=np.float64) for row in per_token for tokens in row]
    return result
