"""Whether two LaTeX expressions are the same mathematics, by math-verify.

Run in worker processes only: LaTeX from a model can make it hang or eat memory.
"""

import logging

from math_verify import parse, verify

__all__ = ["compare"]

logging.disable()  # it warns that its own time limits are off: the pool has one


def compare(gold: str, answer: str) -> bool:
    """Whether an answer equals the gold answer; both are contents of a \\boxed{}."""
    sides = [parse(f"\\boxed{{{side}}}", parsing_timeout=None) for side in (gold, answer)]
    return bool(verify(*sides, timeout_seconds=None))
