"""Live samples for verifiers that score tables of samples: all of them in one."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import FINISH_REASONS, Sample, Samples

__all__ = ["score_live"]


def score_live(verifier: Any, live: Any) -> NDArray[np.float64]:
    """What `verifier.score` gives live samples as they are.

    Parameters
    ----------
    verifier : Verifier
    live : bonaware._scheduling.Live
        m >= 1 samples.

    Returns
    -------
    float64, shape [m]
    """
    positions = [sample.prompt for sample in live.samples]
    prompts = dict(zip(positions, live.prompts, strict=True))
    problems = dict(zip(positions, live.problems, strict=True))
    rows = {position: row for row, position in enumerate(prompts)}
    placed = [_placed(sample, rows[sample.prompt]) for sample in live.samples]
    indices = [sample.index for sample in placed]
    samples = Samples.from_list(list(prompts.values()), placed, 1 + max(indices))
    scores = verifier.score(list(problems.values()), samples)
    return scores[[sample.prompt for sample in placed], indices]


def _placed(sample: Sample, row: int) -> Sample:
    """The sample in another row; one that may go on as if it were cut here."""
    reason = sample.finish_reason if sample.finish_reason in FINISH_REASONS else "aborted"
    return replace(sample, prompt=row, finish_reason=reason)
