"""Batches for the backward pass: prompts and completions as the trees that the engine reads.

The rows of a tree are the prompt's tokens and, for each completion, all its tokens but those that
nothing is predicted from. Knows no weights and no model; csrc/backward.h says what the arrays mean.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "answers", "predictions", "scores"]

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Arguments of `_engine.Learner.accumulate`, and how to read its answer.

    `source` [targets] is the place of each target in the completions' tokens, one completion
    behind the other (of `predictions`), in the list of completions (of `scores`), or in the order
    that `answers` says.
    """

    tokens: Ids
    prompt_rows: NDArray[np.uintp]
    branches: NDArray[np.uintp]
    branch_rows: NDArray[np.uintp]
    target_row: NDArray[np.uintp]
    target_token: Ids
    target_weight: NDArray[np.float32]
    source: NDArray[np.intp]

    def arrays(self) -> tuple[NDArray, ...]:
        """In the order of the engine's parameters."""
        return (self.tokens, self.prompt_rows, self.branches, self.branch_rows, self.target_row,
                self.target_token, self.target_weight)

    def shares(self, count: int) -> list[tuple[tuple[NDArray, ...], slice]]:
        """The batch in at most `count` runs of prompts, of about as many rows each.

        Returns
        -------
        list of (arrays, targets)
            Arguments of the engine, and which of the batch's targets they have.
        """
        branch = _before(self.branches)
        rows = self.prompt_rows.astype(np.intp) + np.diff(_before(self.branch_rows)[branch])
        row = _before(rows)
        # A prompt goes to the share in which its middle row lies.
        middle = row[:-1] + rows // 2
        ends = np.searchsorted(middle * count // max(row[-1], 1), np.arange(count), side="right")
        shares = []
        for first, end in itertools.pairwise(np.unique([0, *ends])):
            at, branches = slice(row[first], row[end]), slice(branch[first], branch[end])
            targets = slice(*np.searchsorted(self.target_row, [at.start, at.stop]))
            shares.append((
                (self.tokens[at], self.prompt_rows[first:end], self.branches[first:end],
                 self.branch_rows[branches], self.target_row[targets] - np.uintp(at.start),
                 self.target_token[targets], self.target_weight[targets]), targets))
        return shares

    def in_order(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The targets' values in the order of the completions' tokens, or of the completions."""
        ordered = np.empty_like(values)
        ordered[self.source] = values
        return ordered


def predictions(prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]],
                weights: Sequence[NDArray[np.float32]]) -> Batch:
    """Every token of every completion is a target.

    Parameters
    ----------
    prompts : P arrays of ids, each of at least one
    completions : P sequences of arrays of ids, each of at least one
    weights : for each prompt one array with a weight per token of its completions, in order
    """
    lengths = [np.array([len(text) for text in texts], np.intp) for texts in completions]
    rows, tokens, target_rows, target_tokens, target_weights, sources = [], [], [], [], [], []
    first_row = first_token = 0
    for prompt, texts, length, weight in zip(prompts, completions, lengths, weights, strict=True):
        if not length.all():
            raise ValueError("a completion needs at least one token to be learned from, found one "
                             "of none")
        flat = np.concatenate([np.empty(0, np.int32), *texts])
        start = np.cumsum(length) - length
        is_first = np.zeros(len(flat), bool)
        is_first[start] = True
        is_last = np.zeros(len(flat), bool)
        is_last[start + length - 1] = True
        # A first token is predicted by the prompt's last row, another by the row of the one before.
        order = np.concatenate([start, np.flatnonzero(~is_first)])
        last_of_prompt = first_row + len(prompt) - 1
        branch = last_of_prompt + 1 + np.arange(np.count_nonzero(~is_last))
        tokens += [prompt, flat[~is_last]]
        rows.append(length - 1)
        target_rows += [np.full(len(texts), last_of_prompt), branch]
        target_tokens.append(flat[order])
        target_weights.append(weight[order])
        sources.append(first_token + order)
        first_row = last_of_prompt + 1 + len(branch)
        first_token += len(flat)
    return _batch(prompts, lengths, rows, tokens, target_rows, target_tokens, target_weights,
                  sources)


def scores(prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]],
           weights: Sequence[NDArray[np.float32]], label: int = 0) -> Batch:
    """The last token of every completion is a target: the score head's `label`.

    Parameters
    ----------
    prompts, completions : as for `predictions`; an empty completion is scored at its prompt's end
    weights : for each prompt one array with a weight per completion
    """
    lengths = [np.array([len(text) for text in texts], np.intp) for texts in completions]
    tokens, target_rows, target_weights, sources = [], [], [], []
    first_row = first = 0
    for prompt, texts, length, weight in zip(prompts, completions, lengths, weights, strict=True):
        last_of_prompt = first_row + len(prompt) - 1
        row = np.where(length > 0, last_of_prompt + np.cumsum(length), last_of_prompt)
        order = np.argsort(row, kind="stable")
        tokens += [prompt, *texts]
        target_rows.append(row[order])
        target_weights.append(weight[order])
        sources.append(first + order)
        first_row = last_of_prompt + 1 + int(length.sum())
        first += len(texts)
    labels = [np.full(len(part), label) for part in sources]
    return _batch(prompts, lengths, lengths, tokens, target_rows, labels, target_weights, sources)


def answers(prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]], named: Ids,
            weights: Sequence[NDArray[np.float32]], own: Sequence[NDArray[np.intp]]) -> Batch:
    """Named tokens are targets behind every completion, and so are its first own tokens.

    Parameters
    ----------
    prompts, completions : as for `predictions`
    named : A ids
    weights : for each prompt one array [count, A]
    own : for each prompt one array [count]
        How many of a completion's tokens are targets, of weight 0.

    Returns
    -------
    Batch
        `in_order` gives A values for each completion, then one for each of the own tokens, one
        completion behind the other.
    """
    lengths = [np.array([len(text) for text in texts], np.intp) for texts in completions]
    tokens, target_rows, target_tokens, target_weights, sources = [], [], [], [], []
    answer = first_row = 0
    place = sum(map(len, lengths)) * len(named)
    for prompt, texts, length, weight, count in zip(prompts, completions, lengths, weights, own,
                                                    strict=True):
        flat = np.concatenate([np.empty(0, np.int32), *texts])
        last_of_prompt = first_row + len(prompt) - 1
        at = np.arange(len(flat)) - np.repeat(np.cumsum(length) - length, length)
        kept = np.flatnonzero(at < np.repeat(count, length))
        # A first token is predicted by the prompt's last row, another by the row of the one before.
        row = np.concatenate([np.repeat(last_of_prompt + np.cumsum(length), len(named)),
                              last_of_prompt + np.where(at[kept] == 0, 0, kept)])
        order = np.argsort(row, kind="stable")
        asked = len(texts) * len(named)
        tokens += [prompt, flat]
        target_rows.append(row[order])
        target_tokens.append(np.concatenate([np.tile(named, len(texts)), flat[kept]])[order])
        target_weights.append(np.concatenate([weight.ravel(), np.zeros(len(kept))])[order])
        sources.append(np.concatenate([answer + np.arange(asked), place + np.arange(len(kept))])[
            order])
        first_row = last_of_prompt + 1 + len(flat)
        answer, place = answer + asked, place + len(kept)
    return _batch(prompts, lengths, lengths, tokens, target_rows, target_tokens, target_weights,
                  sources)


def _batch(prompts, lengths, rows, tokens, target_rows, target_tokens, target_weights,
           sources) -> Batch:
    return Batch(
        tokens=_join(tokens, np.int32),
        prompt_rows=np.array([len(prompt) for prompt in prompts], np.uintp),
        branches=np.array([len(length) for length in lengths], np.uintp),
        branch_rows=_join(rows, np.uintp),
        target_row=_join(target_rows, np.uintp),
        target_token=_join(target_tokens, np.int32),
        target_weight=_join(target_weights, np.float32),
        source=_join(sources, np.intp),
    )


def _before(counts: NDArray) -> NDArray[np.intp]:
    """How many come before each, and how many there are."""
    return np.concatenate([np.zeros(1, np.intp), np.cumsum(counts, dtype=np.intp)])


def _join(parts: list[NDArray], dtype: type) -> NDArray:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
