"""Self-evaluation: a model learns to say whether starting over would do better.

    run = bon.evaluate(lm, "countdown", n=16, split="train", store="draws.sqlite")
    rows = bon.selfeval.build(run.samples, run.rewards)
    bon.selfeval.write_rows("rows.jsonl", rows)
    trainer = bon.selfeval.train(lm, "rows.jsonl", steps=200, out="runs/selfeval")
    scores = bon.selfeval.score_rows(lm, held_out)
    bon.selfeval.calibration(scores, [row.label for row in held_out])

What is asked and read is a `Question`; the verifier "self_evaluation" reads it.

**Source:** Manvi, Singh, Ermon 2024, Adaptive Inference-Time Compute, arXiv:2410.02725.
"""

from bonaware._question import NO, WORDS, YES, Question
from bonaware.selfeval.building import FRACTIONS, build, pair_labels, soft_labels
from bonaware.selfeval.calibration import Calibration, calibration
from bonaware.selfeval.recorded import recorded
from bonaware.selfeval.rows import Row, read_rows, write_rows
from bonaware.selfeval.training import Answers, HeldOut, OnPolicy, score_rows, train

__all__ = [
    "FRACTIONS", "NO", "WORDS", "YES", "Answers", "Calibration", "HeldOut", "OnPolicy", "Question",
    "Row", "build", "calibration", "pair_labels", "read_rows", "recorded", "score_rows",
    "soft_labels", "train", "write_rows",
]
