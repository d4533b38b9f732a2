"""One prompt under a policy: what was drawn, what is at rest, what happens next.

Online drawing and replay tell a Course what becomes of each sample, and do what it says when
all are at rest; so both follow the same rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bonaware.policies._base import Decision, Policy, Seen

__all__ = ["Course", "Next"]

MOVING = "live"


@dataclass(frozen=True)
class Next:
    """What a policy has decided, in indices: samples that begin, go on, and are dropped."""

    begin: range
    go_on: Sequence[int]
    drop: Sequence[int]

    @property
    def nothing(self) -> bool:
        """Whether the prompt is done."""
        return not (len(self.begin) or len(self.go_on) or len(self.drop))


@dataclass
class _Track:
    """One sample: its state, and what was read of it."""

    reason: str = MOVING
    length: int = 0
    score: float = np.nan
    prefix_scores: list[float] = field(default_factory=list)
    answer: str | None = None


class Course:
    """What a policy does with one prompt.

    Parameters
    ----------
    policy : Policy
    prompt : int
        Its position, for the policy and for errors.
    """

    def __init__(self, policy: Policy, prompt: int) -> None:
        self.policy = policy
        self.prompt = prompt
        self._tracks: list[_Track] = []

    @property
    def at_rest(self) -> bool:
        """Whether the policy may be asked: no sample is under way."""
        return all(track.reason != MOVING for track in self._tracks)

    def checkpoint(self, index: int) -> int:
        """Tokens at which sample `index` rests next; 0 where it goes on to its end."""
        passed, checkpoints = len(self._tracks[index].prefix_scores), self.policy.checkpoints
        return checkpoints[passed] if passed < len(checkpoints) else 0

    def held(self, index: int, score: float) -> None:
        """Sample `index` has come to its checkpoint, and its beginning has this score."""
        track = self._tracks[index]
        track.reason, track.length = "held", self.checkpoint(index)
        track.prefix_scores.append(score)

    def ended(self, index: int, reason: str, length: int, score: float,
              answer: str | None = None) -> None:
        """Sample `index` has ended by itself."""
        track = self._tracks[index]
        track.reason, track.length, track.score, track.answer = reason, length, score, answer

    def seen(self) -> Seen:
        """What the policy sees now."""
        tracks = self._tracks
        prefix = np.full((len(tracks), len(self.policy.checkpoints)), np.nan)
        for row, track in zip(prefix, tracks, strict=True):
            row[:len(track.prefix_scores)] = track.prefix_scores
        passed = [len(track.prefix_scores) for track in tracks if track.reason == "held"]
        return Seen(
            self.prompt, [track.reason for track in tracks],
            np.array([track.length for track in tracks], np.int64),
            np.array([track.score for track in tracks], np.float64), prefix,
            [track.answer for track in tracks], passed[0] - 1 if passed else None)

    def next(self) -> Next:
        """Ask the policy, and take it that what it says is done.

        Raises
        ------
        ValueError
            The policy wants what it may not: more samples than its n, samples beside held
            ones, to drop one that is not held, or a first decision without a sample.
        """
        seen = self.seen()
        decision = self.policy.decide(seen)
        held = set(seen.held.tolist())
        drop = sorted({int(index) for index in decision.drop})
        self._check(decision, held, drop)
        begin = range(seen.drawn, seen.drawn + decision.draw)
        self._tracks += [_Track() for _ in begin]
        go_on = sorted(held.difference(drop))
        for index in go_on:
            self._tracks[index].reason = MOVING
        for index in drop:
            self._tracks[index].reason = "pruned"
        return Next(begin, go_on, drop)

    def choose(self) -> int:
        """Index of the sample that the policy takes; -1 where none has ended."""
        return self.policy.choose(self.seen())

    def _check(self, decision: Decision, held: set[int], drop: Sequence[int]) -> None:
        drawn, n = len(self._tracks), self.policy.n
        wrong: Any = None
        if decision.draw < 0 or drawn + decision.draw > n:
            wrong = f"{decision.draw} more samples behind {drawn}, of at most n={n}"
        elif decision.draw and held:
            wrong = f"{decision.draw} more samples while {len(held)} are held at a checkpoint"
        elif not held.issuperset(drop):
            wrong = f"to drop samples {sorted(set(drop) - held)}, which are not held"
        elif not (drawn or decision.draw):
            wrong = "no sample at all"
        if wrong:
            raise ValueError(f"policy {self.policy!r} wants, for prompt {self.prompt}, {wrong}")
