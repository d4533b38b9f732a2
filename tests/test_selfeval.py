"""bonaware.selfeval: labels against fractions, rows in files, steps against torch, calibration."""

import itertools
import json
import sys
from fractions import Fraction

import numpy as np
import pytest
import tiny
from letters import Letters, letters_model

pytest.importorskip("bonaware._engine", reason="the engine is not built")
import bonaware as bon
from bonaware import cli, plot, selfeval
from bonaware.samples import Sample, Samples
from bonaware.selfeval import Question, Row
from bonaware.train import auroc

QUESTION = Question((7, 8), 3, 4, (2,))
PROMPTS = [[5, 6, 7], [9]]
COMPLETIONS = [[[1, 2, 3], [4, 5], [6, 7, 8, 2]], [[11]]]
LABELS = [[0.25, 1.0, 0.5], [0.0]]


def model(rng=0, **options):
    config = tiny.MODELS["llama3"] | {"initializer_range": 0.3}
    return bon.LM.from_config(config, **{"rng": rng, "threads": 1, **options})


def a_sample(prompt, index, length, reason="eos"):
    zeros = np.zeros(length, np.float32)
    tokens = np.arange(100 * index, 100 * index + length, dtype=np.int32)
    return Sample(prompt, index, tokens, zeros, zeros, zeros, None, reason, 1.0)


def some_samples(lengths, prompts=("a", "b"), **options):
    """Samples of these lengths for each prompt."""
    drawn = [a_sample(p, i, length) for p in range(len(prompts))
             for i, length in enumerate(lengths)]
    return Samples.from_list(list(prompts), drawn, len(lengths), **options)


# -- labels ----------------------------------------------------------------------------------


def exact_label(row, i, eps):
    """By its definition, in fractions; None where there is none."""
    there = [Fraction(score) for score in row if not np.isnan(score)]
    if np.isnan(row[i]) or len(there) < 2:
        return None
    wins = sum(Fraction(row[i]) >= score - Fraction(eps) for score in there) - 1
    return Fraction(wins, len(there) - 1)


@pytest.mark.parametrize("eps", [0.0, 0.125, 0.5])
def test_soft_labels_are_those_of_exact_arithmetic(eps):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 9, (60, 7)) / 8  # eighths: sums with eps are exact, and many ties
    scores[rng.random(scores.shape) < 0.2] = np.nan
    scores[0, 1:] = np.nan
    found = selfeval.soft_labels(scores, eps)
    for row, labels in zip(scores, found, strict=True):
        for i, label in enumerate(labels):
            want = exact_label(row, i, eps)
            assert np.isnan(label) if want is None else label == float(want)


def test_labels_compare_as_their_formula_does():
    for row in ([0.3, 0.4], [0.7, 0.8]):  # as numbers, 0.3 + 0.1 >= 0.4 and 0.3 < 0.4 - 0.1
        want = [[row[0] >= row[1] - 0.1, 1.0]]
        np.testing.assert_array_equal(selfeval.soft_labels([row], 0.1), want)
        for rng in range(4):
            np.testing.assert_array_equal(selfeval.pair_labels([row], 0.1, rng), want)


def test_binary_rewards_have_the_labels_that_their_count_gives():
    labels = selfeval.soft_labels([[1, 0, 0, 1, 0]])
    np.testing.assert_array_equal(labels, [[1, 0.5, 0.5, 1, 0.5]])
    np.testing.assert_array_equal(selfeval.soft_labels(np.zeros((2, 3))), np.ones((2, 3)))
    np.testing.assert_array_equal(selfeval.soft_labels([[np.nan, 3.0]]), [[np.nan] * 2])


def matchings(places):
    """All ways to pair an even number of places."""
    if not places:
        yield []
        return
    first, *rest = places
    for other in rest:
        left = [place for place in rest if place != other]
        for more in matchings(left):
            yield [(first, other), *more]


def pair_labels_of(row, pairs):
    labels = {}
    for i, j in pairs:
        labels[i], labels[j] = Fraction(int(row[i] >= row[j])), Fraction(int(row[j] >= row[i]))
    return [labels[i] for i in range(len(row))]


@pytest.mark.parametrize("row", [[1, 0, 0, 1], [3, 1, 2, 0], [0, 0, 0, 0], [2, 1, 1, 0, 2, 5]])
def test_pairs_and_soft_labels_have_the_same_optimum(row):
    """The mean over all pairings of the label, so of the loss at any p, is that of the soft one."""
    every = [pair_labels_of(row, pairs) for pairs in matchings(list(range(len(row))))]
    soft = selfeval.soft_labels([row])[0]
    grid = np.linspace(0.005, 0.995, 100)
    for i, label in enumerate(soft):
        mean = sum(labels[i] for labels in every) / len(every)
        assert float(mean) == label
        losses = [np.mean([-float(labels[i]) * np.log(p) - float(1 - labels[i]) * np.log1p(-p)
                           for labels in every]) for p in grid]
        assert grid[np.argmin(losses)] == pytest.approx(np.clip(label, 0.005, 0.995), abs=0.0051)


def test_pair_labels_are_those_of_a_pairing():
    row = [2.0, 1.0, np.nan, 1.0, 0.0, 2.0]
    there = [0, 1, 3, 4, 5]
    possible = {tuple(float(labels.get(i, np.nan)) for i in range(6))
                for out in there
                for pairs in matchings([i for i in there if i != out])
                for labels in [dict(itertools.chain.from_iterable(
                    ((i, row[i] >= row[j]), (j, row[j] >= row[i])) for i, j in pairs))]}
    seen = {tuple(selfeval.pair_labels([row], rng=seed)[0].tolist()) for seed in range(200)}
    as_text = {str(labels) for labels in possible}
    assert {str(labels) for labels in seen} == as_text  # all of them, and no other
    assert str(tuple(selfeval.pair_labels([[0.5, 0.75]], eps=0.25)[0].tolist())) == "(1.0, 1.0)"


@pytest.mark.parametrize(("scores", "eps", "sentence"), [
    ([1.0, 2.0], 0.0, r"scores must have the shape \[P, n\], got \(2,\)"),
    ([[np.inf]], 0.0, "scores must be finite, or NaN where there is no sample"),
    ([[1.0]], -1.0, "need a finite eps >= 0, got -1.0"),
    ([[1.0]], np.nan, "need a finite eps >= 0, got nan"),
])  # fmt: skip
def test_scores_without_labels_are_refused(scores, eps, sentence):
    for labels in (selfeval.soft_labels, selfeval.pair_labels):
        with pytest.raises(ValueError, match=sentence):
            labels(scores, eps)


# -- rows ------------------------------------------------------------------------------------


def places(rows):
    return [(row.problem, row.sample, len(row.tokens)) for row in rows]


def test_every_part_of_a_sample_gives_one_row():
    samples = some_samples([40, 17, 100])
    scores = [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    rows = list(selfeval.build(samples, scores, rng=3, problems=["x", "y"]))
    labels = selfeval.soft_labels(scores)
    assert len(rows) == 2 * 3 * 5
    for (p, i), group in itertools.groupby(rows, lambda row: ("xy".index(row.problem), row.sample)):
        own = list(group)
        assert {row.label for row in own} == {labels[p, i]}
        assert {row.prompt for row in own} == {"ab"[p]}
        whole = samples.tokens[p][i]
        for row, (low, high) in zip(own[:4], itertools.pairwise([0, 0.25, 0.5, 0.75, 1]),
                                    strict=True):
            assert low * len(whole) < len(row.tokens) <= high * len(whole)
            assert len(row.tokens) < row.length == len(whole)
            np.testing.assert_array_equal(row.tokens, whole[: len(row.tokens)])
        assert own[4].fraction == 1.0
        np.testing.assert_array_equal(own[4].tokens, whole)


def test_cuts_are_uniform_over_the_tokens_of_a_part():
    samples = some_samples([12, 12], prompts=[str(p) for p in range(1000)])
    rows = selfeval.build(samples, np.zeros((1000, 2)), fractions=[0.5, 1], rng=0)
    counts = np.bincount([len(row.tokens) for row in rows], minlength=13)
    assert counts[0] == 0
    assert counts[12] == 2000
    for part, width in ((counts[1:7], 6), (counts[7:12], 5)):
        assert part.sum() == 2000
        np.testing.assert_allclose(part, 2000 / width, rtol=0.25)  # 5 standard deviations


def test_parts_without_a_token_are_left_out():
    rows = list(selfeval.build(some_samples([1, 2, 3], prompts="a"), [[0, 0, 0]]))
    lengths = [sorted(len(row.tokens) for row in rows if row.sample == i) for i in range(3)]
    assert lengths == [[1], [1, 2], [1, 2, 3]]
    whole = list(selfeval.build(some_samples([1, 2, 3], prompts="a"), [[0, 0, 0]], fractions=[]))
    assert [len(row.tokens) for row in whole] == [1, 2, 3]


def test_a_cut_depends_on_seed_prompt_and_index_only():
    few, many = some_samples([40, 50]), some_samples([40, 50, 60], prompts=["a", "b", "c"])
    one = places(selfeval.build(few, np.zeros((2, 2)), rng=1))
    assert set(one) <= set(places(selfeval.build(many, np.zeros((3, 3)), rng=1)))
    assert one != places(selfeval.build(few, np.zeros((2, 2)), rng=2))
    later = Samples.from_list(["a", "b"], [s for s in many[:2] if s.index > 0], 2, start=1)
    second = places(selfeval.build(later, np.zeros((2, 2)), rng=1))
    assert {place for place in one if place[1] == 1} <= set(second)


@pytest.mark.parametrize("per_sample", [1, 2, 5])
def test_a_sample_gives_as_many_rows_as_wanted(per_sample):
    samples = some_samples([60] * 4, prompts=[str(p) for p in range(200)])
    rows = list(selfeval.build(samples, np.zeros((200, 4)), per_sample=per_sample, rng=1))
    assert len(rows) == 800 * per_sample
    parts = np.array([5 if row.fraction == 1 else np.ceil(4 * row.fraction) for row in rows])
    counts = np.bincount(parts.astype(int), minlength=6)[1:]
    np.testing.assert_allclose(counts, 160 * per_sample, rtol=0.25)
    short = selfeval.build(some_samples([1, 1], prompts="a"), [[0, 0]], per_sample=1)
    assert len(list(short)) == 2


def test_unfinished_samples_are_not_compared():
    drawn = [a_sample(0, 0, 8), a_sample(0, 1, 8, "pruned"), a_sample(0, 2, 8, "aborted"),
             a_sample(0, 3, 8, "length")]
    rows = selfeval.build(Samples.from_list(["a"], drawn, 5), [[1.0, 9.0, 9.0, 0.0, np.nan]],
                          fractions=[])
    assert [(row.sample, row.label) for row in rows] == [(0, 1.0), (3, 0.0)]


def test_pairs_of_a_build_are_those_of_pair_labels():
    samples, scores = some_samples([9] * 6), np.arange(12.0).reshape(2, 6)
    rows = selfeval.build(samples, scores, labels="pairs", fractions=[], rng=5)
    assert sum(row.label for row in rows) == 6


@pytest.mark.parametrize(("options", "sentence"), [
    ({"labels": "hard"}, "labels must be 'soft' or 'pairs', got 'hard'"),
    ({"fractions": [0.5, 0.25]}, r"fractions must rise from above 0 to at most 1, got \[0.5, 0.2"),
    ({"fractions": [0.0, 1]}, "must rise from above 0"), ({"fractions": [2.0]}, "at most 1"),
    ({"fractions": [np.nan]}, "at most 1"), ({"fractions": [[0.5]]}, "at most 1"),
    ({"per_sample": 0}, "need 1 <= per_sample <= 5, the parts of a sample, got 0"),
    ({"per_sample": 4, "fractions": [0.5, 1]}, "need 1 <= per_sample <= 3"),
    ({"scores": [[1, 2]]}, r"shape \[P, n\] of the samples, \(2, 2\), got \(1, 2\)"),
    ({"problems": ["one"]}, "problems must name each of 2 prompts, got 1"),
    ({"eps": -1}, "eps"),
], ids=str)  # fmt: skip
def test_what_cannot_be_built_is_refused(options, sentence):
    options = {"scores": np.zeros((2, 2))} | options
    with pytest.raises(ValueError, match=sentence):  # at the call, not at the first row
        selfeval.build(some_samples([4, 4]), **options)


# -- files -----------------------------------------------------------------------------------

TURNS = [{"role": "system", "content": "Hm"}, {"role": "user", "content": "a", "name": "Al"}]


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name))
               for name in ("problem", "prompt", "sample", "tokens", "length", "label"))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("prompt", ["één\n", [3, 4], TURNS], ids=["text", "ids", "chat"])
def test_rows_come_back_from_a_file(tmp_path, ending, prompt):
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    samples = some_samples([400] * 3, prompts=[prompt] * 120)
    rows = list(selfeval.build(samples, np.random.default_rng(0).random((120, 3))))
    path = tmp_path / f"rows.{ending}"
    assert selfeval.write_rows(path, iter(rows)) == len(rows) == 1800
    assert len(rows) > 1000  # more than are written at once
    again = selfeval.read_rows(path)
    assert len(again) == len(rows)
    assert all(map(same, again, rows))
    assert again[0].tokens.dtype == np.int32
    assert list(tmp_path.iterdir()) == [path]


def test_ids_of_a_prompt_may_be_an_array(tmp_path):
    row = Row("a", np.array([3, 4], np.int32), 0, np.array([5], np.int32), 1, 0.5)
    selfeval.write_rows(tmp_path / "rows.jsonl", [row])
    assert selfeval.read_rows(tmp_path / "rows.jsonl")[0].prompt == [3, 4]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    def broken():
        yield Row("a", "a", 0, np.array([5], np.int32), 1, 0.5)
        raise RuntimeError("no more")

    for ending in ("jsonl", "parquet"):
        with pytest.raises(RuntimeError, match="no more"):
            selfeval.write_rows(tmp_path / f"rows.{ending}", broken())
    assert list(tmp_path.iterdir()) == []


def test_parquet_wants_prompts_of_one_kind(tmp_path):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    tokens = np.array([5], np.int32)
    rows = [Row("a", prompt, 0, tokens, 1, 0.5) for prompt in ("text", [3, 4])]
    with pytest.raises(ValueError, match=r"Parquet needs prompts of one kind.*JSONL takes all"):
        selfeval.write_rows(tmp_path / "rows.parquet", rows)
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.jsonl, got .*rows\.csv"):
        selfeval.write_rows(tmp_path / "rows.csv", rows)
    (tmp_path / "rows.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"rows.parquet is no Parquet file"):
        selfeval.read_rows(tmp_path / "rows.parquet")


GOOD = {"problem": "a", "prompt": "a", "sample": 0, "tokens": [1, 2], "length": 3, "label": 0.5}


@pytest.mark.parametrize(("change", "sentence"), [
    ({"label": 1.5}, r"line 2: label must be in \[0, 1\], found 1.5"),
    ({"label": "No"}, "line 2: field 'label' must be float or int, got str"),
    ({"tokens": []}, "line 2: tokens must be a list of 1 to length ids, found length=3"),
    ({"tokens": [1] * 4}, "line 2: tokens must be a list of 1 to length ids"),
    ({"tokens": [1.5]}, "line 2: tokens must be"), ({"tokens": [[1]]}, "line 2: tokens must be"),
    ({"tokens": [2**40]}, "line 2: tokens must be"), ({"tokens": [-1]}, "line 2: tokens must be"),
    ({"tokens": "ab"}, "must be list, got str"),
    ({"prompt": None}, "must be str or list, got NoneType"),
], ids=str)  # fmt: skip
def test_broken_rows_are_refused(tmp_path, change, sentence):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=sentence):
        selfeval.read_rows(path)


def test_files_without_a_row_are_refused(tmp_path):
    for ending in ("jsonl", "parquet"):
        with pytest.raises(ValueError, match=rf"one row to write .*rows\.{ending}, got none"):
            selfeval.write_rows(tmp_path / f"rows.{ending}", [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"need at least one row, but .*rows\.jsonl has none"):
        selfeval.read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "a"}))
    with pytest.raises(ValueError, match="line 1: need a field 'prompt'"):
        selfeval.read_rows(tmp_path / "rows.jsonl")


# -- recorded samples ------------------------------------------------------------------------


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_recorded_samples_are_read_in_both_forms(tmp_path):
    wide = lines(tmp_path / "wide.jsonl",
                 {"prompt": [1, 2], "tokens": [[5, 3], [6]], "correct": [True, False]},
                 {"prompt": [3], "problem": "q", "tokens": [[7]], "correct": [0.5]})
    tall = lines(tmp_path / "tall.jsonl",
                 {"prompt": [1, 2], "tokens": [5, 3], "reward": 1},
                 {"prompt": [3], "problem": "q", "tokens": [7], "reward": 0.5},
                 {"prompt": [1, 2], "tokens": [6], "reward": 0})
    for path in (wide, tall):
        found = selfeval.recorded(path)
        np.testing.assert_array_equal(found.scores, [[1, 0], [0.5, np.nan]])
        assert found.samples.prompts == [[1, 2], [3]]
        assert found.problems == ["0", "q"]
        assert [[t.tolist() for t in row] for row in found.samples.tokens] == [
            [[5, 3], [6]], [[7], []]]
        rows = list(selfeval.build(found.samples, found.scores, problems=found.problems))
        assert {(row.problem, row.sample, row.label) for row in rows} == {("0", 0, 1), ("0", 1, 0)}


def test_recorded_texts_end_as_they_ended(tmp_path):
    lm = letters_model(tmp_path / "letters")
    path = lines(tmp_path / "rows.jsonl",
                 {"prompt": "ab", "completion": "ba", "rating": 3},
                 {"prompt": "ab", "completion": "b", "rating": 2, "finish_reason": "length"})
    found = selfeval.recorded(path, "rating", lm)
    assert [t.tolist() for t in found.samples.tokens[0]] == [[8, 1], [3]]
    assert found.samples.text == [["ba", "b"]]
    assert found.scores.tolist() == [[3, 2]]
    with pytest.raises(ValueError, match="line 1: samples as text need a model"):
        selfeval.recorded(path, "rating")


def test_the_store_of_a_run_is_recorded(tmp_path):
    lm = letters_model(tmp_path / "letters")
    run = bon.evaluate(lm, Letters(), n=3, store=tmp_path / "run.sqlite", limit=4, progress=False)
    found = selfeval.recorded(tmp_path / "run.sqlite")
    np.testing.assert_array_equal(found.scores, run.rewards)
    np.testing.assert_array_equal(selfeval.recorded(tmp_path / "run.sqlite", "likelihood").scores,
                                  run.scores["likelihood"])
    assert found.problems == [problem.id for problem in run.problems]
    assert places(selfeval.build(found.samples, found.scores)) == (
        places(selfeval.build(run.samples, run.rewards)))
    with pytest.raises(ValueError, match="need scores by 'oracle', found likelihood"):
        selfeval.recorded(tmp_path / "run.sqlite", "oracle")


def test_the_store_of_a_policy_is_refused(tmp_path):
    path = tmp_path / "run.sqlite"
    bon.evaluate(letters_model(tmp_path / "letters"), Letters(), limit=4, progress=False,
                 policy=bon.policies.get("best_of_n", n=3), store=path)
    with pytest.raises(ValueError, match=r"run.sqlite: a policy decided how much was drawn"):
        selfeval.recorded(path)


@pytest.mark.parametrize(("row", "sentence"), [
    ({"tokens": [1], "reward": 1}, "need a field 'prompt'"),
    ({"prompt": "a", "reward": 1}, "need one of the fields tokens, completion"),
    ({"prompt": "a", "tokens": [1]}, "need one of the fields rewards, reward"),
    ({"prompt": "a", "tokens": [1], "reward": None}, "reward must hold finite numbers"),
    ({"prompt": "a", "tokens": [1, "b"], "reward": 1}, "a sample must be a text or a list of ids"),
    ({"prompt": "a", "tokens": [[1]], "reward": 1}, "field 'reward' must be list, got int"),
    ({"prompt": "a", "tokens": [[1]], "reward": [1, 2]}, r"as many entries of reward and .*\[1, 2"),
    ({"prompt": "a", "tokens": [1], "reward": 1, "finish_reason": "bored"},
     "line 1: finish_reason must be one of eos, .*, found 'bored'"),
    ({"prompt": "a", "tokens": [1], "reward": 1, "finish_reason": 5}, "finish_reason must .* 5"),
    ({"prompt": "a", "tokens": [1], "reward": 1, "finish_reason": ["eos"]}, "finish_reason must"),
    ({"prompt": "a", "tokens": [[1]], "reward": [1], "finish_reason": 5},
     "line 1: field 'finish_reason' must be list, got int"),
    ({"prompt": "a", "tokens": [99999999999], "reward": 1}, "line 1: a sample must be a text or"),
    ({"prompt": "a", "tokens": [[1], [-3]], "reward": [1, 1]}, "line 1: a sample must be a text"),
], ids=str)  # fmt: skip
def test_broken_recordings_are_refused(tmp_path, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        selfeval.recorded(lines(tmp_path / "rows.jsonl", row))
    with pytest.raises(ValueError, match="need at least one row, but the file is empty"):
        selfeval.recorded(lines(tmp_path / "rows.jsonl"))


# -- one step --------------------------------------------------------------------------------


def log_probabilities(lm, tokens):
    logits = lm.logits(np.asarray(tokens, np.int32)).astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def by_hand(lm, reference, kl=0.0):
    """Cross-entropy of each completion, divergence per token, and scores."""
    losses, scores, divergence, tokens = [], [], 0.0, 0
    for prompt, row, labels in zip(PROMPTS, COMPLETIONS, LABELS, strict=True):
        for completion, label in zip(row, labels, strict=True):
            asked = np.concatenate([prompt, completion, QUESTION.behind(completion)])
            logp, ref = log_probabilities(lm, asked), log_probabilities(reference, asked)
            losses.append(-label * logp[-1, 3] - (1 - label) * logp[-1, 4])
            scores.append(np.exp(logp[-1, 3]))
            own = slice(len(prompt) - 1, len(prompt) - 1 + len(completion))
            divergence += (np.exp(logp[own]) * (logp[own] - ref[own])).sum()
            tokens += len(completion)
    return np.array(losses), np.array(scores), divergence / tokens


def test_metrics_of_a_step_are_those_by_hand():
    lm, reference = model(), model(rng=1)
    losses, scores, divergence = by_hand(lm, reference)
    labels = np.concatenate(LABELS)
    trainer = bon.Trainer(lm, kl=0.3, reference=reference, optimizer=bon.AdamW(lr=1e-3))
    found = trainer.step_answers(PROMPTS, COMPLETIONS, LABELS, QUESTION)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75) + np.log(0.5)) / 4
    assert found["excess"] == pytest.approx(losses.mean() - entropy, rel=1e-6)
    assert found["brier"] == pytest.approx(((scores - labels) ** 2).mean(), rel=1e-5)
    assert found["auroc"] == auroc(scores, labels)
    assert found["kl"] == pytest.approx(divergence, rel=1e-5)
    assert found["trained_samples"] == 4
    # Three samples have no end token, which then stands in front of the question of two tokens.
    assert found["trained_tokens"] == 4 + 10 + 4 * 2 + 3
    assert lm.self_evaluation == QUESTION.settings()
    assert trainer.steps == 1


def one_by_one(lm, reference, kl):
    """The same gradient without shared prompts, from the parts that torch has confirmed."""
    from bonaware._learner import Learner

    learner, count = Learner(lm), 4
    tokens = sum(len(c) for row in COMPLETIONS for c in row)
    if kl:
        learner.set_reference(reference)
    for prompt, row, labels in zip(PROMPTS, COMPLETIONS, LABELS, strict=True):
        for completion, label in zip(row, labels, strict=True):
            own = np.array(completion, np.int32)
            before = np.array(prompt, np.int32)
            asked = np.concatenate([before, own, QUESTION.behind(own)])
            learner.accumulate([asked], [[np.array([3], np.int32), np.array([4], np.int32)]],
                               [[-label / count, -(1 - label) / count]])
            if kl:
                learner.accumulate_kl([before], [[own]], [[0.0]], [[kl / tokens]])
    return learner.gradients()


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_gradient_is_that_of_loss_and_divergence(kl):
    lm, reference = model(), model(rng=1)
    trainer = bon.Trainer(lm, kl=kl, reference=reference if kl else None)
    ids = [[np.array(c, np.int32) for c in row] for row in COMPLETIONS]
    prompts = [np.array(p, np.int32) for p in PROMPTS]
    trainer._learn_answers(prompts, ids, [np.array(row) for row in LABELS], QUESTION)
    found, want = trainer._learner.gradients(), one_by_one(model(), reference, kl)
    assert found.keys() == want.keys()
    for name, values in want.items():
        assert np.abs(found[name] - values).max() <= 1e-5 * np.abs(values).max(), name


def test_the_gradient_is_that_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    transformers.utils.logging.disable_progress_bar()
    lm, reference, kl = model(), model(rng=1), 0.3
    mirrors = []
    for name, one in (("own", lm), ("reference", reference)):
        one.save(tmp_path / name)
        mirrors.append(transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float32, attn_implementation="eager"))
    loss = torch.zeros(())
    for prompt, row, labels in zip(PROMPTS, COMPLETIONS, LABELS, strict=True):
        for completion, label in zip(row, labels, strict=True):
            asked = torch.tensor([[*prompt, *completion, *QUESTION.behind(completion).tolist()]])
            logp, ref = (torch.log_softmax(m(asked).logits[0], -1) for m in mirrors)
            loss = loss - (label * logp[-1, 3] + (1 - label) * logp[-1, 4]) / 4
            own = slice(len(prompt) - 1, len(prompt) - 1 + len(completion))
            loss = loss + kl / 10 * (logp[own].exp() * (logp[own] - ref[own].detach())).sum()
    loss.backward()
    trainer = bon.Trainer(lm, kl=kl, reference=reference)
    ids = [[np.array(c, np.int32) for c in row] for row in COMPLETIONS]
    metrics = trainer._learn_answers([np.array(p, np.int32) for p in PROMPTS], ids,
                                     [np.array(row) for row in LABELS], QUESTION)
    assert metrics["loss"] + kl * metrics["kl"] == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in mirrors[0].named_parameters():
        found, want = trainer._learner.gradients()[name], weight.grad.numpy()
        assert np.abs(found - want).max() <= 2e-5 * np.abs(want).max(), name


def test_a_trainer_with_a_loss_learns_answers_as_one_without():
    found = []
    for loss in (None, bon.losses.get("reinforce")()):
        trainer = bon.Trainer(model(), loss, kl=0.3, reference=model(rng=1))
        metrics = trainer.step_answers(PROMPTS, COMPLETIONS, LABELS, QUESTION)
        found.append({name: metrics[name] for name in ("loss", "kl", "grad_norm")})
    assert found[0] == found[1]
    assert found[0]["kl"] > 0


def test_texts_and_ids_are_the_same_step(tmp_path):
    found = []
    for prompts, completions in ((["ab", "c"], [["ba", "b"], ["a"]]),
                                 ([[7], [4]], [[[8], [3]], [[2]]])):
        trainer = bon.Trainer(letters_model(tmp_path / "letters"))
        metrics = trainer.step_answers(prompts, completions, [[1, 0.5], [0]], Question((5,), 2, 3))
        found.append(metrics["loss"])
    assert found[0] == found[1]


def test_a_step_on_adapters_leaves_the_weights_alone():
    lm = model()
    before = lm._model.get("q", 0).copy()
    trainer = bon.Trainer(lm, lora=bon.LoRA(rank=2), kl=0.1, optimizer=bon.AdamW(lr=0.02))
    losses = [trainer.step_answers(PROMPTS, COMPLETIONS, LABELS, QUESTION) for _ in range(8)]
    np.testing.assert_array_equal(lm._model.get("q", 0), before)
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]
    assert losses[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert losses[-1]["kl"] > 1e-4


def test_the_divergence_keeps_what_the_model_says():
    kept = {}
    for kl in (0.0, 3.0):
        lm, base = model(), model()
        trainer = bon.Trainer(lm, kl=kl, optimizer=bon.AdamW(lr=3e-3), reference=base)
        for _ in range(12):
            metrics = trainer.step_answers(PROMPTS, COMPLETIONS, LABELS, QUESTION)
        kept[kl] = metrics["kl"]
        assert metrics["loss"] < 2.5  # it began at 6.4; 0.3 is the least
    assert kept[3.0] < 0.3 * kept[0.0]


@pytest.mark.parametrize(("call", "sentence"), [
    (lambda t: t.step_answers(PROMPTS, COMPLETIONS, [[1, 2, 0], [0]], QUESTION),
     r"labels must be in \[0, 1\], but element 1 of prompt 0 is 2.0"),
    (lambda t: t.step_answers(PROMPTS, COMPLETIONS, [[1], [0]], QUESTION),
     "labels must have one number per completion"),
    (lambda t: t.step_answers([], [], [], QUESTION), "need at least one completion, got none"),
    (lambda t: t.step_answers(PROMPTS, COMPLETIONS, LABELS), "was not trained for self-evaluation"),
    (lambda t: t.step_answers([[99]], [[[1]]], [[1]], QUESTION), "vocabulary"),
    (lambda t: t.step(PROMPTS, COMPLETIONS, np.ones((2, 3))), "answers behind samples by step_ans"),
])  # fmt: skip
def test_steps_that_cannot_be_made_are_refused(call, sentence):
    trainer = bon.Trainer(model())
    with pytest.raises(ValueError, match=sentence):
        call(trainer)
    assert trainer.steps == 0
    assert trainer.lm.self_evaluation is None


def test_a_score_head_has_no_answers(tiny):
    trainer = bon.Trainer(bon.LM.load(tiny("counting", labels=1)))
    with pytest.raises(ValueError, match="self-evaluation needs a model that predicts tokens"):
        trainer.step_answers([[1]], [[[2]]], [[1]], QUESTION)


# -- training --------------------------------------------------------------------------------

ASKED = {"question": [5], "target": 2, "other": 3}  # " ", "a", "b"


class Ranks(Letters):
    """A text is the better the earlier in the alphabet it begins."""

    def reward(self, problem, text):
        return " .cba".find(text[:1]) / 4 if text else 0.0


def rows_of(folder, split="test", n=8, rng=0):
    """Rows of a model over letters."""
    run = bon.evaluate(letters_model(folder), Ranks(), n=n, split=split, rng=rng, progress=False)
    return list(selfeval.build(run.samples, run.rewards, rng=rng,
                               problems=[problem.id for problem in run.problems]))


def measured(lm, rows):
    scores = selfeval.score_rows(lm, rows, **ASKED, progress=False)
    return selfeval.calibration(scores, [row.label for row in rows],
                                fractions=[row.fraction for row in rows])


def test_build_train_calibrate(tmp_path):
    rows, held_out = (rows_of(tmp_path / "letters", split) for split in ("train", "test"))
    lm = letters_model(tmp_path / "letters")
    before = measured(lm, held_out)
    trainer = selfeval.train(
        lm, rows, 40, **ASKED, prompts=7, optimizer=bon.AdamW(lr=0.01), out=tmp_path / "run",
        evaluation=selfeval.HeldOut(held_out), eval_every=40, progress=False)
    after = measured(lm, held_out)
    assert trainer.steps == 40
    assert after.ece < 0.2 < before.ece
    assert after.brier < 0.3 * before.brier
    assert after.auroc > 0.65
    assert abs(before.auroc - 0.5) < 0.1
    saved = bon.LM.load(tmp_path / "run" / "step-000040")
    assert saved.self_evaluation == {"question": [5], "target": 2, "other": 3, "ends": []}
    np.testing.assert_array_equal(selfeval.score_rows(saved, held_out, progress=False),
                                  selfeval.score_rows(lm, held_out, progress=False))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["eval/auroc"] == after.auroc
    assert records[-1]["eval/auroc whole"] == after.parts[-1].auroc
    # A verifier with this model needs no further word.
    samples = letters_model(tmp_path / "letters").generate(["abc"], 4, max_new_tokens=3)
    scores = bon.verifiers.get("self_evaluation", model=saved).score([None], samples)
    assert scores.shape == (1, 4)


def test_a_run_goes_on_bit_for_bit(tmp_path):
    rows = rows_of(tmp_path / "letters")
    ends = []
    for name, stops in (("once", [6]), ("twice", [3, 6])):
        for steps in stops:
            lm = letters_model(tmp_path / "letters")
            selfeval.train(lm, rows, steps, **ASKED, prompts=4, per_prompt=10, kl=0.1,
                           optimizer=bon.AdamW(lr=0.01), out=tmp_path / name, resume=True,
                           progress=False)
        ends.append(selfeval.score_rows(lm, rows, progress=False))
    np.testing.assert_array_equal(*ends)
    with pytest.raises(FileExistsError, match="holds a run"):
        selfeval.train(letters_model(tmp_path / "letters"), rows, 6, **ASKED, out=tmp_path / "once")


def test_a_run_goes_on_with_its_question_only(tmp_path):
    rows = rows_of(tmp_path / "letters")
    lm = letters_model(tmp_path / "letters")
    selfeval.train(lm, rows, 1, **ASKED, prompts=2, out=tmp_path / "run", progress=False)
    for change in ({"question": [4]}, {"target": 4}, {"other": 6}):
        other = letters_model(tmp_path / "letters")
        before = other._model.get("q", 0).copy()
        with pytest.raises(ValueError, match=r"step-000001 was trained to be asked \{.*\[5\].*but "
                                             r"here it is \{.*: go on with the question"):
            selfeval.train(other, rows, 2, **ASKED | change, prompts=2, out=tmp_path / "run",
                           resume=True, progress=False)
        assert other.self_evaluation is None
        np.testing.assert_array_equal(other._model.get("q", 0), before)
    again = letters_model(tmp_path / "letters")
    selfeval.train(again, rows, 1, **ASKED, prompts=2, out=tmp_path / "run", resume=True,
                   progress=False)
    assert again.self_evaluation == lm.self_evaluation


def test_a_model_that_learned_nothing_is_asked_what_it_was(tmp_path):
    rows = rows_of(tmp_path / "letters")
    lm = letters_model(tmp_path / "letters")
    lm.self_evaluation = before = {"question": [4], "target": 6, "other": 7, "ends": []}
    selfeval.train(letters_model(tmp_path / "letters"), rows, 1, **ASKED, prompts=2,
                   out=tmp_path / "run", progress=False)

    def source(trainer):
        assert lm.self_evaluation["question"] == [5]
        raise ArithmeticError

    for error, options in ((FileExistsError, {"source": rows, "out": tmp_path / "run"}),
                           (ValueError, {"source": rows, "prompts": 0}),
                           (ValueError, {"source": rows, "kl": -1.0}),
                           (ArithmeticError, {"source": source})):
        with pytest.raises(error):
            selfeval.train(lm, steps=2, **ASKED, progress=False, **options)
        assert lm.self_evaluation == before


def test_options_of_rows_are_refused_beside_a_source(tmp_path):
    lm = letters_model(tmp_path / "letters")
    source = selfeval.OnPolicy(Letters(), n=2, prompts=2)
    for options in ({"prompts": -5}, {"per_prompt": 3}, {"seed": 1}):
        with pytest.raises(ValueError, match="prompts, per_prompt and seed are for rows, but the"):
            selfeval.train(lm, source, 1, **ASKED, progress=False, **options)


def test_every_epoch_takes_every_prompt_and_some_of_its_rows(tmp_path):
    rows = rows_of(tmp_path / "letters")
    asked = []

    class Trainer:
        steps = 0

        def step_answers(self, prompts, completions, labels):
            asked.append((prompts, completions, labels))
            return {}

    source, trainer = selfeval.Answers(rows, 4, per_prompt=6, seed=1), Trainer()
    count = len({row.problem for row in rows})
    for trainer.steps in range(count):
        source(trainer)
    prompts = [prompt for step in asked for prompt in step[0]]
    assert sorted(prompts) == sorted([*{row.prompt for row in rows}] * 4)
    known = {(row.prompt, tuple(row.tokens), row.label) for row in rows}
    for step in asked:
        for prompt, texts, labels in zip(*step, strict=True):
            assert len(texts) == len(labels) == 6
            assert {(prompt, tuple(t), q) for t, q in zip(texts, labels, strict=True)} <= known
    trainer.steps = 0
    source(trainer)
    assert str(asked[-1]) == str(asked[0])
    alone, asked[:] = selfeval.Answers(rows, 1, per_prompt=6), []
    for trainer.steps in range(2 * count):
        alone(trainer)
    picked = [sorted(map(str, step[1][0])) for step in asked if step[0] == [rows[0].prompt]]
    assert len(picked) == 2
    assert picked[0] != picked[1]  # other rows in every epoch


def test_rows_of_a_prompt_are_picked_once_and_in_their_order():
    rows = [Row("a", "a", i, np.array([i], np.int32), 1, 0.5) for i in range(9)]
    picked = []

    class Trainer:
        def step_answers(self, prompts, completions, labels):
            picked.append([int(tokens[0]) for tokens in completions[0]])
            return {}

    source, trainer = selfeval.Answers(rows, 1, per_prompt=6), Trainer()
    for trainer.steps in range(20):
        source(trainer)
    assert all(len(own) == len(set(own)) == 6 and own == sorted(own) for own in picked)
    assert set().union(*picked) == set(range(9))


def test_prompts_of_one_name_are_not_mixed():
    tokens = np.array([5], np.int32)
    rows = [Row("0", prompt, 0, tokens, 1, 0.5) for prompt in ([1], [2], [1])]
    lm = model()
    scores = selfeval.score_rows(lm, rows, question=[7], target=3, other=4, progress=False)
    for row, score in zip(rows, scores, strict=True):
        want = np.exp(log_probabilities(lm, [*row.prompt, 5, 7])[-1, 3])
        assert score == pytest.approx(want, abs=1e-6)


def test_samples_drawn_for_every_step_teach_it_too(tmp_path):
    held_out = rows_of(tmp_path / "letters")
    lm = letters_model(tmp_path / "letters")
    before = measured(lm, held_out)
    source = selfeval.OnPolicy(Ranks(), n=8, prompts=6, per_sample=2, seed=2)
    trainer = selfeval.train(lm, source, 40, **ASKED, optimizer=bon.AdamW(lr=0.01), kl=0.5,
                             progress=False)
    after = measured(lm, held_out)
    assert trainer.steps == 40
    assert after.ece < 0.3 * before.ece
    assert after.brier < 0.3 * before.brier
    assert after.auroc > 0.65


def test_steps_on_policy_depend_on_seed_and_step_only(tmp_path):
    losses = []
    for _ in range(2):
        lm = letters_model(tmp_path / "letters")
        lm.self_evaluation = Question((5,), 2, 3).settings()
        source = selfeval.OnPolicy(Letters(), n=4, prompts=3, labels="pairs", verifier="likelihood")
        metrics = source(bon.Trainer(lm))
        assert {"loss", "auroc", "reward", "new_tokens", "rollout_seconds"} <= metrics.keys()
        losses.append(metrics["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("verifier", [None, "likelihood"])
def test_labels_on_policy_are_of_the_verifier_where_there_is_one(tmp_path, verifier):
    lm = letters_model(tmp_path / "letters")
    lm.self_evaluation = Question((5,), 2, 3).settings()
    source = selfeval.OnPolicy(Letters(), n=4, prompts=3, verifier=verifier)
    build, seen = source.build, []

    def spied(samples, scores, **options):
        seen.append((samples, scores))
        return build(samples, scores, **options)

    source.build = spied
    source(bon.Trainer(lm))
    ((samples, scores),) = seen
    if verifier:
        np.testing.assert_array_equal(scores, samples.sum_logp)
    else:
        assert set(scores.ravel()) <= {0.0, 1.0}


def test_sources_that_teach_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="need at least one row, got none"):
        selfeval.Answers([])
    rows = [Row("a", "a", 0, np.array([5], np.int32), 1, 0.5)]
    for options in ({"prompts": 0}, {"per_prompt": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="need prompts >= 1, per_prompt >= 1 and seed >= 0"):
            selfeval.Answers(rows, **options)
    with pytest.raises(ValueError, match="need n >= 2 samples to compare, and no expert, got n=1"):
        selfeval.OnPolicy(Letters(), n=1)
    with pytest.raises(ValueError, match="no expert, got n=4, expert='solution'"):
        selfeval.OnPolicy(Letters(), n=4, expert="solution")


# -- calibration -----------------------------------------------------------------------------


def random_case(count=400, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.random(count).round(2)
    return scores, (rng.random(count) < scores**2).astype(float), rng.random(count)


def test_figures_of_calibration_are_those_by_hand():
    scores, labels, _ = random_case()
    found = selfeval.calibration(scores, labels, bins=7)
    bins = [[(s, q) for s, q in zip(scores.tolist(), labels.tolist(), strict=True)
             if (b == 6 or s < (b + 1) / 7) and s >= b / 7] for b in range(7)]
    assert found.counts.tolist() == [len(own) for own in bins]
    assert found.counts.sum() == found.count == 400
    error = 0.0
    for b, own in enumerate(bins):
        score, label = (sum(values) / len(own) for values in zip(*own, strict=True))
        assert found.scores[b] == pytest.approx(score)
        assert found.labels[b] == pytest.approx(label)
        error += len(own) / 400 * abs(score - label)
    assert found.ece == pytest.approx(error)
    assert found.brier == pytest.approx(np.mean((scores - labels) ** 2))
    assert found.auroc == auroc(scores, labels == 1)
    assert found.parts == ()


def test_soft_labels_rank_like_the_outcomes_they_stand_for():
    """AUROC of probabilities against the mean over all outcomes, weighted by their chances."""
    scores = [0.2, 0.5, 0.5, 0.9]
    labels = [Fraction(1, 4), Fraction(1, 2), Fraction(0), Fraction(1)]
    above = both = Fraction(0)
    for outcome in itertools.product([0, 1], repeat=4):
        chance = Fraction(1)
        for y, q in zip(outcome, labels, strict=True):
            chance *= q if y else 1 - q
        for i, j in itertools.permutations(range(4), 2):
            if outcome[i] > outcome[j]:
                both += chance
                above += chance * (Fraction(int(scores[i] > scores[j]))
                                   + Fraction(int(scores[i] == scores[j]), 2))
    found = selfeval.calibration(scores, [float(q) for q in labels])
    assert found.auroc == pytest.approx(float(above / both), rel=1e-12)


def test_what_is_calibrated_has_no_error():
    scores = np.repeat([0.0, 0.25, 0.5, 1.0], 4)
    labels = [0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]
    found = selfeval.calibration(scores, labels)
    assert found.ece == 0.0
    assert selfeval.calibration(scores, scores).brier == 0.0
    assert selfeval.calibration([0.5], [0.75]).ece == 0.25
    assert selfeval.calibration([0.5], [0.75]).auroc is None
    assert selfeval.calibration([1.0, 0.999], [1, 1], bins=3).counts.tolist() == [0, 0, 2]


def test_parts_are_those_of_the_fractions():
    scores, labels, fractions = random_case(seed=1)
    fractions[::4] = 1.0
    found = selfeval.calibration(scores, labels, fractions=fractions, edges=[0.3, 0.7, 1])
    names = ["0-30 %", "30-70 %", "70-100 %", "whole"]
    masks = [fractions <= 0.3, (fractions > 0.3) & (fractions <= 0.7),
             (fractions > 0.7) & (fractions < 1), fractions == 1]
    assert [part.name for part in found.parts] == names
    for part, own in zip(found.parts, masks, strict=True):
        want = selfeval.calibration(scores[own], labels[own])
        assert (part.count, part.ece, part.brier, part.auroc) == (
            want.count, want.ece, want.brier, want.auroc)
    assert (found.name, found.count) == ("all", 400)
    only = selfeval.calibration(scores[own], labels[own], fractions=fractions[own])
    assert [part.name for part in only.parts] == ["whole"]
    text = found.to_text()
    assert [line.split("  ")[0] for line in text.splitlines()[1:6]] == [*names, "all"]
    assert repr(found) == text
    figures = json.loads(json.dumps(found.to_dict()))
    assert [part["samples"] for part in figures["parts"]] == names
    assert sum(one["count"] for one in figures["bins"]) == 400
    empty = selfeval.calibration([0.05], [1.0]).to_dict()["bins"][9]
    assert empty == {"low": 0.9, "high": 1.0, "count": 0, "score": None, "label": None}
    assert "-\n" in selfeval.calibration([0.05], [1.0]).to_text() + "\n"


@pytest.mark.parametrize(("arguments", "options", "sentence"), [
    (([0.5], [0.5, 1]), {}, r"must have the same shape, got \(1,\) and \(2,\)"),
    (([1.5], [1]), {}, "scores must be in"), (([0.5], [np.nan]), {}, "labels must be in"),
    (([], []), {}, r"need scores \[N\] of at least one sample, got shape \(0,\)"),
    (([[0.5]], [[1.0]]), {}, "need scores"), (([0.5], [1]), {"bins": 0}, "need bins >= 1, got 0"),
    (([0.5], [1]), {"bins": True}, "need bins"), (([0.5], [1]), {"bins": 2.5}, "got 2.5"),
    (([0.5], [1]), {"fractions": [0.0]}, r"fractions must be in \(0, 1\]"),
    (([0.5], [1]), {"fractions": [1.0, 1.0]}, "same shape"),
    (([0.5], [1]), {"fractions": [1.0], "edges": [2]}, "fractions must rise"),
], ids=str)  # fmt: skip
def test_figures_that_are_none_are_refused(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        selfeval.calibration(*arguments, **options)


# -- plots -----------------------------------------------------------------------------------


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot

    yield matplotlib.pyplot
    matplotlib.pyplot.close("all")


def test_reliability_is_drawn_for_every_part(pyplot):
    scores, labels, fractions = random_case()
    found = selfeval.calibration(scores, labels, fractions=fractions)
    ax = plot.reliability(found)
    assert len(ax.lines) == 1 + len(found.parts)
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), found.parts[0].scores)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), found.parts[0].labels)
    sizes = ax.collections[0].get_sizes()
    assert sizes.argmax() == found.parts[0].counts.argmax()
    assert f"ECE {found.parts[0].ece:.3f}" in ax.get_legend().get_texts()[0].get_text()
    other = pyplot.figure().gca()
    assert plot.reliability(selfeval.calibration([0.05, 0.95], [0, 1]), other) is other
    assert other.lines[1].get_xdata().tolist() == [0.05, 0.95]  # empty bins are no points


def test_auroc_is_drawn_by_fraction(pyplot):
    scores, labels, fractions = random_case()
    fractions[::3] = 1.0
    found = selfeval.calibration(scores, labels, fractions=fractions)
    ax = plot.auroc_by_fraction(found)
    assert ax.lines[0].get_ydata().tolist() == [part.auroc for part in found.parts]
    assert ax.lines[0].get_xdata().tolist() == [0.125, 0.375, 0.625, 0.875, 1.0]
    assert [tick.get_text() for tick in ax.get_xticklabels()][-1] == "whole"
    with pytest.raises(ValueError, match=r"give calibration\(..., fractions=...\)"):
        plot.auroc_by_fraction(selfeval.calibration(scores, labels))


# -- command line ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: holds a model "letters", and task "letters" is known."""
    letters_model(tmp_path / "tokenizer").save(tmp_path / "letters")
    monkeypatch.setattr(bon.tasks, "get", lambda name, **options: Letters())
    monkeypatch.chdir(tmp_path)
    return tmp_path


BUILD = ["selfeval", "build", "--model", "letters", "--task", "letters", "--n", "6",
         "--threads", "1"]
TRAIN = ["train", "--model", "letters", "--out", "run"]
ANSWERS = ["--question-ids", "5", "--target", "2", "--other", "3", "--threads", "1"]


def output(capsys, *argv):
    code = cli.main([*argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_commands_build_train_and_calibrate(folder, capsys):
    code, built = output(capsys, *BUILD, "--out", "rows.jsonl", "--fractions", "0.5,1")
    rows = selfeval.read_rows("rows.jsonl")
    assert code == 0
    assert built == {"rows": len(rows), "prompts": 14, "whole": 84, "file": "rows.jsonl",
                     "label": pytest.approx(np.mean([row.label for row in rows]))}
    assert (folder / "rows.sqlite").exists()
    assert cli.main([*BUILD, "--split", "test", "--out", "test.jsonl"]) == 0
    assert "rows of 13 prompts, 78 of whole samples" in capsys.readouterr().out
    argv = ["selfeval", "train", "--model", "letters", *ANSWERS, "--lr", "0.01", "--out", "run",
            "--eval-rows", "test.jsonl", "--eval-every", "20", "--prompts", "7"]
    code, trained = output(capsys, *argv, "--rows", "rows.jsonl", "--steps", "20")
    assert (code, trained["steps"]) == (0, 20)
    assert trained["metrics"]["eval/brier"] < 0.1
    code, trained = output(capsys, *argv, "--rows", "rows.jsonl", "--steps", "40", "--resume")
    assert (code, trained["steps"]) == (0, 40)
    code, found = output(capsys, "selfeval", "calibrate", "--model", trained["model"], "--rows",
                         "test.jsonl", "--threads", "1")
    assert code == 0
    assert found["auroc"] == trained["metrics"]["eval/auroc"]
    assert found["model"] == "step-000040"
    assert cli.main(["selfeval", "calibrate", "--model", "letters", "--rows", "test.jsonl",
                     *ANSWERS, "--renormalise", "--bins", "4"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("generated     count   score   label     ECE   Brier   AUROC\n25-50 %")
    assert "0.75-1.00" in table


def test_rows_are_the_same_whether_drawn_at_once_or_not(folder, capsys, monkeypatch):
    assert cli.main([*BUILD, "--out", "once.jsonl"]) == 0
    stream, drawn = bon.LM.stream, []

    def interrupted(self, *args, **options):
        for sample in stream(self, *args, **options):
            drawn.append(sample)
            if len(drawn) == 30:
                raise KeyboardInterrupt
            yield sample

    class Interrupted:
        stats = None

        def __init__(self, *args, **options):
            self.samples = interrupted(*args, **options)

        def __iter__(self):
            return self.samples

    with monkeypatch.context() as patch:
        patch.setattr(bon.LM, "stream", lambda self, *a, **o: Interrupted(self, *a, **o))
        assert cli.main([*BUILD, "--out", "twice.jsonl"]) == 1
    assert not (folder / "twice.jsonl").exists()
    assert "interrupted: 29 of 84 samples" in capsys.readouterr().err
    assert cli.main([*BUILD, "--out", "twice.jsonl"]) == 0
    assert "store: twice.sqlite (continued)" in capsys.readouterr().err
    assert (folder / "twice.jsonl").read_bytes() == (folder / "once.jsonl").read_bytes()
    # And from the store alone, without a model.
    assert cli.main(["selfeval", "build", "--samples", "once.sqlite", "--out", "third.jsonl"]) == 0
    assert (folder / "third.jsonl").read_bytes() == (folder / "once.jsonl").read_bytes()


def test_training_draws_for_a_task(folder, capsys):
    code, found = output(capsys, "selfeval", "train", "--model", "letters", "--task", "letters",
                         *ANSWERS, "--n", "4", "--prompts", "3", "--steps", "2", "--lora-rank", "2",
                         "--kl", "0.1", "--out", "run")
    assert (code, found["steps"]) == (0, 2)
    assert found["metrics"]["new_tokens"] > 0


def test_labels_come_from_a_verifier_if_one_is_given(folder, capsys):
    argv = [*BUILD, "--verifier", "likelihood", "--fractions", "1", "--eps", "100"]
    code, found = output(capsys, *argv, "--out", "rows.jsonl")
    assert (code, found["label"]) == (0, 1.0)
    assert cli.main([*argv[:-1], "0", "--out", "other.jsonl", "--store", "rows.sqlite"]) == 0
    labels = [row.label for row in selfeval.read_rows("other.jsonl") if row.fraction == 1]
    assert len(set(labels)) == 6  # no two likelihoods tie in a prompt of six
    capsys.readouterr()


def test_calibrate_draws_a_figure(folder, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib").use("Agg")
    assert cli.main([*BUILD, "--out", "rows.jsonl"]) == 0
    assert cli.main(["selfeval", "calibrate", "--model", "letters", "--rows", "rows.jsonl",
                     *ANSWERS, "--plot", "figure.png"]) == 0
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("argv", "code", "sentence"), [
    (["build", "--out", "x.jsonl"], 2, "give either --samples FILE or --task NAME"),
    (["build", "--task", "letters", "--samples", "s", "--out", "x.jsonl"], 2, "give either"),
    (["build", "--task", "letters", "--out", "x.jsonl"], 2, "it needs --model FOLDER"),
    (["build", "--samples", "s", "--out", "x.jsonl", "--n", "3"], 2,
     "--n is for drawing; --samples are drawn"),
    (["build", "--samples", "s", "--out", "x.jsonl", "--top-k", "3"], 2, "--top-k is for drawing"),
    (["build", "--samples", "s", "--out", "x.jsonl", "--limit", "3"], 2, "--limit is for drawing"),
    (["build", "--samples", "s", "--out", "x.jsonl", "--verifier", "exact"], 2, "--verifier is"),
    (["build", "--samples", "s", "--out", "x.jsonl", "--threads", "1"], 2, "--threads is for"),
    (["build", "--samples", "s", "--out", "x.jsonl", "--seed", "1", "--model", "letters",
      "--threads", "1"], 1, "No such file"),
    ([*BUILD[1:], "--out", "x.jsonl", "--scores", "exact"], 2, "--scores is for --samples"),
    ([*BUILD[1:], "--out", "x.jsonl", "--n", "1"], 2, "--n must be at least 2, to compare samples"),
    ([*BUILD[1:], "--out", "x.txt"], 1, "path that ends in .parquet or .jsonl, got 'x.txt'"),
    ([*TRAIN, "--rows", "r.jsonl", "--temperature", "0.5"], 2, "--temperature is for --task"),
    ([*TRAIN, "--rows", "r.jsonl", "--limit", "3"], 2, "--limit is for --task"),
    ([*TRAIN, "--rows", "r.jsonl", "--fractions", "1"], 2, "--fractions is for --task"),
    ([*TRAIN, "--task", "letters", "--per-prompt", "3"], 2, "--per-prompt is for --rows"),
    ([*TRAIN, "--rows", "r.jsonl", "--eval-every", "3"], 2, "--eval-every needs --eval-rows FILE"),
    ([*TRAIN, "--rows", "r.jsonl", "--seed", "1"], 1, "r.jsonl: No such file"),
    (["build", "--samples", "no.sqlite", "--out", "x.jsonl"], 1, "no.sqlite: No such file"),
    (["train", "--model", "letters", "--out", "run"], 2, "give either --rows FILE or --task NAME"),
    (["train", "--model", "letters", "--rows", "r.jsonl", "--out", "run", "--resume"], 2,
     "run holds no run to go on with"),
    (["calibrate", "--model", "letters", "--rows", "r.jsonl"], 1, "r.jsonl: No such file"),
    (["calibrate", "--model", "letters"], 2, "the following arguments are required: --rows"),
    ([], 2, "the following arguments are required: COMMAND"),
], ids=str)  # fmt: skip
def test_wrong_command_lines_are_one_sentence(folder, capsys, argv, code, sentence):
    try:
        found = cli.main(["selfeval", *argv])
    except SystemExit as error:
        found = error.code
    assert not (folder / "x.sqlite").exists()  # nothing is drawn before
    assert found == code
    assert sentence in capsys.readouterr().err


def test_selfeval_is_imported_when_it_is_used():
    assert bon.selfeval is sys.modules["bonaware.selfeval"]
