"""Drawing under a policy, in the engine: it agrees with replay, whatever runs beside what."""

import warnings

import numpy as np
import pytest
import tiny as tiny_models
from fakes import Digits

import bonaware as bon
from bonaware import _drawing, _scheduling, policies
from bonaware.policies import Decision, Policy, replay

PROMPTS = [[1, 5, 9], [3] * 40, [7, 2], [1, 5, 9], [11, 4, 8, 8]]
QUESTION = {"question": [6, 7, 8, 9, 10], "target": 3, "other": 4}
LENGTH = 16


@pytest.fixture(scope="module")
def lm(tiny):
    return bon.LM.load(tiny("llama2"), threads=1)


def judge(lm=None):
    return bon.verifiers.get("self_evaluation", lm=lm, **QUESTION)


def drawn(lm, policy, verifier=None, **changes):
    settings = {"max_new_tokens": LENGTH, "rng": 3, "temperature": 1.5, "progress": False}
    return lm.generate(PROMPTS, policy=policy, verifier=verifier or judge(), **settings | changes)


def scheduled(lm, prompts, policy, max_new_tokens):
    """A drawing that has not begun."""
    requests = [bon.samples.Request(p, np.array(ids, np.int32), range(policy.n))
                for p, ids in enumerate(prompts)]
    return lm.scheduled(
        requests, prompts, policy, _scheduling.Guide(policy, judge()), temperature=1.0, top_k=None,
        top_p=None, min_p=None, max_new_tokens=max_new_tokens, stop_strings=(), rng=0)


@pytest.fixture(scope="module")
def whole(lm):
    """All samples drawn whole, with what self-evaluation and likelihood say of them."""
    return drawn(lm, policies.get("best_of_n", n=8))


def middle(scores):
    """A threshold that some prompts reach early and some do not."""
    return float(np.nanquantile(scores, 0.85))


def policies_of(whole):
    threshold = middle(whole.scores)
    return [
        policies.get("best_of_n", n=8),
        policies.get("adaptive", threshold=threshold, n=8, anneal="constant"),
        policies.get("adaptive", threshold=threshold, n=8, waves=[1, 3], anneal="constant"),
        policies.get("prune", n=8, checkpoints=(4, 9), fractions=(0.5, 0.25)),
        policies.get("prune_random", n=8, checkpoints=(6,), fractions=(0.25,)),
        policies.get("speculative_rejection", n=8, budget=48, alpha=0.5),
    ]


def same(one, other):
    """Whether two Samples hold the same, bit for bit."""
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(one.finish_reason, other.finish_reason)
    for name in ("tokens", "logp", "sampled_logp"):
        for row, others in zip(getattr(one, name), getattr(other, name), strict=True):
            for a, b in zip(row, others, strict=True):
                np.testing.assert_array_equal(a, b)
    assert one.text == other.text


def offline(lm, policy, whole):
    """What replay makes of whole samples, scored by fresh forward passes."""
    verifier = judge(lm)
    problems = [None] * len(whole)
    scores = verifier.score(problems, whole)
    prefix = verifier.prefix_scores(problems, whole, policy.checkpoints)
    return replay(policy, whole, scores, prefix if policy.checkpoints else None)


def test_scores_on_the_live_cache_are_those_of_a_fresh_forward_pass(lm, whole):
    fresh = judge(lm).score([None] * len(whole), whole)
    np.testing.assert_allclose(whole.scores, fresh, rtol=1e-5)
    assert whole.stats.question_tokens == 5 * whole.valid.sum()


def test_a_run_and_its_replay_agree_sample_for_sample(lm, whole):
    for policy in policies_of(whole):
        online, found = drawn(lm, policy), offline(lm, policy, whole)
        same(online, found.samples)
        np.testing.assert_array_equal(online.chosen, found.chosen)
        np.testing.assert_allclose(online.scores, found.scores, rtol=1e-5)


def test_asking_leaves_samples_bit_for_bit_as_they_are(lm, whole):
    plain = lm.generate(PROMPTS, n=8, max_new_tokens=LENGTH, rng=3, temperature=1.5,
                        progress=False)
    same(whole, plain)


@pytest.mark.parametrize("slots", [8, 11])
def test_policies_do_not_depend_on_what_lives_beside(lm, whole, slots, monkeypatch):
    expected = [drawn(lm, policy) for policy in policies_of(whole)]
    monkeypatch.setattr(_drawing, "MAX_SLOTS", slots)
    monkeypatch.setattr(_scheduling, "MAX_SLOTS", slots)
    for policy, before in zip(policies_of(whole), expected, strict=True):
        now = drawn(lm, policy)
        same(now, before)
        np.testing.assert_array_equal(now.scores, before.scores)


@pytest.mark.parametrize(("share", "slots"), [(1, 256), (1000, 256), (1000, 8)])
def test_when_samples_are_read_changes_nothing(lm, whole, share, slots, monkeypatch):
    """Each as soon as it rests, or none while another can be drawn, in many slots or few."""
    expected = [drawn(lm, policy) for policy in policies_of(whole)]
    monkeypatch.setattr(_scheduling, "READ_SHARE", share)
    monkeypatch.setattr(_drawing, "MAX_SLOTS", slots)
    for policy, wanted in zip(policies_of(whole), expected, strict=True):
        found = drawn(lm, policy)
        same(found, wanted)
        np.testing.assert_array_equal(found.scores, wanted.scores)
        np.testing.assert_array_equal(found.chosen, wanted.chosen)


def test_adaptive_stops_early_and_takes_the_best_not_the_last(lm, whole):
    policy = policies_of(whole)[1]
    found = drawn(lm, policy)
    begun = found.valid.sum(1)
    assert begun.min() < 8  # or the test shows nothing
    for p, count in enumerate(begun):
        reached = np.flatnonzero(whole.scores[p] >= policy.threshold)
        assert count == (reached[0] + 1 if reached.size else 8)
        assert found.chosen[p] == np.nanargmax(found.scores[p])


def test_samples_of_likelihood_and_certainty_are_read_without_a_question(lm, whole):
    policy = policies.get("prune", n=8, checkpoints=(5,), fractions=(0.5,))
    for name in ("likelihood", "self_certainty"):
        verifier = bon.verifiers.get(name)
        online = drawn(lm, policy, verifier)
        problems = [None] * len(whole)
        found = replay(policy, whole, verifier.score(problems, whole),
                       verifier.prefix_scores(problems, whole, (5,)))
        same(online, found.samples)
        np.testing.assert_array_equal(online.chosen, found.chosen)
        assert online.stats.question_tokens == 0


def test_only_scores_that_the_policy_needs_are_asked_for(tiny):
    lm = bon.LM.load(tiny("counting", eos=[1, 2]), threads=1)  # whose samples end anywhere
    policy = policies.get("prune_random", n=8, checkpoints=(4, 9), fractions=(0.75, 0.75))
    found = lm.generate([[5, 3], [4, 4, 9]], policy=policy, verifier=judge(), max_new_tokens=LENGTH,
                        progress=False)
    ended = np.isfinite(found.scores)
    assert 0 < ended.sum() < found.valid.sum()
    assert found.stats.question_tokens == 5 * ended.sum()


class Digest:
    """A verifier of one's own: scores whole samples, and remembers how many at a time."""

    def __init__(self):
        self.calls = []

    def score(self, problems, samples):
        self.calls.append([len(problems), int(samples.valid.sum())])
        assert len(problems) == len(samples)
        scores = np.full(samples.valid.shape, np.nan)
        for s in samples:
            assert samples.prompts[s.prompt] in PROMPTS
            scores[s.prompt, s.index] = len(samples.prompts[s.prompt]) + s.tokens.sum() / 1e4
        return scores


def test_samples_that_end_together_are_scored_together(lm, whole):
    verifier = Digest()
    found = drawn(lm, policies.get("best_of_n", n=8), verifier)
    same(found, whole)
    np.testing.assert_array_equal(found.scores, Digest().score([None] * 5, whole))
    assert sum(count for _, count in verifier.calls) == whole.valid.sum()
    assert max(prompts for prompts, _ in verifier.calls) > 1
    assert len(verifier.calls) < whole.valid.sum() / 2


def test_a_stop_string_ends_a_sample_at_its_checkpoint_too(writer):
    prompts, likelihood = ["ab", "b", "ca"], bon.verifiers.get("likelihood")
    settings = {"max_new_tokens": 16, "rng": 0, "temperature": 1.2, "progress": False}
    at_checkpoints = 0
    for stop in ("a", "b", "c.", " "):
        settings["stop_strings"] = [stop]
        whole = writer.generate(prompts, n=6, **settings)
        stopped = whole.finish_reason == "stop"
        for at in np.unique(whole.lengths[stopped]).tolist():
            policy = policies.get("prune", n=6, checkpoints=at, fractions=0.5)
            online = writer.generate(prompts, policy=policy, verifier=likelihood, **settings)
            found = replay(policy, whole, likelihood.score(prompts, whole),
                           likelihood.prefix_scores(prompts, whole, [at]))
            same(online, found.samples)
            at_checkpoints += (stopped & (whole.lengths == at)).sum()
    assert at_checkpoints > 20


@pytest.mark.parametrize("ends", [[], [90]], ids=["token", "turn"])
def test_samples_leave_room_in_the_context_for_question_and_answer(ends):
    config = tiny_models.MODELS["llama2"] | {"max_position_embeddings": 24}
    small = bon.LM.from_config(config, rng=0, threads=1)
    small.self_evaluation = {"question": [7, 8], "target": 3, "other": 4, "ends": ends}
    verifier = bon.verifiers.get("self_evaluation", lm=small)
    options = {"policy": policies.get("best_of_n", n=4), "verifier": verifier,
               "max_new_tokens": 64, "progress": False}
    room = 24 - len(ends) - 2 - 1
    prompts = [[1, 2], [3], [5] * (room - 1)]
    found = small.generate(prompts, **options)
    np.testing.assert_array_equal(found.lengths, [[room - 2] * 4, [room - 1] * 4, [1] * 4])
    assert set(found.finish_reason.ravel()) == {"length"}
    np.testing.assert_allclose(found.scores, verifier.score([None] * 3, found), rtol=1e-5)
    with pytest.raises(ValueError, match=f"needs 1 to {room - 1} tokens .the model's context less "
                                         f"a sample, its question and .* prompt 0 has {room}"):
        small.generate([[5] * room], **options)
    assert small.generate([[5] * 24], n=1, max_new_tokens=9).lengths == 0


def test_a_question_fits_into_the_least_memory_that_a_run_may_have(tiny):
    path, policy = tiny("llama2"), policies.get("best_of_n", n=1)

    def begun(memory):
        return scheduled(bon.LM.load(path, threads=1, memory=memory), [[2] * 8], policy, 32)

    low, high = 2**10, 2**26  # the least budget lies between
    while high - low > 1:
        half = (low + high) // 2
        try:
            begun(half)
        except MemoryError:
            low = half
        else:
            high = half
    (sample,) = begun(high)
    assert len(sample.tokens) == 32  # a block of the cache, so that a question begins another


@pytest.mark.parametrize("name", ["likelihood", "self_certainty", "reward_model"])
def test_a_threshold_takes_scores_that_are_probabilities(tiny, name):
    options = {"model": tiny("counting", labels=1)} if name == "reward_model" else {}
    policy, verifier = policies.get("adaptive", threshold=0.5), bon.verifiers.get(name, **options)
    with pytest.raises(ValueError, match="compares scores with a probability, but those of verif"):
        _scheduling.Guide(policy, verifier)
    _scheduling.Guide(policies.get("best_of_n"), verifier)
    for good in (judge(), Digest(), bon.verifiers.get("exact", task=Digits())):
        _scheduling.Guide(policy, good)
    if options:
        _scheduling.Guide(policy, bon.verifiers.get(name, **options, probabilities=True))


def test_annealing_gives_every_sample_its_own_temperature(lm):
    found = drawn(lm, policies.get("adaptive", threshold=1.0, n=4), temperature=2.0)
    np.testing.assert_allclose(found.temperature, [[0, 1, 1.5, 1.75]] * len(PROMPTS))


def test_waves_read_the_prompt_once(lm):
    policy = policies.get("adaptive", threshold=1.0, n=6, anneal="constant")
    found = drawn(lm, policy)
    assert found.stats.prompt_tokens == sum(map(len, PROMPTS))
    assert (found.valid.sum(1) == 6).all()


def test_ctrl_c_keeps_what_has_ended(lm):
    seen = []

    def stop(sample):
        seen.append(sample)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        found = drawn(lm, policies.get("best_of_n", n=8), progress=stop)
    ended = {(s.prompt, s.index) for s in found if s.finish_reason != "aborted"}
    assert {(s.prompt, s.index) for s in seen} <= ended
    assert (found.chosen == -1).any()


def test_ctrl_c_is_raised_when_all_samples_are_handed_out(tiny, monkeypatch):
    lm = bon.LM.load(tiny("counting", eos=[1, 2]), threads=1)
    scores, calls = _scheduling.Guide.scores, iter(range(100))

    def interrupted(guide, live):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return scores(guide, live)

    monkeypatch.setattr(_scheduling.Guide, "scores", interrupted)
    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(scheduled(lm, [[5, 3], [4, 4]], policies.get("best_of_n", n=8), 40))
    assert len(found) == len({(sample.prompt, sample.index) for sample in found}) == 16
    assert {sample.finish_reason for sample in found} >= {"eos", "aborted"}


# -- what is refused -------------------------------------------------------------


def test_what_a_policy_needs_is_said_before_anything_is_drawn(lm):
    prune = policies.get("prune", n=4, checkpoints=(4,), fractions=(0.5,))
    with pytest.raises(ValueError, match=r"under way, which verifier .* does not give"):
        drawn(lm, prune, bon.verifiers.get("exact", task=Digits()))
    with pytest.raises(ValueError, match="needs answers to vote with"):
        drawn(lm, policies.get("adaptive_consistency", n=4))
    with pytest.raises(ValueError, match="from sample 0 on, got start=2"):
        drawn(lm, prune, start=2)
    with pytest.raises(ValueError, match="at most 4 samples, got n=5"):
        lm.generate(PROMPTS, n=5, policy=prune)
    with pytest.raises(ValueError, match=r"no chat template"):
        lm.generate(PROMPTS, policy=prune, progress=False)


def test_samples_that_must_live_together_need_memory_for_all_of_them(tiny):
    small = bon.LM.load(tiny("llama2"), threads=1, memory=300_000)
    policy = policies.get("prune_random", n=400, checkpoints=(4,), fractions=(0.5,))
    with pytest.raises(MemoryError, match="400 samples at once"):
        drawn(small, policy)


class Greedy(Policy):
    """A policy that breaks one rule."""

    n = 2
    checkpoints = (3,)
    needs = frozenset()

    def __init__(self, *decisions):
        self.decisions = list(decisions)

    def decide(self, seen):
        return self.decisions.pop(0)

    def __repr__(self):
        return "Greedy()"


@pytest.mark.parametrize(("decisions", "said"), [
    ([Decision()], "no sample at all"),
    ([Decision(draw=3)], "3 more samples behind 0, of at most n=2"),
    ([Decision(draw=1), Decision(draw=1)], "while 1 are held"),
    ([Decision(draw=2), Decision(drop=[5])], "to drop samples .5., which are not held"),
])  # fmt: skip
def test_a_policy_that_breaks_the_rules_is_named(lm, decisions, said):
    with pytest.raises(ValueError, match=r"policy Greedy\(\) wants, for prompt 0, .*" + said):
        lm.generate([PROMPTS[0]], policy=Greedy(*decisions), max_new_tokens=9, progress=False)


# -- evaluate --------------------------------------------------------------------


class Letters(Digits):
    """Six problems, whose answer is the length of the text; the rewards do not matter."""

    name = "letters"
    stop_strings = ()
    max_new_tokens = 12

    def load(self, split="test", limit=None):
        rows = [[1, 4 + p, 9] for p in range(6)]
        return [bon.tasks.Problem(str(p), row, p) for p, row in enumerate(rows)][:limit]

    def reward(self, problem, text):
        return float(len(text) % 3 == problem.answer % 3)

    def answer(self, problem, text):
        return str(len(text) % 3)


class Enough(Exception):
    pass


@pytest.fixture(scope="module")
def writer(tiny):
    """A tiny model with text."""
    return bon.LM.load(tiny("counting", tokenizer=True), threads=1)


def evaluated(lm, policy, store, progress=False):
    verifiers = {"asked": judge(lm), "likelihood": bon.verifiers.get("likelihood")}
    return bon.evaluate(lm, Letters(), policy=policy, verifiers=verifiers, temperature=1.2,
                        store=store, progress=progress, rng=5)


@pytest.mark.parametrize("name", ["adaptive", "prune", "adaptive_consistency"])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(writer, tmp_path, name):
    policy = {
        "adaptive": policies.get("adaptive", threshold=0.5, n=5, anneal="constant"),
        "prune": policies.get("prune", n=6, checkpoints=(4,), fractions=(0.5,)),
        "adaptive_consistency": policies.get("adaptive_consistency", n=7),
    }[name]
    before = evaluated(writer, policy, tmp_path / "one.sqlite")
    counts = iter(range(100))

    def stop(sample):
        if next(counts) == 7:
            raise Enough

    with pytest.raises(Enough):
        evaluated(writer, policy, tmp_path / "two.sqlite", stop)
    after = evaluated(writer, policy, tmp_path / "two.sqlite")
    same(before.samples, after.samples)
    np.testing.assert_array_equal(before.scores["asked"], after.scores["asked"])
    assert before.done == after.done
    assert len(after.done) == 6
    again = evaluated(writer, policy, tmp_path / "two.sqlite")
    assert again.samples.stats is None or again.samples.stats.new_tokens == 0
    np.testing.assert_array_equal(again.values, before.values)


def test_what_a_run_says_of_a_policy(writer, tmp_path):
    policy = policies.get("prune", n=6, checkpoints=(4,), fractions=(0.5,))
    run = evaluated(writer, policy, tmp_path / "run.sqlite")
    assert np.isnan(run.rewards[run.samples.finish_reason == "pruned"]).all()
    assert 0 < run.pruned <= 0.5
    mean, low, high = run.accuracy()
    assert low <= mean <= high
    assert mean == pytest.approx(run.selected()["policy"])
    taken = [run.rewards[p, i] for p, i in sorted(run.done.items())]
    np.testing.assert_array_equal(run.values, taken)
    with pytest.raises(ValueError, match="number did not depend on what they were"):
        run.curves()
    assert "samples per prompt" in run.summary()
    assert "dropped early" in run.summary()
    assert run.to_dict()["policy"]["name"] == "prune"
    assert "What the policy drew" in run.report(tmp_path / "page.html").read_text("utf-8")
    assert run.plot().get_xlabel().startswith("samples that a prompt took")
    assert "prompts by the samples" in run.chart(80, "ascii")


def test_a_verifier_that_asks_the_model_that_drew_is_told_which_that_is(writer):
    verifier = bon.verifiers.get("self_evaluation", **QUESTION)
    run = bon.evaluate(writer, Letters(), n=2, verifiers={"asked": verifier}, progress=False)
    expected = judge(writer).score(run.problems, run.samples)
    np.testing.assert_allclose(run.scores["asked"], expected, rtol=1e-6)


def test_a_store_of_another_policy_is_refused(writer, tmp_path):
    evaluated(writer, policies.get("best_of_n", n=2), tmp_path / "run.sqlite")
    with pytest.raises(ValueError, match="policy"):
        evaluated(writer, policies.get("best_of_n", n=3), tmp_path / "run.sqlite")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluated(writer, policies.get("best_of_n", n=2), tmp_path / "run.sqlite")
