"""What drawing cost, and what it gained: counts of tokens, FLOPs and seconds per prompt.

Everything here follows from arrays: the lengths and ends of samples, as a run gives them and
`bonaware.policies.replay` makes them. Nothing here knows a model or looks at a clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats, as_floats, as_int64, place
from bonaware.estimators import Rng, _resampled_means
from bonaware.samples import Samples

if TYPE_CHECKING:
    from bonaware.policies import Policy

__all__ = ["Cost", "CostModel", "cost", "gain"]

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cost:
    """What was done for each of P prompts.

    Parameters
    ----------
    samples : int64, shape [P]
        Samples begun.
    prompt_tokens : int64, shape [P]
        Tokens of the prompt, which is run through the model once.
    new_tokens : int64, shape [P]
        Tokens drawn, those of pruned samples too.
    reads : int64, shape [P]
        How often a sample was asked the question of a self-evaluation.
    question_tokens : int64, shape [P]
        Tokens of these questions, reads times their length.
    pairs : int64, shape [P]
        Pairs of a token and one that it attends to, itself included, of all tokens above.
    """

    samples: Counts
    prompt_tokens: Counts
    new_tokens: Counts
    reads: Counts
    question_tokens: Counts
    pairs: Counts

    @property
    def tokens(self) -> Counts:
        """Tokens run through the model, of all kinds, shape [P]."""
        return self.prompt_tokens + self.new_tokens + self.question_tokens


def cost(samples: Samples, prompt_tokens: ArrayLike, policy: "Policy | None" = None,
         question_tokens: int = 0) -> Cost:
    """Count what a run, or a replay, did for each prompt.

    Parameters
    ----------
    samples : Samples
        As drawn; pruned ones as long as they were let be.
    prompt_tokens : int, or int shape [P]
        Length of each prompt in tokens.
    policy : Policy, optional
        That drew the samples: whether and at which checkpoints it had them read.
    question_tokens : int
        Tokens of the question that the verifier asks behind a sample; 0 where it asks none.

    Returns
    -------
    Cost

    Raises
    ------
    TypeError, ValueError
        A number is negative, no integer, or there is not one per prompt.

    Notes
    -----
    A sample that has ended by itself is asked once; a sample that comes to a checkpoint is asked
    there too where the policy needs scores of beginnings. Each drawn token counts as one that is
    run through the model, though the last one of a sample that nobody asks is not. `pairs` is
    for attention to all earlier tokens; a sliding window has fewer.

    Examples
    --------
    >>> from bonaware.samples import Sample
    >>> one = Sample(0, 0, np.arange(3, dtype=np.int32), *[np.zeros(3, np.float32)] * 3,
    ...              text=None, finish_reason="eos", temperature=1.0)
    >>> found = cost(Samples(["?"], [[one]]), prompt_tokens=5, question_tokens=2)
    >>> found.new_tokens, found.question_tokens, found.tokens, found.pairs
    (array([3]), array([2]), array([10]), array([55]))
    """
    prompt = _whole_numbers("prompt_tokens", prompt_tokens)
    if prompt.shape not in ((), (len(samples),)):
        raise ValueError(f"prompt_tokens must be one number, or one for each of {len(samples)} "
                         f"prompts, got shape {prompt.shape}")
    question = _whole_numbers("question_tokens", question_tokens)
    begun = samples.valid.sum(1)
    prompt = np.where(begun, prompt, 0)
    asked = _read_at(samples, policy) if question else np.zeros((len(samples), 0), np.int64)
    behind = np.where(asked >= 0, prompt[:, None] + asked, 0).sum(1)
    reads = (asked >= 0).sum(1)
    pairs = (_triangle(prompt) + (samples.lengths * prompt[:, None]).sum(1)
             + _triangle(samples.lengths).sum(1) + question * behind + reads * _triangle(question))
    return Cost(begun, prompt, samples.lengths.sum(1), reads, reads * question, pairs)


def _read_at(samples: Samples, policy: "Policy | None") -> Counts:
    """[P, reads]: length of a sample when it was asked, -1 where it was not."""
    whole = np.isin(samples.finish_reason, ("eos", "stop", "length"))
    asked = [np.where(whole, samples.lengths, -1)]
    if policy is not None and "prefix_scores" in policy.needs:
        pruned = samples.finish_reason == "pruned"
        for checkpoint in policy.checkpoints:
            came = (samples.lengths > checkpoint) | (pruned & (samples.lengths == checkpoint))
            asked.append(np.where(came, checkpoint, -1))
    return np.concatenate(asked, axis=1)


def _triangle(tokens: Any) -> Any:
    """Pairs among tokens that attend to themselves and all before them."""
    return tokens * (tokens + 1) // 2


def _whole_numbers(name: str, values: ArrayLike) -> Counts:
    array = as_int64(values, name)
    if (array < 0).any():
        raise ValueError(f"{name} must be >= 0, but {place(array < 0)} is {array[array < 0][0]}")
    return array


@dataclass(frozen=True)
class CostModel:
    """FLOPs and seconds of a `Cost`.

    Parameters
    ----------
    parameters : float
        Weights that each token is multiplied with; NaN: not known, and FLOPs are NaN.
    attention : float
        FLOPs of one pair of tokens in all layers: 4 layers x heads x head_dim.
    prefill_s, decode_s, read_s : float
        Seconds per token of prompts, of samples and of questions; NaN: not measured.
    residual : float
        Of the fit of the seconds: root of the mean squared relative error, 0.1 for 10 %.
    pair_s : float
        Seconds per pair of tokens: what attention costs a token for each one that stands before
        it. 0 where it was not measured.

    Notes
    -----
    FLOPs are 2 parameters x tokens + attention x pairs. Seconds are linear in tokens and pairs: the
    speeds are those of the runs that were measured, with their number of slots and threads.
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (FLOPs per token).

    Examples
    --------
    >>> none = np.array([0])
    >>> short, long = (Cost(none, none + 10, none + new, none, none, none)
    ...                for new in (100, 900))
    >>> model = CostModel().fit([short, long], seconds=[0.3, 1.9])
    >>> round(float(model.seconds(long)[0]), 9), model.residual < 1e-9
    (1.9, True)
    """

    parameters: float = np.nan
    attention: float = 0.0
    prefill_s: float = np.nan
    decode_s: float = np.nan
    read_s: float = np.nan
    residual: float = np.nan
    pair_s: float = 0.0

    @classmethod
    def of(cls, lm: Any) -> "CostModel":
        """What FLOPs need to know of a model; of the embedding, only a head counts."""
        arch = lm.arch
        table = 0 if arch.tied and not arch.labels else arch.vocab * arch.hidden
        return cls(lm.num_parameters - table, 4.0 * arch.layers * arch.heads * arch.head_dim)

    def flops(self, cost: Cost) -> Floats:
        """Floating-point operations of each prompt, shape [P]."""
        return 2.0 * self.parameters * cost.tokens + self.attention * cost.pairs

    def seconds(self, cost: Cost) -> Floats:
        """Seconds of each prompt, shape [P]; NaN where a kind of its work was not measured."""
        work = _kinds(cost)
        speeds = np.array([self.prefill_s, self.decode_s, self.read_s, self.pair_s])
        return np.where(work > 0, work * speeds, 0.0).sum(1)

    def fit(self, costs: Sequence[Cost], seconds: ArrayLike) -> "CostModel":
        """The same with seconds per token and per pair that fit measured runs best.

        Parameters
        ----------
        costs : sequence of R Cost
            Of each run, all of its prompts.
        seconds : float, shape [R]
            Wall-clock time of each run, > 0.

        Returns
        -------
        CostModel
            With the non-negative speeds of least squared relative error; NaN for a kind of
            token that no run has. Where the runs do not tell pairs from tokens, as when all
            samples are of one length, pairs count nothing.

        Raises
        ------
        ValueError
            There is not one time per run, one is not > 0, or the runs are too few or too alike
            to tell the kinds of tokens apart.
        """
        times = as_floats(seconds, "seconds")
        if times.shape != (len(costs),) or not (np.isfinite(times) & (times > 0)).all():
            raise ValueError(f"need the seconds > 0 of each of {len(costs)} runs, got {times}")
        work = np.array([_kinds(cost).sum(0) for cost in costs]).reshape(-1, 4)
        used = np.flatnonzero(work.any(0))
        if used.size and used[-1] == PAIRS and not _told_apart(work[:, used]):
            used = used[:-1]
        if not used.size or not _told_apart(work[:, used]):
            raise ValueError(f"{len(costs)} runs do not tell the seconds of {used.size} kinds of "
                             "tokens apart: measure more, in other proportions")
        relative = work[:, used] / times[:, None]  # x speeds = 1 where the model is right
        speeds = np.array([np.nan, np.nan, np.nan, 0.0])
        speeds[used] = _least_squares(relative)
        error = relative @ speeds[used] - 1
        prefill, decode, read, pair = speeds.tolist()
        return replace(self, prefill_s=prefill, decode_s=decode, read_s=read, pair_s=pair,
                       residual=float(np.sqrt(np.mean(error**2))))


PAIRS = 3  # among the kinds below


def _kinds(cost: Cost) -> NDArray[np.float64]:
    """[P, 4]: tokens of prompts, samples and questions, and pairs."""
    kinds = (cost.prompt_tokens, cost.new_tokens, cost.question_tokens, cost.pairs)
    return np.stack(kinds, axis=1).astype(np.float64)


def _told_apart(work: NDArray[np.float64]) -> bool:
    """Whether no kind of work [runs, kinds] is a mixture of the others in all runs."""
    return np.linalg.matrix_rank(work / work.max(0)) == work.shape[1]


def _least_squares(relative: Floats) -> Floats:
    """x >= 0 with the least |relative @ x - 1|: the best of all sets of x that are not 0."""
    kinds = range(relative.shape[1])
    scale = relative.max(0)
    best, best_error = np.zeros(len(scale)), np.inf
    for size in range(1, len(scale) + 1):
        for some in map(list, combinations(kinds, size)):
            found = np.zeros(len(scale))
            found[some] = np.linalg.lstsq(relative[:, some] / scale[some],
                                          np.ones(len(relative)), rcond=None)[0] / scale[some]
            error = float(((relative @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < best_error:
                best, best_error = found, error
    return best


def gain(accuracy: ArrayLike, one: ArrayLike, best: ArrayLike, level: float = 0.95,
         rng: Rng = 0) -> tuple[Floats, Floats, Floats]:
    """Percent of the maximum improvement: how much of what best-of-n adds a policy gives.

    Parameters
    ----------
    accuracy : float, shape [P, ...]
        Reward of each prompt under the policy; further axes are other policies, or the steps
        of a curve.
    one : float, shape [P]
        Reward of each prompt with one sample. Say which: the mean of samples at temperature 1,
        or a greedy one.
    best : float, shape [P]
        Reward of each prompt with best-of-n.
    level : float
        Coverage of the interval, in (0, 1).
    rng : None, int, SeedSequence or Generator
        An int gives the same interval every time.

    Returns
    -------
    percent, low, high : float64, shape [...]
        100 (mean accuracy - mean one) / (mean best - mean one), and the ends of its bootstrap
        interval: all means are of the same 5000 resamples of the prompts.

    Raises
    ------
    ValueError
        Lengths differ, a value is NaN or infinite, there are fewer than 2 prompts, best-of-n is
        not better than one sample, or level is outside (0, 1).

    Notes
    -----
    A resample in which best-of-n is not better than one sample says nothing of the share: it
    counts as minus infinity for the lower end and as infinity for the upper one. So where it is
    not clear that there is something to gain, the interval is not bounded.
    Source: Manvi et al. 2024, arXiv:2410.02725 (percent of maximum improvement).

    Examples
    --------
    >>> one, best, policy = np.zeros(10), np.ones(10), np.repeat([0.0, 1.0], [3, 7])
    >>> percent, low, high = gain(policy, one, best)
    >>> print(f"{percent:.0f} % [{low:.0f}, {high:.0f}]")
    70 % [40, 100]
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    values = as_floats(accuracy, "accuracy")
    columns = [as_floats(one, "one"), as_floats(best, "best"), values.reshape(len(values), -1)]
    if columns[0].shape != columns[1].shape or columns[0].shape != values.shape[:1]:
        raise ValueError("need one value per prompt, got shapes "
                         f"{values.shape}, {columns[0].shape}, {columns[1].shape}")
    table = np.column_stack(columns)
    if not np.isfinite(table).all():
        raise ValueError(f"rewards must be finite, but {place(~np.isfinite(table))} is not")
    if len(table) < 2:
        raise ValueError(f"need at least 2 prompts, got {len(table)}")
    found, room = _shares(table.mean(0))
    if room <= 0:
        raise ValueError(f"best-of-n is not better than one sample: it adds {room:g} on average, "
                         "so there is no share of it")
    shares, rooms = _shares(_resampled_means(table, np.random.default_rng(rng)))
    unclear = rooms <= 0
    ends = [np.quantile(np.where(unclear[:, None], worst, shares), quantile, axis=0,
                        method="inverted_cdf").reshape(values.shape[1:])
            for worst, quantile in ((-np.inf, (1 - level) / 2), (np.inf, (1 + level) / 2))]
    return found.reshape(values.shape[1:]), ends[0], ends[1]


def _shares(means: Floats) -> tuple[Floats, Any]:
    """Percent gained [..., M] and room for it [...], of means [..., 2 + M]: one, best, others."""
    one, best, others = means[..., 0], means[..., 1], means[..., 2:]
    room = best - one
    with np.errstate(divide="ignore", invalid="ignore"):
        return 100 * (others - one[..., None]) / room[..., None], room
