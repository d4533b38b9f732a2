"""bonaware.verifiers: what a selector sees."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny import PIECES

import bonaware as bon
from bonaware import tasks, verifiers
from bonaware.samples import Sample, Samples


def sample(index, logp, certainty, text, prompt=0):
    logp = np.array(logp, np.float32)
    return Sample(prompt, index, np.zeros(len(logp), np.int32), logp, 2 * logp,
                  np.array(certainty, np.float32), text, "eos", 1.0)


@pytest.fixture
def samples():
    """One prompt, n=3: a long sample, a short one, and one that was not drawn."""
    drawn = [sample(0, [-0.5, -0.25, -0.75], [1, 2, 6], "the sun"), sample(1, [-1], [4], "rain")]
    return Samples.from_list(["p"], drawn, n=3)


PROBLEMS = [tasks.Problem(id="0", prompt="p", answer=["sun"])]


def test_every_verifier_file_is_available():
    assert {"exact", "likelihood", "reward_model", "self_certainty"} <= set(verifiers.available())
    with pytest.raises(ValueError, match=r"no 'oracle' in bonaware\.verifiers; there are: exact"):
        verifiers.get("oracle")


def test_exact_scores_with_the_tasks_reward(samples):
    scores = verifiers.get("exact", task=tasks.get("keywords")).score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[1, 0, np.nan]])


def test_likelihood_sums_raw_log_probabilities(samples):
    scores = verifiers.get("likelihood").score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[-1.5, -1, np.nan]])


def test_likelihood_by_length_is_the_mean_per_token(samples):
    scores = verifiers.get("likelihood", normalize="length").score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[-0.5, -1, np.nan]])


def test_self_certainty_is_the_mean_per_token(samples):
    scores = verifiers.get("self_certainty").score(PROBLEMS, samples)
    np.testing.assert_array_equal(scores, [[3, 4, np.nan]])


@pytest.mark.parametrize("name", ["likelihood", "self_certainty"])
def test_scores_are_float64_and_the_callers_own(samples, name):
    verifier = verifiers.get(name)
    scores = verifier.score(PROBLEMS, samples)
    want = scores.copy()
    assert scores.dtype == np.float64
    scores[:] = 0
    np.testing.assert_array_equal(verifier.score(PROBLEMS, samples), want)


@pytest.mark.parametrize(("name", "options"), [
    ("exact", {"task": tasks.get("keywords")}), ("likelihood", {}), ("self_certainty", {}),
    ("likelihood", {"normalize": "length"}),
])
def test_no_prompts_and_no_samples_have_a_shape(name, options):
    verifier = verifiers.get(name, **options)
    assert verifier.score([], Samples.from_list([], [], n=2)).shape == (0, 0)
    one = verifier.score(PROBLEMS, Samples.from_list(["p"], [], n=2))
    assert one.shape == (1, 2)
    assert np.isnan(one).all()


@pytest.mark.filterwarnings("error")
def test_a_sample_without_tokens_is_no_division_by_zero():
    empty = Samples.from_list(["p"], [sample(0, [], [], "")], n=1)
    assert verifiers.get("likelihood", normalize="length").score(PROBLEMS, empty)[0, 0] == 0
    assert np.isnan(verifiers.get("self_certainty").score(PROBLEMS, empty)[0, 0])


# -- reward_model ------------------------------------------------------------

AB = [tasks.Problem(id=str(p), prompt=text, answer=None) for p, text in enumerate(["ab", "cc"])]


@pytest.fixture
def judge(tiny, tmp_path):
    """A folder with a reward model of eleven tokens, whose end token is 1."""
    pytest.importorskip("bonaware._engine", reason="the engine is not built")
    path = tmp_path / "judge"
    shutil.copytree(tiny("counting", labels=1, tokenizer=True), path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": 1}))
    return path


@pytest.fixture
def drawn(tiny):
    """Samples of a policy with the same tokenizer, some ended by token 1, some by a stop string."""
    pytest.importorskip("bonaware._engine", reason="the engine is not built")
    lm = bon.LM.load(tiny("counting", tokenizer=True, eos=[1]), threads=1)
    drawn = lm.generate(["ab", "cc"], n=24, max_new_tokens=9, stop_strings=["c."], rng=1)
    assert set(drawn.finish_reason.flat) == {"eos", "stop", "length"}
    return drawn


def test_reward_model_scores_the_tokens_as_drawn(judge, drawn):
    verifier = verifiers.get("reward_model", model=judge)
    lm = verifier.model
    want = np.array(lm.scores(["ab", "cc"], drawn.tokens), np.float64)
    scores = verifier.score(AB, drawn)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, want)
    np.testing.assert_array_equal(verifiers.get("reward_model", model=lm).score(AB, drawn), want)
    assert repr(verifier) == "RewardModel('judge')"


@pytest.mark.filterwarnings("error")
def test_reward_model_gives_probabilities_where_they_are_wanted(judge, drawn):
    logits = verifiers.get("reward_model", model=judge)
    found = verifiers.get("reward_model", model=judge, probabilities=True)
    np.testing.assert_allclose(found.score(AB, drawn), 1 / (1 + np.exp(-logits.score(AB, drawn))))
    one_missing = Samples.from_list(drawn.prompts, drawn, n=25)
    assert np.isnan(found.score(AB, one_missing)[:, 24]).all()
    assert (logits.probabilities, found.probabilities) == (False, True)
    assert repr(found) == "RewardModel('judge', probabilities=True)"


def test_reward_model_loads_as_it_is_told(judge):
    found = verifiers.get("reward_model", model=judge, dtype="bfloat16", threads=1, memory=1 << 26)
    assert (found.model.dtype, found.model.threads, found.model.memory) == ("bfloat16", 1, 1 << 26)
    lm = bon.LM.load(judge, threads=1)
    with pytest.raises(ValueError, match="threads and memory are for a model that is loaded here"):
        verifiers.get("reward_model", model=lm, threads=2)


def test_reward_model_does_not_depend_on_other_samples(judge, drawn):
    verifier = verifiers.get("reward_model", model=judge)
    want = verifier.score(AB, drawn)
    some = [sample for sample in drawn if sample.index % 3 == 0]
    got = verifier.score(AB, Samples.from_list(drawn.prompts, some, n=30))
    np.testing.assert_array_equal(got[:, :24:3], want[:, ::3])
    assert np.isnan(np.delete(got, np.s_[:24:3], axis=1)).all()
    assert verifier.score([], Samples.from_list([], [], n=2)).shape == (0, 0)


def test_reward_model_scores_equal_samples_once(judge, drawn, monkeypatch):
    first = [replace(sample, index=i) for i, sample in enumerate(list(drawn[0])[:3] * 2)]
    verifier, asked = verifiers.get("reward_model", model=judge), []
    scores = verifier.model.scores
    monkeypatch.setattr(verifier.model, "scores", lambda prompts, texts: (
        asked.extend(texts) or scores(prompts, texts)))
    got = verifier.score(AB[:1], Samples.from_list(["ab"], first, n=6))
    distinct = {sample.tokens.tobytes() for sample in first}
    assert [len(texts) for texts in asked] == [len(distinct)]
    np.testing.assert_array_equal(got[0], np.tile(verifier.score(AB, drawn)[0, :3], 2))


def swap_letters(path):
    """Gives a folder another tokenizer: the ids of "a" and "b" are exchanged."""
    text = (path / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_reward_model_encodes_the_text_anew_for_another_tokenizer(judge, drawn):
    swap_letters(judge)
    lm = bon.LM.load(judge, threads=1)
    scores = verifiers.get("reward_model", model=lm).score(AB, drawn)
    anew = 0
    for p, prompt in enumerate(["ab", "cc"]):
        for i, sample in enumerate(drawn[p]):
            encoded = lm.tokenizer.encode(sample.text, add_special_tokens=False).tolist()
            ends = [1] if sample.finish_reason == "eos" else []
            same = not {PIECES.index("a"), PIECES.index("b")}.intersection(sample.tokens.tolist())
            tokens = sample.tokens if same else encoded + ends
            anew += not same
            assert scores[p, i] == lm.scores([prompt], [[tokens]])[0][0]
    assert 10 < anew < 48


def test_reward_model_of_another_tokenizer_needs_prompts_as_text(judge, drawn):
    swap_letters(judge)
    given = Samples.from_list([[2, 3], [4, 4]], drawn, n=24)
    with pytest.raises(ValueError, match=r"sample \d+ of prompt 0 do not mean its text to "
                                         "the tokenizer of judge: give prompts as text"):
        verifiers.get("reward_model", model=judge).score(AB, given)


def test_reward_model_takes_tokens_where_there_is_no_text(judge, tiny):
    mute = bon.LM.load(tiny("counting"), threads=1).generate([[7], [4, 4]], n=3, max_new_tokens=4)
    verifier = verifiers.get("reward_model", model=judge)
    want = verifier.model.scores([[7], [4, 4]], mute.tokens)
    np.testing.assert_array_equal(verifier.score(AB, mute), want)


def test_reward_model_needs_one_label(tiny, judge):
    with pytest.raises(ValueError, match=r"a score head of 1 label, but counting.* has none"):
        verifiers.get("reward_model", model=tiny("counting"))
    with pytest.raises(ValueError, match=r"a score head of 1 label, but counting.* has 2 labels"):
        verifiers.get("reward_model", model=tiny("counting", labels=2))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        verifiers.get("reward_model", model=judge / "nowhere")
    with pytest.raises(ValueError, match="need one prompt per problem, got 0 prompts for 2"):
        verifiers.get("reward_model", model=judge).score(AB, Samples.from_list([], [], n=2))


# -- errors ------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [
    ("exact", {"task": tasks.get("keywords")}), ("likelihood", {}), ("self_certainty", {}),
])
def test_problems_and_prompts_must_be_equally_many(samples, name, options):
    with pytest.raises(ValueError, match="need one prompt per problem, got 1 prompts for 2"):
        verifiers.get(name, **options).score(PROBLEMS * 2, samples)


def test_exact_needs_a_task_and_texts():
    with pytest.raises(TypeError, match="task"):
        verifiers.get("exact")
    mute = Samples.from_list(["p"], [sample(0, [-1], [1], None), sample(1, [-1], [1], "a")], n=3)
    with pytest.raises(ValueError, match="verifier exact needs texts, but 1 samples have none"):
        verifiers.get("exact", task=tasks.get("keywords")).score(PROBLEMS, mute)


def test_likelihood_refuses_unknown_normalizations():
    with pytest.raises(ValueError, match="normalize must be None or 'length', got 'len'"):
        verifiers.get("likelihood", normalize="len")
