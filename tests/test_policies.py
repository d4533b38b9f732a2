"""bonaware.policies: replays against plain simulations, exact formulas, and errors."""

import copy
import dataclasses
import itertools
import json
from collections import Counter
from fractions import Fraction
from math import ceil, comb, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonaware import policies
from bonaware.policies import Decision, Policy, Seen, fit_threshold, get, replay, sweep
from bonaware.policies._course import Course
from bonaware.policies.adaptive_consistency import _leads as leads
from bonaware.samples import Sample, Samples

N, LONGEST, DEEPEST = 6, 9, 30  # most samples, tokens, and tokens of a checkpoint
GRID = [0.0, 0.25, 0.5, 0.75, 1.0]
PRUNE = {"checkpoints": (2, 5), "fractions": (0.5, 0.4), "n": N}
# One of each kind, and options that make a difference; no schedule of temperatures.
CASES = {
    "best_of_n": [{"n": 1}, {"n": N}],
    "adaptive": [{"threshold": t, "n": N, "waves": w, "anneal": "constant"}
                 for t in (0.5, 1.0) for w in (1, (1, 3))],
    "prune": [PRUNE, {"checkpoints": 3, "fractions": 0.25, "n": 5}],
    "prune_random": [PRUNE | {"rng": 3}],
    "adaptive_consistency": [{"confidence": c, "n": N, "waves": w}
                             for c in (0.7, 0.9) for w in (1, (1, 3))],
    "early_stopping_consistency": [{"window": 2, "n": N}, {"window": 3, "n": 5}],
    "speculative_rejection": [{"budget": 8, "n": N}, {"budget": 20, "n": N, "alpha": 0.2}],
}
EACH = [pytest.param(get(name, **options), id=f"{name}-{place}")
        for name, several in CASES.items() for place, options in enumerate(several)]


@dataclasses.dataclass
class Stored:
    """Samples as lists [P][N], and what was read of them, prefixes of every length."""

    lengths: list
    scores: list
    prefix_scores: list  # [P][N][DEEPEST + 1]
    answers: list

    def samples(self):
        rows = [[sample(p, i, length) for i, length in enumerate(row)]
                for p, row in enumerate(self.lengths)]
        return Samples([f"prompt {p}" for p in range(len(rows))], rows)

    def replay(self, policy):
        at = list(policy.checkpoints)
        prefixes = np.array(self.prefix_scores, float)[:, :, at]
        return replay(policy, self.samples(), self.scores, prefixes, self.answers)


def sample(p, i, length, temperature=1.0):
    logp = -np.arange(length, dtype=np.float32)
    tokens = 100 * p + 10 * i + np.arange(length, dtype=np.int32)
    return Sample(p, i, tokens, logp, logp, -logp, f"{p} {i}", "eos", temperature)


def some(seed, prompts):
    """Stored samples of every length, with many ties; from a seed, which is fast to draw."""
    rng = np.random.default_rng(seed)
    shape = (prompts, N)
    return Stored(
        rng.integers(1, LONGEST + 1, shape).tolist(),
        rng.choice(GRID, shape).tolist(),
        rng.choice(GRID, (*shape, DEEPEST + 1)).tolist(),
        rng.choice(np.array(["a", "a", "b", "c", "", None], object), shape).tolist(),
    )


STORED = st.builds(some, st.integers(0, 2**32), st.integers(1, 3))
SCORE = st.sampled_from(GRID)


# -- plain simulations --------------------------------------------------------
#
# Each says of one prompt how many tokens it draws of which samples: {index: tokens}.


def whole(row, drawn):
    return [i for i, tokens in drawn.items() if tokens == row["lengths"][i]]


def plain_best_of_n(policy, row):
    return {i: row["lengths"][i] for i in range(policy.n)}


def plain_adaptive(policy, row):
    waves = policy.waves if isinstance(policy.waves, tuple) else (policy.waves,)
    drawn = {}
    for size in itertools.chain(waves, itertools.repeat(waves[-1])):
        for i in range(len(drawn), min(len(drawn) + size, policy.n)):
            drawn[i] = row["lengths"][i]
        if len(drawn) == policy.n or max(row["scores"][i] for i in drawn) >= policy.threshold:
            return drawn


def plain_prune(policy, row):
    drawn = {i: row["lengths"][i] for i in range(policy.n)}
    for checkpoint, fraction in zip(policy.checkpoints, policy.fractions, strict=True):
        waiting = [i for i, tokens in drawn.items() if tokens > checkpoint]
        waiting.sort(key=lambda i: (-row["prefix_scores"][i][checkpoint], i))
        for i in waiting[ceil(Fraction(str(fraction)) * len(waiting)):]:
            drawn[i] = checkpoint
    return drawn


def exactly_leads(a, b):
    """Probability that p > 1/2 under Beta(a+1, b+1): the polynomial integrated term by term."""
    def up_to(x):
        terms = ((-1) ** j * comb(b, j) * x ** (a + j + 1) / (a + j + 1) for j in range(b + 1))
        return sum(terms, Fraction(0))

    return 1 - up_to(Fraction(1, 2)) / up_to(Fraction(1))


def plain_adaptive_consistency(policy, row):
    waves = policy.waves if isinstance(policy.waves, tuple) else (policy.waves,)
    drawn = {}
    for size in itertools.chain(waves, itertools.repeat(waves[-1])):
        for i in range(len(drawn), min(len(drawn) + size, policy.n)):
            drawn[i] = row["lengths"][i]
        votes = sorted(Counter(row["answers"][i] for i in drawn if row["answers"][i]).values())
        a, b = [0, 0, *votes][-1], [0, 0, *votes][-2]
        if len(drawn) == policy.n or exactly_leads(a, b) >= policy.confidence:
            return drawn


def plain_early_stopping_consistency(policy, row):
    drawn = {}
    while len(drawn) < policy.n:
        window = range(len(drawn), min(len(drawn) + policy.window, policy.n))
        drawn |= {i: row["lengths"][i] for i in window}
        first = row["answers"][window[0]]
        if first and all(row["answers"][i] == first for i in window):
            break
    return drawn


def plain_speculative_rejection(policy, row):
    """Token by token, for samples none of which ends before the budget is full."""
    live, drawn = list(range(policy.n)), {}
    for tokens in range(1, LONGEST + 1):
        while len(live) > 1 and len(live) * tokens > policy.budget:
            live.sort(key=lambda i: (-row["prefix_scores"][i][tokens - 1], i))
            for _ in range(max(1, floor(Fraction(str(policy.alpha)) * len(live)))):
                if len(live) > 1:
                    drawn[live.pop()] = tokens - 1
    return drawn | dict.fromkeys(live, LONGEST)


def rows_of(stored):
    for p in range(len(stored.lengths)):
        yield {name: getattr(stored, name)[p]
               for name in ("lengths", "scores", "prefix_scores", "answers")}


def check_against(stored, policy, plain):
    found = stored.replay(policy)
    for p, row in enumerate(rows_of(stored)):
        wanted = plain(policy, row)
        assert {s.index: len(s.tokens) for s in found.samples[p]} == wanted
        assert found.chosen[p] == plain_choice(policy, row, whole(row, wanted))


def plain_choice(policy, row, ended):
    if not ended:
        return -1
    if "answers" not in policy.needs:
        return max(sorted(ended), key=lambda i: row["scores"][i])  # max keeps the first
    votes = Counter(row["answers"][i] for i in sorted(ended) if row["answers"][i])
    answer = max(votes, key=votes.get) if votes else row["answers"][min(ended)]
    return next(i for i in sorted(ended) if row["answers"][i] == answer)


@pytest.mark.parametrize("name", ["best_of_n", "adaptive", "prune", "adaptive_consistency",
                                  "early_stopping_consistency"])
@settings(deadline=None, max_examples=12)
@given(stored=STORED)
def test_replay_draws_what_a_plain_simulation_draws(name, stored):
    for options in CASES[name]:
        check_against(stored, get(name, **options), globals()[f"plain_{name}"])


@settings(deadline=None, max_examples=12)
@given(stored=STORED, budget=st.integers(N, DEEPEST), alpha=st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_speculative_rejection_keeps_to_its_budget_token_by_token(stored, budget, alpha):
    stored.lengths = [[LONGEST + 1] * N for _ in stored.lengths]  # nothing ends by itself
    policy = get("speculative_rejection", budget=budget, n=N, alpha=alpha)
    found = stored.replay(policy)
    for p, row in enumerate(rows_of(stored)):
        drawn = {s.index: min(len(s.tokens), LONGEST) for s in found.samples[p]}
        assert drawn == plain_speculative_rejection(policy, row)


@settings(deadline=None, max_examples=12)
@given(stored=STORED, budget=st.integers(N, DEEPEST))
def test_speculative_rejection_never_holds_more_than_its_budget(stored, budget):
    found = stored.replay(get("speculative_rejection", budget=budget, n=N))
    for lengths in found.samples.lengths:
        for tokens in range(1, LONGEST + 1):
            live = (lengths >= tokens).sum()
            assert live <= 1 or live * tokens <= budget
        assert (lengths >= 1).sum() == N


# -- what holds for every policy ----------------------------------------------


@pytest.mark.parametrize("policy", EACH)
@settings(deadline=None, max_examples=6)
@given(stored=STORED)
def test_a_replay_holds_the_stored_samples_from_the_first_to_at_most_the_nth(policy, stored):
    found = stored.replay(policy)
    for row in found.samples.valid:
        drawn = int(row.sum())
        assert 1 <= drawn <= policy.n
        assert row[:drawn].all()
    for s in found.samples:
        tokens = sample(s.prompt, s.index, stored.lengths[s.prompt][s.index]).tokens
        np.testing.assert_array_equal(s.tokens, tokens[:len(s.tokens)])
        if s.finish_reason == "pruned":
            assert len(s.tokens) in policy.checkpoints
            assert (len(s.tokens) < len(tokens), s.text) == (True, None)
            assert np.isnan(found.scores[s.prompt, s.index])
        else:
            assert (len(s.tokens), s.text) == (len(tokens), f"{s.prompt} {s.index}")
            assert found.scores[s.prompt, s.index] == stored.scores[s.prompt][s.index]


@pytest.mark.parametrize("policy", EACH)
@settings(deadline=None, max_examples=6)
@given(stored=STORED, other=STORED)
def test_decisions_do_not_depend_on_what_is_not_drawn_yet(policy, stored, other):
    found = stored.replay(policy)
    changed = copy.deepcopy(stored)
    for p, i in itertools.product(range(len(stored.lengths)), range(N)):
        far = int(found.samples.lengths[p, i])
        if found.samples.finish_reason[p, i] in ("pruned", ""):
            q = p % len(other.lengths)
            changed.scores[p][i], changed.answers[p][i] = other.scores[q][i], other.answers[q][i]
            changed.lengths[p][i] = max(far + 1, other.lengths[q][i])
            changed.prefix_scores[p][i] = (stored.prefix_scores[p][i][:far + 1]
                                           + other.prefix_scores[q][i][far + 1:])
    same(changed.replay(policy), found)


def same(a, b):
    for name in ("valid", "lengths", "finish_reason"):
        np.testing.assert_array_equal(getattr(a.samples, name), getattr(b.samples, name))
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.chosen, b.chosen)


@pytest.mark.parametrize("policy", EACH)
@settings(deadline=None, max_examples=4)
@given(stored=STORED)
def test_a_prompt_is_decided_without_the_prompts_behind_it(policy, stored):
    one = Stored(*(getattr(stored, f.name)[:1] for f in dataclasses.fields(stored)))
    found, alone = stored.replay(policy), one.replay(policy)
    np.testing.assert_array_equal(found.samples.lengths[:1], alone.samples.lengths)
    np.testing.assert_array_equal(found.chosen[:1], alone.chosen)


@settings(deadline=None, max_examples=12)
@given(stored=STORED, threshold=SCORE)
def test_a_larger_n_changes_nothing_where_a_smaller_one_had_enough(stored, threshold):
    few, many = (stored.replay(get("adaptive", threshold=threshold, n=n, anneal="constant"))
                 for n in (3, N))
    np.testing.assert_array_equal(few.samples.valid[:, :3], many.samples.valid[:, :3])
    enough = ~many.samples.valid[:, 3]
    np.testing.assert_array_equal(few.chosen[enough], many.chosen[enough])


@pytest.mark.parametrize("policy", EACH)
@settings(deadline=None, max_examples=4)
@given(stored=STORED, order=st.randoms(use_true_random=False))
def test_the_order_in_which_samples_come_to_rest_does_not_matter(policy, stored, order):
    course, row = Course(policy, 0), next(rows_of(stored))
    while not (step := course.next()).nothing:
        under_way = [*step.begin, *step.go_on]
        order.shuffle(under_way)
        for i in under_way:
            assert not course.at_rest
            rest = course.checkpoint(i)
            if rest and row["lengths"][i] > rest:
                course.held(i, row["prefix_scores"][i][rest])
            else:
                course.ended(i, "eos", row["lengths"][i], row["scores"][i], row["answers"][i])
    found = stored.replay(policy)
    assert course.seen().lengths.tolist() == [len(s.tokens) for s in found.samples[0]]
    assert course.choose() == found.chosen[0]


@pytest.mark.parametrize("policy", EACH)
def test_a_description_makes_the_same_policy_again(policy):
    assert get(**policies.describe(policy)) == policy
    assert policy.temperatures(0.7).tolist() == [0.7] * policy.n


def test_there_is_a_file_for_each_policy():
    assert policies.available() == tuple(sorted(CASES))


# -- one by one ---------------------------------------------------------------


def test_the_best_sample_is_taken_and_not_the_last():
    stored = Stored([[3] * 4], [[0.2, 0.9, 0.9, 0.1]], [[[0.0] * 10] * 4], [[None] * 4])
    assert stored.replay(get("best_of_n", n=4)).chosen.tolist() == [1]
    waves = get("adaptive", threshold=0.8, n=4, waves=4, anneal="constant")
    assert stored.replay(waves).chosen.tolist() == [1]
    never = get("adaptive", threshold=1.0, n=4, anneal="constant")
    assert stored.replay(never).chosen.tolist() == [1]


def test_a_sample_without_a_score_is_taken_last_and_reaches_no_threshold():
    stored = Stored([[3] * 3], [[np.nan, 0.0, np.nan]], [[[0.0] * 10] * 3], [[None] * 3])
    found = stored.replay(get("adaptive", threshold=0.0, n=3, anneal="constant"))
    assert (found.samples.valid.sum(), found.chosen[0]) == (2, 1)


def test_adaptive_draws_less_for_a_lower_threshold():
    scores = np.random.default_rng(0).random((40, N))
    stored = Stored([[2] * N] * 40, scores, [[[0.0] * 10] * N] * 40, [[None] * N] * 40)
    begun = [stored.replay(get("adaptive", threshold=t, n=N, anneal="constant")).samples.valid.sum()
             for t in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert begun == sorted(set(begun))
    assert (begun[0], begun[-1]) == (40, 40 * N)


def test_prune_lets_a_fraction_of_those_that_wait_go_on():
    """16 samples of which 6 have ended at the checkpoint, the last of them right there."""
    lengths = [4] * 5 + [8] + [20] * 10
    prefixes = [[i / 16] * 21 for i in range(16)]
    stored = Stored([lengths], [[0.0] * 16], [prefixes], [[None] * 16])
    found = stored.replay(get("prune", checkpoints=8, fractions=0.25, n=16)).samples
    assert found.lengths[0].tolist() == [4] * 5 + [8] * 8 + [20] * 3
    assert (found.finish_reason == "pruned").sum() == 7


def test_prune_drops_a_beginning_that_could_not_be_scored_first():
    seen = Seen(0, ["held"] * 3, prefix_scores=np.array([[np.nan], [-np.inf], [0.0]]), at=0)
    assert get("prune", checkpoints=8, fractions=0.6, n=3).decide(seen) == Decision(drop=[0])
    assert get("prune", checkpoints=8, fractions=0.3, n=3).decide(seen) == Decision(drop=[0, 1])


@settings(deadline=None, max_examples=12)
@given(stored=STORED)
def test_prune_random_drops_as_many_as_prune_whatever_their_scores(stored):
    pruned = stored.replay(get("prune", checkpoints=2, fractions=0.5, n=N))
    rate = (pruned.samples.finish_reason == "pruned").sum(1)
    policy = get("prune_random", checkpoints=2, fractions=0.5, n=N)
    blind = replay(policy, stored.samples(), stored.scores)
    np.testing.assert_array_equal((blind.samples.finish_reason == "pruned").sum(1), rate)


def test_prune_random_treats_samples_alike_and_differs_by_prompt_and_seed():
    seen = [Seen(prompt, ["held"] * 8, at=0) for prompt in range(800)]
    options = {"checkpoints": 4, "fractions": 0.25, "n": 8}
    dropped = [get("prune_random", **options).decide(one).drop for one in seen]
    counts = np.bincount(np.concatenate(dropped), minlength=8)
    assert abs(counts - 600).max() < 4 * np.sqrt(800 * 0.75 * 0.25)  # 4 standard deviations
    others = [get("prune_random", **options, rng=1).decide(one).drop for one in seen]
    shared = sum(a == b for a, b in zip(dropped, others, strict=True))
    assert shared < 3 * 800 / comb(8, 2)


def test_prune_random_ranks_a_sample_the_same_whoever_else_waits():
    policy = get("prune_random", checkpoints=(4, 8), fractions=(0.01, 0.01), n=4)

    def winner(held, at):
        reasons = ["held" if i in held else "eos" for i in range(4)]
        return set(held).difference(policy.decide(Seen(5, reasons, at=at)).drop)

    some = [set(c) for size in range(1, 5) for c in itertools.combinations(range(4), size)]
    for many, few in itertools.product(some, repeat=2):
        if winner(many, 0) <= few <= many:
            assert winner(few, 1) == winner(many, 0)


def test_adaptive_consistency_stops_at_four_unanimous_samples_and_never_before():
    policy = get("adaptive_consistency", confidence=0.95, n=40)
    for drawn in range(1, 5):
        for answers in itertools.product(["a", "b", None], repeat=drawn):
            seen = Seen(0, ["eos"] * drawn, answers=answers)
            assert (policy.decide(seen).draw == 0) == (answers == ("a",) * 4
                                                       or answers == ("b",) * 4)


@pytest.mark.parametrize("votes", range(1, 12))
def test_unanimous_answers_give_one_minus_a_power_of_two(votes):
    seen = Seen(0, ["eos"] * votes, answers=["a"] * votes)
    exact = 1 - Fraction(1, 2 ** (votes + 1))
    reached, missed = float(exact), float(np.nextafter(float(exact), 1))
    assert get("adaptive_consistency", confidence=reached, n=40).decide(seen).draw == 0
    assert get("adaptive_consistency", confidence=missed, n=40).decide(seen).draw == 1


def test_the_leading_answer_is_as_sure_as_the_beta_distribution_says():
    for a, b in itertools.product(range(0, 60, 7), repeat=2):
        assert leads(a, b) == float(exactly_leads(a, b))


def expected_draws(p, window, n):
    """The formula of early-stopping self-consistency, exactly."""
    q, most = sum(share**window for share in p), n // window
    stopped = sum(q * (1 - q) ** i * (i + 1) for i in range(most - 1))
    return window * (stopped + (1 - q) ** (most - 1) * most)


@pytest.mark.parametrize(("window", "n"), [(1, 3), (2, 6), (3, 6), (6, 6)])
def test_windows_take_the_expected_number_of_samples_exactly(window, n):
    p = {"a": Fraction(1, 2), "b": Fraction(1, 3), "c": Fraction(1, 6)}
    texts = list(itertools.product(p, repeat=n))
    stored = Stored([[1] * n] * len(texts), None, [[[0.0]] * n] * len(texts), texts)
    drawn = replay(get("early_stopping_consistency", window=window, n=n), stored.samples(),
                   answers=texts).samples.valid.sum(1)
    mean = sum(int(count) * np.prod([p[answer] for answer in text])
               for count, text in zip(drawn, texts, strict=True))
    assert mean == expected_draws(p.values(), window, n)


def test_consensus_takes_the_majority_of_all_that_was_drawn():
    answers = [["a", "a", "b", "a", "b", "b"]]
    found = replay(get("early_stopping_consistency", window=2, n=6),
                   Stored([[1] * 6], 0, 0, answers).samples(), answers=answers)
    assert (found.samples.valid.sum(), found.chosen[0]) == (2, 0)
    answers = [["a", "b", "b", "a", "a", "a"]]
    found = replay(get("early_stopping_consistency", window=2, n=6),
                   Stored([[1] * 6], 0, 0, answers).samples(), answers=answers)
    assert (found.samples.valid.sum(), found.chosen[0]) == (6, 0)
    assert np.isnan(found.scores).all()


def test_what_has_not_ended_is_never_taken():
    consensus, scored = get("adaptive_consistency"), get("best_of_n")
    seen = Seen(0, ["aborted", "eos"], scores=np.array([np.nan, 0.1]), answers=[None, "b"])
    assert (consensus.choose(seen), scored.choose(seen)) == (1, 1)
    seen = Seen(0, ["aborted", "pruned"], scores=np.array([0.9, 0.9]), answers=["a", "a"])
    assert (consensus.choose(seen), scored.choose(seen)) == (-1, -1)


def test_speculative_rejection_tells_its_checkpoints():
    assert get("speculative_rejection", budget=64, n=16).checkpoints == (4, 8, 16, 32)
    assert get("speculative_rejection", budget=64, n=1).checkpoints == ()
    # full again at once: 16, 15, ... samples all fill 20 tokens with one each until 10 are left
    slow = get("speculative_rejection", budget=20, n=16, alpha=0.01)
    assert slow.checkpoints == (1, 2, 3, 4, 5, 6, 10)


# -- thresholds ---------------------------------------------------------------


@st.composite
def scored(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, N)))
    cells = st.sampled_from([*GRID, np.nan])
    scores = draw(st.lists(cells, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    rewards = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 3, shape)
    return np.reshape(scores, shape), rewards.astype(float)


@settings(deadline=None, max_examples=20)
@given(table=scored(), waves=st.sampled_from([1, 2, (1, 3), 9]))
def test_sweep_is_what_replays_at_each_threshold_give(table, waves):
    scores, rewards = table
    prompts, n = scores.shape
    stored = Stored([[1] * n] * prompts, scores, 0, 0).samples()
    found = sweep(scores, rewards, waves=waves)

    def replayed(threshold):
        policy = get("adaptive", threshold=threshold, n=n, waves=waves, anneal="constant")
        run = replay(policy, stored, scores)
        taken = rewards[np.arange(prompts), run.chosen]
        return run.samples.valid.sum() / prompts, taken.mean()

    for threshold, *means in zip(found.thresholds, found.mean_samples, found.mean_reward,
                                 strict=True):
        assert means == pytest.approx(replayed(float(threshold)))
    between = np.append(0.0, (found.thresholds[1:] + found.thresholds[:-1]) / 2)
    for place, threshold in enumerate(between):  # the same as at the next one
        assert replayed(float(threshold))[0] == pytest.approx(found.mean_samples[place])


def test_fit_threshold_comes_closest_from_below():
    scores = np.random.default_rng(1).random((50, 8))
    every = sweep(scores)
    for wished in (1.0, 1.2, 2.5, 7.9, 8.0, 99.0):
        threshold, mean = fit_threshold(scores, wished)
        assert mean == every.mean_samples[every.mean_samples <= wished].max()
        stored = Stored([[1] * 8] * 50, scores, 0, 0).samples()
        policy = get("adaptive", threshold=threshold, n=8, anneal="constant")
        assert replay(policy, stored, scores).samples.valid.sum() / 50 == pytest.approx(mean)


def test_fit_threshold_for_an_accuracy_takes_the_fewest_samples_that_reach_it():
    rng = np.random.default_rng(2)
    scores = rng.random((60, 8))
    rewards = (rng.random((60, 8)) < scores).astype(float)
    every = sweep(scores, rewards)
    wished = 0.7
    threshold, mean = fit_threshold(scores, rewards=rewards, accuracy=wished)
    enough = every.mean_reward >= wished
    assert mean == every.mean_samples[enough].min()
    assert threshold == every.thresholds[enough].min()


def test_fit_threshold_of_fewer_samples_is_that_of_the_first_ones():
    scores = np.random.default_rng(3).random((30, 8))
    assert fit_threshold(scores, 2.0, n=4) == fit_threshold(scores[:, :4], 2.0)
    assert fit_threshold(scores, 3.0, waves=2)[1] <= 3.0


def test_a_perfect_scorer_without_ties_gains_19_percent_with_1_2_samples():
    """Scores uniform in (0, 1): a threshold of 1/6 takes 1.2 samples, and gives their mean
    above it, 7/12, where one sample gives 1/2 and the best of 16 16/17."""
    exact = (7 / 12 - 1 / 2) / (16 / 17 - 1 / 2)
    assert exact == pytest.approx(0.189, abs=5e-4)
    scores = np.random.default_rng(4).random((20000, 16))
    threshold, mean = fit_threshold(scores, 1.2)
    assert threshold == pytest.approx(1 / 6, abs=0.005)
    assert mean == pytest.approx(1.2, abs=1e-4)
    first = np.argmax(scores >= threshold, axis=1)
    table = np.stack([scores[np.arange(len(scores)), first], scores[:, 0], scores.max(1)])
    taken, one, best = table.mean(1)
    assert (taken - one) / (best - one) == pytest.approx(exact, abs=0.005)
    low, high = policies.gain(*table[:, :1000])[1:]
    assert low < 100 * exact < high
    assert high - low < 12


@pytest.mark.parametrize(("message", "call"), [
    ("no threshold takes 1.5 samples on average or less; the least here is 2",
     lambda: fit_threshold([[0.1, 0.2]], 1.5, waves=2)),
    ("no threshold reaches an accuracy of 0.9; the best here is 0.5",
     lambda: fit_threshold([[0.1], [0.2]], rewards=[[0], [1]], accuracy=0.9)),
    ("scores must be, but row 0, column 1 is 1.5", lambda: fit_threshold([[0.1, 1.5]], 1)),
    (r"the shape \[P, N\], none of them 0, got \(2,\)", lambda: fit_threshold([0.1, 0.2], 1)),
    (r"none of them 0, got \(0, 2\)", lambda: fit_threshold(np.empty((0, 2)), 1)),
    ("need scores of n=3 samples per prompt, got 2", lambda: fit_threshold([[0.1, 0.2]], 1, n=3)),
    ("need n >= 1, got 0", lambda: fit_threshold([[0.1, 0.2]], 1, n=0)),
    ("need a wave >= 1, got 0", lambda: fit_threshold([[0.1, 0.2]], 1, waves=0)),
    ("rewards must be finite, but row 0, column 1 is not",
     lambda: sweep([[0.1, 0.2]], rewards=[[1.0, np.nan]])),
    ("rewards and scores must have the same shape",
     lambda: fit_threshold([[0.1]], rewards=[1.0], accuracy=1)),
])  # fmt: skip
def test_fit_threshold_says_what_is_wrong(message, call):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("message", "options"), [
    ("give either mean_samples or accuracy", {}),
    ("give either mean_samples or accuracy", {"mean_samples": 1, "accuracy": 1}),
    ("needs rewards", {"accuracy": 1}),
    ("mean_samples must be a number, got str", {"mean_samples": "1"}),
])  # fmt: skip
def test_fit_threshold_wants_one_wish(message, options):
    with pytest.raises(TypeError, match=message):
        fit_threshold([[0.5]], **options)


# -- errors -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "message"), [
    ("best_of_n", {"n": 0}, "need n >= 1, got 0"),
    ("adaptive", {"threshold": 1.01}, "need 0 <= threshold <= 1, got 1.01: no score reaches"),
    ("adaptive", {"threshold": -0.1}, "need 0 <= threshold <= 1, got -0.1"),
    ("adaptive", {"threshold": float("nan")}, "need 0 <= threshold <= 1, got nan"),
    ("adaptive", {"threshold": 0.9, "n": 0}, "need n >= 1, got 0"),
    ("adaptive", {"threshold": 0.9, "waves": []}, "need at least one wave, got none"),
    ("adaptive", {"threshold": 0.9, "waves": [2, 0]}, "need a wave >= 1, got 0"),
    ("adaptive", {"threshold": 0.9, "anneal": "linear"}, "'exponential', 'constant' or n factors"),
    ("adaptive", {"threshold": 0.9, "n": 2, "anneal": [1.0]}, "needs n=2 finite factors"),
    ("adaptive", {"threshold": 0.9, "n": 2, "anneal": [0, 0]}, "at most one such sample, got 2"),
    ("prune", {"checkpoints": [], "fractions": []}, "at least one number of tokens, rising"),
    ("prune", {"checkpoints": [4, 4], "fractions": [0.5, 0.5]}, r"rising, got \[4, 4\]"),
    ("prune", {"checkpoints": [8, 4], "fractions": [0.5, 0.5]}, r"rising, got \[8, 4\]"),
    ("prune", {"checkpoints": 0, "fractions": 0.5}, "need checkpoints >= 1, got 0"),
    ("prune", {"checkpoints": 4, "fractions": 0.0}, "need 0 < a fraction <= 1, got 0.0"),
    ("prune", {"checkpoints": 4, "fractions": 1.5}, "need 0 < a fraction <= 1, got 1.5"),
    ("prune", {"checkpoints": [4, 8], "fractions": 0.5}, "each of 2 checkpoints, got 1"),
    ("prune", {"checkpoints": 4, "fractions": 0.5, "n": 0}, "need n >= 1, got 0"),
    ("prune_random", {"checkpoints": 4, "fractions": 2}, "need 0 < a fraction <= 1, got 2"),
    ("prune_random", {"checkpoints": 4, "fractions": 1, "rng": -1}, "need rng >= 0, got -1"),
    ("adaptive_consistency", {"confidence": 1}, "need 0.5 < confidence < 1, got 1"),
    ("adaptive_consistency", {"confidence": 0.5}, "without a vote it is 0.5"),
    ("adaptive_consistency", {"waves": ()}, "need at least one wave, got none"),
    ("adaptive_consistency", {"n": 0}, "need n >= 1, got 0"),
    ("early_stopping_consistency", {"window": 0}, "need window >= 1, got 0"),
    ("early_stopping_consistency", {"window": 5, "n": 4}, "window <= n, got window=5, n=4"),
    ("speculative_rejection", {"budget": 15}, "one token for each of n=16 samples, got 15"),
    ("speculative_rejection", {"budget": 99, "alpha": 0}, "need 0 < alpha <= 1, got 0"),
    ("speculative_rejection", {"budget": 99, "n": 0}, "need n >= 1, got 0"),
])  # fmt: skip
def test_options_out_of_range_are_refused_with_a_sentence(name, options, message):
    with pytest.raises(ValueError, match=message):
        get(name, **options)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("best_of_n", {"n": 2.0}, "n must be an integer, got float"),
    ("adaptive", {"threshold": "0.9"}, "threshold must be a number, got str"),
    ("adaptive", {"threshold": 0.9, "waves": True}, "a wave must be an integer, got bool"),
    ("prune", {"checkpoints": 4.5, "fractions": 0.5}, "checkpoints must be an integer, got float"),
    ("prune", {"checkpoints": "4", "fractions": 0.5}, "checkpoints must be an integer, got str"),
    ("prune", {"checkpoints": 4, "fractions": "0.5"}, "a fraction must be a number, got str"),
    ("prune", {"checkpoints": 4}, "'fractions' is missing"),
    ("prune_random", {"checkpoints": 4, "fractions": 1, "rng": None}, "rng must be an integer"),
    ("speculative_rejection", {"budget": 99, "checkpoints": 4}, "there is no 'checkpoints'"),
])  # fmt: skip
def test_options_of_a_wrong_kind_are_refused_with_a_sentence(name, options, message):
    with pytest.raises(TypeError, match=message):
        get(name, **options)


def test_options_may_be_arrays():
    policy = get("prune", checkpoints=np.array([2, 5]), fractions=np.array([0.5, 0.4]), n=N)
    assert policy == get("prune", **PRUNE)
    assert hash(policy) == hash(get("prune", **PRUNE))


@pytest.mark.parametrize("policy", [
    get("best_of_n", n=np.int64(3)),
    get("adaptive", threshold=np.float32(0.5), n=np.int32(3), waves=np.int64(2)),
    get("adaptive", threshold=0.5, n=np.int64(3), anneal=np.float32([0, 0.5, 1])),
    get("prune_random", checkpoints=np.int64(4), fractions=np.float32(0.5), rng=np.uint32(7)),
    get("speculative_rejection", budget=np.int64(64), n=np.int16(4), alpha=np.float32(0.5)),
    get("adaptive_consistency", confidence=np.float32(0.75), waves=np.array([1, 2])),
    get("early_stopping_consistency", window=np.int64(2), n=np.int64(4)),
], ids=lambda policy: type(policy).__name__)
def test_options_may_be_numbers_of_numpy(policy):
    told = policies.describe(policy)
    assert json.loads(json.dumps(told)) == told
    assert get(**told) == policy


TWO = Stored([[3, 3]], [[0.1, 0.2]], [[[0.0] * 10] * 2], [["a", "b"]])
PAIR = get("best_of_n", n=2)


@pytest.mark.parametrize(("message", "call"), [
    (r"BestOfN\(n=2\) needs scores", lambda: replay(PAIR, TWO.samples())),
    ("needs prefix_scores and scores",
     lambda: replay(get("prune", checkpoints=2, fractions=1, n=2), TWO.samples())),
    ("needs answers", lambda: replay(get("adaptive_consistency"), TWO.samples(), TWO.scores)),
    (r"scores must have shape \[1, 2\], got \[1, 3\]",
     lambda: replay(PAIR, TWO.samples(), [[1, 2, 3]])),
    (r"prefix_scores must have shape \[1, 2, 1\], got \[1, 2, 2\]",
     lambda: replay(get("prune", checkpoints=2, fractions=1, n=2), TWO.samples(), TWO.scores,
                    np.zeros((1, 2, 2)))),
    ("answers must be 1 lists of 2", lambda: replay(PAIR, TWO.samples(), TWO.scores,
                                                    answers=[["a"]])),
    ("asks for sample 2 of prompt 0, but it is not there",
     lambda: replay(get("best_of_n", n=3), TWO.samples(), TWO.scores)),
    ("from index 0 on, got start=1",
     lambda: replay(PAIR, Samples(["?"], [[None, None]], start=1), TWO.scores)),
])  # fmt: skip
def test_replay_says_what_is_missing(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_replay_refuses_samples_that_are_not_whole():
    found = replay(get("prune", checkpoints=2, fractions=0.5, n=2), TWO.samples(), TWO.scores,
                   np.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match="sample 1 of prompt 0, but that is 'pruned'"):
        replay(PAIR, found.samples, TWO.scores)


def annealed(*temperatures):
    return Samples(["?"], [[sample(0, i, 3, t) for i, t in enumerate(temperatures)]])


def test_replay_refuses_samples_of_another_schedule_of_temperatures():
    scores = np.zeros((1, 3))
    policy = get("adaptive", threshold=0.5, n=3)
    for base in (1.0, 0.6):
        replay(policy, annealed(0, 0.5 * base, 0.75 * base), scores)
    replay(policy, annealed(0.0, np.nan, np.nan), scores)  # nobody knows
    replay(get("best_of_n", n=3), annealed(0.0, 0.5, 0.75), scores)  # left to the caller
    with pytest.raises(ValueError, match="sample 0 of prompt 0 at 0, but it was drawn at 1:"):
        replay(policy, annealed(1.0, 1.0, 1.0), scores)
    with pytest.raises(ValueError, match=r"sample 2 of prompt 0 at 0\.75, but it was"):
        replay(policy, annealed(0.0, 0.5, 0.5), scores)
    greedy = get("adaptive", threshold=0.5, n=1)
    replay(greedy, annealed(0.0), scores[:, :1])
    for temperatures in ([1.0], [1.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="sample 0 of prompt 0 at 0, but it was drawn at 1:"):
            replay(greedy, annealed(*temperatures), scores[:, :len(temperatures)])


class Wants(Policy):
    """Asks for the same each time."""

    n = 2
    checkpoints = (2,)

    def __init__(self, decision):
        self.decision = decision

    def __repr__(self):
        return "Wants"

    def decide(self, seen):
        return self.decision if seen.drawn else Decision(draw=2)


@pytest.mark.parametrize(("decision", "message"), [
    (Decision(draw=1), "1 more samples behind 2, of at most n=2"),
    (Decision(draw=-1), "-1 more samples behind 2"),
    (Decision(drop=[1]), r"to drop samples \[1\], which are not held"),
    (Decision(drop=[7]), r"to drop samples \[7\], which are not held"),
])  # fmt: skip
def test_a_policy_that_wants_what_it_may_not_is_named(decision, message):
    course = Course(Wants(decision), 3)
    course.next()
    course.held(0, 0.5)
    course.ended(1, "eos", 1, 0.5)
    with pytest.raises(ValueError, match=f"policy Wants wants, for prompt 3, {message}"):
        course.next()


def test_a_policy_must_begin_with_a_sample_and_not_draw_beside_held_ones():
    policy = Wants(Decision(draw=1))
    policy.n = 9
    course = Course(policy, 0)
    course.next()
    course.held(0, 0.5)
    course.ended(1, "eos", 1, 0.5)
    with pytest.raises(ValueError, match="1 more samples while 1 are held at a checkpoint"):
        course.next()
    policy.decide = lambda seen: Decision()
    with pytest.raises(ValueError, match="wants, for prompt 0, no sample at all"):
        Course(policy, 0).next()
