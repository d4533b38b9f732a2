"""Policies that stop when the answers of the samples agree."""

from typing import ClassVar

from bonaware import select
from bonaware.policies._base import Policy, Seen

__all__ = ["Consensus"]


class Consensus(Policy):
    """Needs no scores: takes the first sample of the most frequent answer."""

    needs: ClassVar[frozenset[str]] = frozenset({"answers"})

    def choose(self, seen: Seen) -> int:
        """As `bonaware.select.majority` chooses from the samples that have ended; -1: none."""
        whole = seen.whole
        if not whole.size:
            return -1
        return int(whole[select.majority([[seen.answers[i] for i in whole]])[0]])
