"""Verifiers: what a selector sees of a sample, one score each.

One file = one verifier, found by its name: `get("likelihood")`. A verifier file has an
attribute `VERIFIER`, a class whose options are keywords and whose `score(problems, samples)`
gives float64 `[P, n]`, higher = better, NaN where there is no sample. Where they are no
probabilities, and no numbers in [0, 1] that are meant like one, it says `probabilities = False`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bonaware import _lookup
from bonaware.samples import Samples
from bonaware.tasks import Problem

__all__ = ["Verifier", "available", "check_prompts", "get"]


class Verifier(Protocol):
    """What a verifier must offer."""

    def score(self, problems: Sequence[Problem], samples: Samples) -> NDArray[np.float64]:
        """Scores `[P, n]` of the samples of P problems; NaN where there is no sample."""
        ...


def available() -> tuple[str, ...]:
    """Names that `get` knows.

    Examples
    --------
    >>> available()
    ('exact', 'likelihood', 'reward_model', 'self_certainty', 'self_evaluation')
    """
    return _lookup.available(__name__)


def get(name: str, **options: Any) -> Verifier:
    """A verifier by name.

    Parameters
    ----------
    name : str
        One of `available()`:
        "exact", the task's own reward, a perfect selector;
        "likelihood", log-probability of the sample under the model;
        "reward_model", what a model with a score head gives;
        "self_certainty", how far the model was from guessing, per token;
        "self_evaluation", whether the model thinks that starting over would do no better.
    **options
        Of that verifier; see its class.

    Returns
    -------
    Verifier

    Raises
    ------
    ValueError
        There is no such verifier; the message lists those there are.
    TypeError
        The verifier has no such option, or needs one that is missing.

    Examples
    --------
    >>> get("likelihood", normalize="length")
    Likelihood(normalize='length')
    """
    return _lookup.make(__name__, name, "VERIFIER", options)


def check_prompts(problems: Sequence[Problem], samples: Samples) -> None:
    """Refuse samples that are not of these problems; for those who write verifiers."""
    if len(problems) != len(samples):
        raise ValueError(
            f"need one prompt per problem, got {len(samples)} prompts for {len(problems)} problems"
        )
