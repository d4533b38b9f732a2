"""verifiers.self_evaluation: the question behind a sample, read anew and on the sample's cache."""

import json
from dataclasses import replace

import chats
import numpy as np
import pytest
import tiny
from chats import CHATML, END, INST, PIECES, THINKING, chat_model
from letters import Letters, letters_model

pytest.importorskip("bonaware._engine", reason="the engine is not built")
import bonaware as bon
from bonaware import verifiers
from bonaware._question import WORDS, Question
from bonaware.checkpoint import Checkpoint
from bonaware.config import engine
from bonaware.samples import Samples

SETTINGS = {"question": [7, 8], "target": 3, "other": 4, "ends": []}
PROMPTS = [[5, 6, 9], [2, 3]]


def model(**options):
    config = tiny.MODELS["llama3"] | {"initializer_range": 0.3, "eos_token_id": 1}
    return bon.LM.from_config(config, **{"rng": 0, "threads": 1, **options})


def trained(**settings):
    lm = model()
    lm.self_evaluation = SETTINGS | settings
    return lm


def probabilities(lm, tokens):
    """Of the token behind these, in float64."""
    logits = lm.logits(np.array(tokens, np.int32))[-1].astype(np.float64)
    return np.exp(logits - np.logaddexp.reduce(logits))


def pieces(ids):
    return "".join(PIECES[i] for i in ids)


# -- scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("ends", [[], [11, 1]], ids=["token", "turn"])
def test_score_is_the_targets_probability_behind_sample_and_question(renormalise, ends):
    lm = trained(ends=ends)
    samples = lm.generate(PROMPTS, n=6, max_new_tokens=12, rng=3)
    reasons = set(samples.finish_reason.ravel())
    verifier = verifiers.get("self_evaluation", lm=lm, renormalise=renormalise)
    scores = verifier.score([None] * 2, samples)
    assert scores.dtype == np.float64
    for p, i in np.ndindex(scores.shape):
        tokens = samples.tokens[p][i].tolist()
        behind = [11] if ends and tokens[-1] not in ends else []
        found = probabilities(lm, PROMPTS[p] + tokens + behind + [7, 8])
        want = found[3] / (found[3] + found[4]) if renormalise else found[3]
        assert scores[p, i] == pytest.approx(want, abs=1e-5)
    assert "length" in reasons


def test_samples_that_are_not_there_have_no_score():
    lm = trained()
    drawn = list(lm.generate(PROMPTS, n=3, max_new_tokens=4, rng=0))
    samples = Samples.from_list(PROMPTS, drawn[:2] + drawn[4:], n=3)
    scores = verifiers.get("self_evaluation", model=lm).score([None] * 2, samples)
    np.testing.assert_array_equal(np.isnan(scores), ~samples.valid)


def test_beginnings_are_scored_at_their_checkpoints():
    lm = trained(ends=[11])
    samples = lm.generate(PROMPTS, n=5, max_new_tokens=9, rng=3)
    verifier = verifiers.get("self_evaluation", model=lm)
    scores = verifier.prefix_scores([None] * 2, samples, [1, 4, 9])
    assert scores.shape == (2, 5, 3)
    assert np.isnan(scores[..., 2]).all()  # nothing is longer than 9
    for p, i in np.ndindex(2, 5):
        tokens = samples.tokens[p][i].tolist()
        for c, at in enumerate([1, 4]):
            if len(tokens) <= at:
                assert np.isnan(scores[p, i, c])
            else:
                want = probabilities(lm, PROMPTS[p] + tokens[:at] + [11, 7, 8])[3]
                assert scores[p, i, c] == pytest.approx(want, abs=1e-5)
    assert verifier.prefix_scores([None] * 2, samples, []).shape == (2, 5, 0)


def test_a_score_does_not_depend_on_the_samples_around_it():
    lm = trained()
    samples = lm.generate(PROMPTS, n=8, max_new_tokens=6, rng=1)
    verifier = verifiers.get("self_evaluation", model=lm)
    all_of_them = verifier.score([None] * 2, samples)
    for sample in samples:
        alone = Samples.from_list([PROMPTS[sample.prompt]],
                                  [replace(sample, prompt=0, index=0)], 1)
        assert verifier.score([None], alone)[0, 0] == all_of_them[sample.prompt, sample.index]


# -- in the engine ---------------------------------------------------------------------------


class Live:
    """What a verifier's `read` is given: samples of a session that stand where they stand."""

    def __init__(self, lm, steps, most=30):
        self.lm, self.asked = lm, []
        ends = np.array(lm.eos_token_ids, np.int32)
        self.session = engine().Session(lm._model, 8, 40, ends, None)
        self.numbers = []
        for prompt in PROMPTS:
            number = self.session.add_prompt(np.array(prompt, np.int32))
            self.numbers += self.session.add_samples(
                number, np.arange(4, dtype=np.uint64), np.ones(4, np.float32), 0, 1.0, 0.0, most, 3,
                0)
        while min(len(self.session.view(number)[1]) for number in self.numbers) < steps:
            self.session.run(1)
        self.prompts = [prompt for prompt in PROMPTS for _ in range(4)]
        self.problems = [None] * len(self.prompts)

    @property
    def samples(self):
        made = []
        for i, number in enumerate(self.numbers):
            state, *arrays = self.session.view(number)
            made.append(bon.Sample(i // 4, i % 4, *arrays, None, state, 1.0))
        return made

    def ask(self, question, named, which=None):
        numbers = np.array(self.numbers, np.uintp)
        numbers = numbers if which is None else numbers[which]
        self.asked.append((len(numbers), len(question)))
        return self.session.ask(numbers, question, named)[0]


def without_end():
    """A model that draws on behind its end tokens, so that all samples stay in the engine."""
    lm = trained(ends=[11, 1])
    lm.eos_token_ids = ()
    return lm


@pytest.mark.parametrize("renormalise", [False, True])
def test_reading_in_the_engine_gives_the_scores_of_a_fresh_pass(renormalise):
    lm = without_end()
    live = Live(lm, steps=7)
    lm.self_evaluation["ends"] += [int(live.samples[i].tokens[-1]) for i in (1, 6)]
    verifier = verifiers.get("self_evaluation", renormalise=renormalise)
    scores = verifier.read(live)
    anew = replace(verifier, model=lm)
    whole = Samples.from_list(
        PROMPTS, [replace(sample, finish_reason="length") for sample in live.samples], 4)
    np.testing.assert_allclose(scores, anew.score([None] * 2, whole).ravel(), atol=1e-5, rtol=0)
    ended = sum(sample.tokens[-1] in lm.self_evaluation["ends"] for sample in live.samples)
    assert 2 <= ended < 8
    assert live.asked == [(8 - ended, 3), (ended, 2)]
    assert verifier.question_tokens(lm) == 3


def test_reading_leaves_what_is_drawn_later_as_it_was():
    lm = without_end()
    quiet, asked = Live(lm, steps=5), Live(lm, steps=5)
    verifiers.get("self_evaluation").read(asked)
    for live in (quiet, asked):
        live.session.run(10)
    for a, b in zip(quiet.samples, asked.samples, strict=True):
        assert len(a.tokens) == 15
        for name in ("tokens", "logp", "sampled_logp", "certainty"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_another_model_reads_live_samples_anew():
    live = Live(without_end(), steps=4)
    other = model(rng=5)
    verifier = verifiers.get("self_evaluation", model=other, question=[7], target=3, other=4)
    scores = verifier.read(live)
    assert live.asked == []
    assert verifier.question_tokens(live.lm) == 0
    for sample, prompt, score in zip(live.samples, live.prompts, scores, strict=True):
        want = probabilities(other, [*prompt, *sample.tokens, 7])[3]
        assert score == pytest.approx(want, abs=1e-5)
    assert verifier.question_tokens(other) == 1


def test_another_model_reads_the_samples_of_a_prompt_in_one_pass(monkeypatch):
    live, other = Live(without_end(), steps=4), model(rng=5)
    verifier = verifiers.get("self_evaluation", model=other, question=[7], target=3, other=4)
    logp, read = other.logp, []
    monkeypatch.setattr(other, "logp", lambda prompts, texts: (
        read.append((prompts[0], len(texts[0]))) or logp(prompts, texts)))
    verifier.read(live)
    different = [len({s.tokens.tobytes() for s in live.samples[at:at + 4]}) for at in (0, 4)]
    assert read == list(zip(PROMPTS, different, strict=True))


@pytest.mark.parametrize("ends", [[], [1]], ids=["token", "turn"])
def test_policies_draw_as_replay_says_with_scores_read_anew(tmp_path, ends):
    lm = letters_model(tmp_path / "letters")
    lm.self_evaluation = {"question": [5, 9], "target": 2, "other": 3, "ends": ends}
    options = {"max_new_tokens": 12, "progress": False, "rng": 4}
    whole = bon.evaluate(lm, Letters(), 6, verifiers=["self_evaluation"], **options)
    verifier = verifiers.get("self_evaluation", lm=lm)
    checkpoints = [2, 5]
    read = verifier.prefix_scores(whole.problems, whole.samples, checkpoints)
    assert np.isfinite(read).sum() > 50
    policies = (
        bon.policies.get("prune", n=6, checkpoints=checkpoints, fractions=[0.5, 0.5]),
        bon.policies.get("adaptive", n=6, threshold=float(np.nanquantile(
            whole.scores["self_evaluation"], 0.8)), anneal="constant"),
    )
    for policy in policies:
        run = bon.evaluate(lm, Letters(), policy=policy, verifiers=["self_evaluation"], **options)
        want = bon.policies.replay(policy, whole.samples, whole.scores["self_evaluation"],
                                   read if policy.checkpoints else None).samples
        assert run.samples.finish_reason.tolist() == want.finish_reason.tolist()
        assert len(set(run.samples.finish_reason.ravel())) > 2
        for row, other in zip(run.samples.tokens, want.tokens, strict=True):
            assert [a.tolist() for a in row] == [b.tolist() for b in other]
        scores = run.scores["self_evaluation"]
        ended = np.isfinite(scores)
        np.testing.assert_allclose(scores[ended], whole.scores["self_evaluation"][ended],
                                   atol=1e-5, rtol=0)


# -- questions -------------------------------------------------------------------------------


def test_a_question_is_the_models_own_by_default(tmp_path):
    lm = chat_model(tmp_path / "chat")
    question = Question.of(lm)
    assert pieces(question.ids) == f"\n<|im_start|>user\n{WORDS}<|im_end|>\n<|im_start|>assistant\n"
    assert (PIECES[question.target], PIECES[question.other]) == ("No", "Yes")
    assert question.ends == (END, 1)
    lm.self_evaluation = SETTINGS
    assert Question.of(lm) == Question((7, 8), 3, 4)
    assert Question.of(lm, target=9, other="a") == Question((7, 8), 9, PIECES.index("a"))
    assert Question.of(lm, "ab", "No", " Yes") == Question(
        [PIECES.index("a"), PIECES.index("b")], PIECES.index("No"), PIECES.index(" Yes"))


@pytest.mark.parametrize("template", [CHATML, INST, THINKING], ids=["chatml", "inst", "thinking"])
def test_a_question_continues_the_chat_as_the_template_writes_it(tmp_path, template):
    ends = (PIECES.index("</s>"), END) if template == INST else (1, END)
    lm = chat_model(tmp_path / "chat", template, ends=ends)
    chat = [{"role": "user", "content": "2 + 2?"}]
    turn = [{"role": "user", "content": "Sure?"}]
    question = Question.of(lm, turn)
    end = question.ends[0]
    assert PIECES[end] == ("</s>" if template == INST else "<|im_end|>")
    assert set(question.ends) == set(ends)
    tokenizer = lm.tokenizer
    # A sample as the model draws it: without the blank that INST writes in front of the end.
    before = tokenizer.chat(chat, enable_thinking=False).tolist()
    sample = [*lm._completion(" 4" if template == INST else "4").tolist(), end]
    asked = before + sample + question.behind(sample).tolist()
    full = [*chat, {"role": "assistant", "content": "4"}, *turn]
    rendered = tokenizer.render_chat(full, enable_thinking=False)
    assert pieces(asked).replace(" ", "").replace("<think>\n\n</think>\n\n4", "4") == (
        rendered.replace(" ", ""))
    answered = [*full, {"role": "assistant", "content": "No"}]
    said = tokenizer.render_chat(answered, False, enable_thinking=False).removeprefix(rendered)
    assert said.startswith(PIECES[question.target])
    assert PIECES[question.target] == (" No" if template == INST else "No")
    assert question.behind([50]).tolist() == [end, *question.ids]


def test_a_published_template_takes_the_question(data):
    from bonaware.tokenizer import Tokenizer

    lm = model()
    lm.tokenizer = Tokenizer.load(data / "tokenizers" / "minimind")
    end = int(lm.tokenizer.encode("<|im_end|>", add_special_tokens=False)[0])
    lm.eos_token_ids, lm.arch = (end,), replace(lm.arch, vocab=lm.tokenizer.vocab_size)
    question = Question.of(lm)
    assert lm.tokenizer.decode(question.ids, skip_special_tokens=False) == (
        f"\n<|im_start|>user\n{WORDS}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    for token, word in ((question.target, "No"), (question.other, "Yes")):
        assert token == lm.tokenizer.encode(word)[0]


@pytest.mark.parametrize(("name", "end"), [
    ("Qwen-Qwen2.5-7B-Instruct", "<|im_end|>"), ("Qwen-Qwen3-0.6B", "<|im_end|>"),
    ("HuggingFaceTB-SmolLM3-3B", "<|im_end|>"), ("google-gemma-2-2b-it", "<end_of_turn>"),
    ("meta-llama-Llama-3.1-8B-Instruct", "<|eot_id|>"),
    ("meta-llama-Llama-3.3-70B-Instruct", "<|eot_id|>"),
    ("mistralai-Mistral-Nemo-Instruct-2407", "</s>"),
    ("Mistral-Small-3.2-24B-Instruct-2506", "</s>"),
])  # fmt: skip
def test_templates_of_published_models_take_the_question(data, tmp_path, name, end):
    template = (data / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    ends = [PIECES.index("<s>"), PIECES.index(end)]  # as some models list theirs: not the first
    question = Question.of(chat_model(tmp_path / "chat", template, ends))
    assert question.ends == tuple(reversed(ends))
    assert (PIECES[question.target], PIECES[question.other]) == ("No", "Yes")
    assert WORDS in pieces(question.ids)
    assert end in pieces(question.ids) or "[/INST]" in pieces(question.ids)


def test_settings_travel_with_the_model(tmp_path):
    lm = trained(ends=[11])
    lm.save(tmp_path / "one")
    assert json.loads((tmp_path / "one" / "self_evaluation.json").read_text()) == (
        SETTINGS | {"ends": [11]})
    again = bon.LM.load(tmp_path / "one")
    assert again.self_evaluation == SETTINGS | {"ends": [11]}
    again.save(tmp_path / "two")
    assert Question.of(bon.LM.load(tmp_path / "two")) == Question((7, 8), 3, 4, (11,))
    assert model().self_evaluation is None
    model().save(tmp_path / "three")
    assert not (tmp_path / "three" / "self_evaluation.json").exists()


def test_a_verifier_asks_what_the_model_is_trained_for_now(tmp_path):
    lm = trained()
    verifier = verifiers.get("self_evaluation", model=lm)
    assert verifier.question_tokens(lm) == 2
    lm.self_evaluation = SETTINGS | {"question": [7, 8, 9]}
    assert verifier.question_tokens(lm) == 3
    chats = [chat_model(tmp_path / "chat", template) for template in (CHATML, THINKING)]
    of_both = verifiers.get("self_evaluation")
    counts = [of_both.question_tokens(chat) for chat in chats]
    assert counts == [1 + len(Question.of(chat).ids) for chat in chats]
    assert counts[1] > counts[0]


def test_settings_do_not_change_the_fingerprint(tmp_path):
    assert trained().fingerprint == model().fingerprint


def test_the_repr_says_how_it_is_asked():
    lm = trained()
    assert repr(verifiers.get("self_evaluation")) == "SelfEvaluation()"
    assert repr(verifiers.get("self_evaluation", model=lm, target=9, renormalise=True)) == (
        "SelfEvaluation('LlamaForCausalLM', target=9, renormalise=True)")


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "sentence"), [
    ({}, "was not trained for self-evaluation and has no chat template to ask it with"),
    ({"question": [7]}, "needs target and other, the tokens that answer it, got target=None"),
    ({"question": [7], "target": 3, "other": 3}, "different tokens, but both are 3"),
    ({"question": [], "target": 3, "other": 4}, "a question needs at least one token, got none"),
    ({"question": [9999], "target": 3, "other": 4}, "must be below 97, .* got 9999"),
    ({"question": [7], "target": -1, "other": 4}, "must be >= 0, got -1"),
    ({"question": "Sure?", "target": 3, "other": 4}, "needs a tokenizer"),
    ({"question": [{"role": "user", "content": "?"}]}, "needs a tokenizer"),
], ids=str)  # fmt: skip
def test_questions_that_cannot_be_asked_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        verifiers.get("self_evaluation", model=model(), **options)


def test_a_score_head_cannot_be_asked(tiny):
    with pytest.raises(ValueError, match="self-evaluation needs a model that predicts tokens"):
        verifiers.get("self_evaluation", model=bon.LM.load(tiny("counting", labels=1)))


@pytest.mark.parametrize(("template", "sentence"), [
    ("{% for m in messages if m.role == 'user' %}{{ m.content }}</s>{% endfor %}",
     "leaves out what the assistant said"),
    ("{% for m in messages %}{{ m.content }}\n{% endfor %}",
     r"writes 'Would you do better .*' behind an assistant's message, which is no end token"),
    ("{% for m in messages %}{{ m.content }}{% endfor %}", "which is no end token"),
    ("{% if messages | length > 1 %}{{ raise_exception('One turn only') }}{% endif %}",
     "One turn only"),
    (CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
     "does not write an answer such as 'No' where the assistant begins to speak"),
    (CHATML.replace("{{ m.role }}",
                    "{{ 'somebody' if loop.last and m.role == 'assistant' else m.role }}"),
     "does not write an answer such as 'No' where the assistant begins to speak"),
    (CHATML.replace("{{ m.content }}", "> {{ m.content }}").replace(
        "assistant\n{% endif", "assistant\n>{% endif"), None),
], ids=["drops", "no-end", "nothing", "refuses", "thinks", "renames", "blank"])
def test_templates_that_do_not_take_the_question_are_refused(tmp_path, template, sentence):
    lm = chat_model(tmp_path / "chat", template)
    if sentence is None:  # the answer begins with a blank there
        assert PIECES[Question.of(lm).target] == " No"
        return
    with pytest.raises(ValueError, match=sentence):
        Question.of(lm)


def test_answers_that_begin_alike_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the answers begin with the same token"):
        Question.of(chat_model(tmp_path / "chat"), target="abc", other="abd")
    with pytest.raises(ValueError, match="an answer needs at least one token, but '' has none"):
        Question.of(chat_model(tmp_path / "chat"), "ab", "", "a")


def test_a_model_is_loaded_as_the_options_say(tmp_path):
    trained().save(tmp_path / "model")
    options = {"model": tmp_path / "model", "dtype": "bfloat16", "threads": 1, "memory": 10**8}
    found = verifiers.get("self_evaluation", **options).model
    assert (found.dtype, found.threads, found.memory) == ("bfloat16", 1, 10**8)
    verifier = verifiers.get("self_evaluation", **options)
    assert replace(verifier, lm=trained()).model is verifier.model
    for wrong, sentence in (({"model": trained()}, "Llama.* is an LM"), ({}, "none is given")):
        with pytest.raises(ValueError, match=f"for a model that is loaded here, but {sentence}"):
            verifiers.get("self_evaluation", threads=1, **wrong)


def test_what_cannot_be_scored_is_refused():
    lm = trained()
    samples = lm.generate(PROMPTS, n=2, max_new_tokens=4, rng=0)
    verifier = verifiers.get("self_evaluation", lm=lm)
    with pytest.raises(ValueError, match="need one prompt per problem, got 2 prompts for 1"):
        verifier.score([None], samples)
    for wrong in ([0], [2, 2], [3, 1], [[1]]):
        with pytest.raises(ValueError, match="need rising checkpoints >= 1, got"):
            verifier.prefix_scores([None] * 2, samples, wrong)
    with pytest.raises(ValueError, match="needs a model to ask: give model, or lm"):
        verifiers.get("self_evaluation").score([None] * 2, samples)
    lm.eos_token_ids = ()
    long = lm.generate([np.ones(lm.context - 4, int).tolist()], n=1, max_new_tokens=9)
    with pytest.raises(ValueError, match=f"have {lm.context + 3} tokens, but .* reads at most"):
        verifier.score([None], long)


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    lm = chat_model(tmp_path / "chat")
    samples = lm.generate(["ab"], n=3, max_new_tokens=5, rng=0)
    options = {"question": [7], "target": 3, "other": 4}
    verifiers.get("self_evaluation", model=chat_model(tmp_path / "same"), **options).score(
        [None], samples)
    (tmp_path / "other").mkdir()
    tiny.write_tokenizer(tmp_path / "other")
    other = model(tokenizer=tmp_path / "other")
    with pytest.raises(ValueError, match=r"sample 0 of prompt 0 do not mean its text to the "
                                         r"tokenizer of LlamaForCausalLM"):
        verifiers.get("self_evaluation", model=other, **options).score([None], samples)
    with pytest.raises(ValueError, match="of prompt 0 do not mean its text to the tokenizer"):
        lm.generate(["ab"], policy=bon.policies.get("best_of_n", n=3), max_new_tokens=5,
                    verifier=verifiers.get("self_evaluation", model=other, **options))


@pytest.mark.parametrize(("change", "sentence"), [
    ({"target": "No"}, "must hold question and ends"),
    ({"target": True}, "must hold question and ends"),
    ({"more": 1}, "must hold question and ends"),
    ({"question": [97]}, r"must hold ids in \[0, 97\)"),
    ({"ends": [-1]}, r"must hold ids in \[0, 97\)"),
    ({"question": [1.0]}, r"must hold ids in \[0, 97\)"),
    ({"question": []}, "must hold a question of at least one"),
    ({"other": 3}, "must hold .* a target that is not other"),
], ids=str)  # fmt: skip
def test_broken_settings_are_refused(tmp_path, change, sentence):
    trained().save(tmp_path / "model")
    path = tmp_path / "model" / "self_evaluation.json"
    path.write_text(json.dumps(SETTINGS | change))
    with pytest.raises(ValueError, match=f"self_evaluation.json: {sentence}"):
        Checkpoint(tmp_path / "model")


def test_chat_models_of_the_tests_are_what_they_seem(tmp_path):
    lm = chat_model(tmp_path / "chat")
    ids = lm.encode([{"role": "user", "content": "No way"}])
    assert pieces(ids) == "<|im_start|>user\nNo way<|im_end|>\n<|im_start|>assistant\n"
    assert len(PIECES) == len(set(PIECES)) == lm.arch.vocab
    assert lm.eos_token_ids[0] == chats.END
