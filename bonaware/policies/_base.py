"""What a policy is: pure decisions about one prompt, made while its samples are at rest."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Decision", "Policy", "Seen"]

#: Finish reasons of a sample that is an answer; one that is pruned or aborted is not.
WHOLE = ("eos", "stop", "length")


@dataclass(frozen=True)
class Seen:
    """What a policy sees of one prompt, whose samples all are at rest.

    Sample i is `finish_reason[i]`: "eos", "stop" or "length" when it has ended, "pruned" when
    the policy dropped it, "held" where it waits at a checkpoint to go on or to be dropped.

    Parameters
    ----------
    prompt : int
        Its position among the prompts.
    finish_reason : sequence of str, length drawn
    lengths : int64, shape [drawn]
        Tokens that each sample has so far.
    scores : float64, shape [drawn]
        By the verifier that guides the policy; NaN where the sample has not ended, and where
        the policy does not need them.
    prefix_scores : float64, shape [drawn, checkpoints]
        Scores of the beginning of each sample, as read at the checkpoints; NaN where it had
        ended before, or has not come there.
    answers : sequence of str or None, length drawn
        What each ended sample votes for; None where it does not vote, or has not ended.
    at : int or None
        Index of the checkpoint at which samples rest now; None where none is held.
    """

    prompt: int
    finish_reason: Sequence[str] = ()
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    prefix_scores: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    answers: Sequence[str | None] = ()
    at: int | None = None

    @property
    def drawn(self) -> int:
        """Samples begun so far; the next one has this index."""
        return len(self.finish_reason)

    @property
    def held(self) -> NDArray[np.int64]:
        """Indices of the samples that wait at a checkpoint."""
        return self._where("held")

    @property
    def whole(self) -> NDArray[np.int64]:
        """Indices of the samples that have ended by themselves: the answers so far."""
        return self._where(*WHOLE)

    def _where(self, *reasons: str) -> NDArray[np.int64]:
        return np.flatnonzero([reason in reasons for reason in self.finish_reason])


@dataclass(frozen=True)
class Decision:
    """What happens to a prompt next; one without anything to do ends it.

    Parameters
    ----------
    draw : int
        How many more samples begin; only where none is held.
    drop : sequence of int
        Indices of held samples that end here; the other held ones go on.
    """

    draw: int = 0
    drop: Sequence[int] = ()


class Policy:
    """Base of policies: a frozen dataclass that says how `decide` decides.

    A policy keeps no state: all it may look at is what it is given. So the same samples lead to
    the same decisions, online and in `replay`.
    """

    #: Most samples of a prompt.
    n: int
    #: Of "scores", "prefix_scores" and "answers", what `decide` and `choose` read.
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})
    #: Whether `decide` compares scores with a probability.
    probabilities: ClassVar[bool] = False
    #: Rising numbers of tokens at which samples rest.
    checkpoints: tuple[int, ...] = ()

    @property
    def judged(self) -> bool:
        """Whether a verifier must guide it."""
        return bool(self.needs & {"scores", "prefix_scores"})

    def temperatures(self, temperature: float) -> NDArray[np.float64]:
        """Temperature of each sample, shape [n], where a call asks for `temperature`."""
        return np.full(self.n, float(temperature))

    def decide(self, seen: Seen) -> Decision:
        """What happens next; first asked where nothing is drawn yet."""
        raise NotImplementedError

    def choose(self, seen: Seen) -> int:
        """Index of the sample that is the result: the best score, at equal ones the first.

        -1 where no sample has ended.
        """
        whole = seen.whole
        if not whole.size:
            return -1
        scores = seen.scores[whole]
        return int(whole[np.argmax(np.where(np.isnan(scores), -np.inf, scores))])
