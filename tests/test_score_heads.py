"""Models with a score head: against transformers, and whatever else is in the call."""

import json
import signal
import threading
import time

import numpy as np
import pytest
import tiny as tiny_module
from tiny import ARCHITECTURES, CONTEXT, MODELS

pytest.importorskip("bonaware._engine", reason="the engine is not built")
import bonaware as bon

F32_ERROR, BF16_ERROR = 1e-5, 2e-2  # of the largest score
LENGTHS = (0, 1, 2, 40, 128, 129, 150)  # in chunks of 128 rows, and none


@pytest.fixture(scope="module")
def oracle():
    """A function: folder -> transformers' model in float32."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    transformers.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def load(path):
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
        return model

    yield load
    torch.set_num_threads(threads)


def oracle_scores(model, prompt, completions):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        rows = [model(torch.tensor(np.concatenate([prompt, text])[None].astype(int))).logits[0]
                for text in completions]
    return torch.stack(rows).numpy()


def ids(length, seed=1, vocab=97):
    return np.random.default_rng([seed, length]).integers(0, vocab, length)


def distance(got, want):
    assert got.shape == want.shape
    assert got.dtype == np.float32
    return np.abs(got - want).max() / np.abs(want).max()


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("labels", [1, 3])
def test_scores_equal_those_of_transformers(tiny, oracle, name, labels):
    path = tiny(name, labels=labels)
    prompt, completions = ids(50), [ids(n, seed=2) for n in LENGTHS]
    want = oracle_scores(oracle(path), prompt, completions)
    (got,) = bon.LM.load(path).scores([prompt], [completions])
    assert distance(got, want[:, 0] if labels == 1 else want) < F32_ERROR


@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen2"])
def test_bfloat16_scores_are_near(tiny, oracle, name):
    path = tiny(name, labels=1, dtype="bfloat16")
    prompt, completions = ids(50), [ids(n, seed=2) for n in LENGTHS]
    want = oracle_scores(oracle(path), prompt, completions)[:, 0]
    (got,) = bon.LM.load(path).scores([prompt], [completions])
    assert distance(got, want) < BF16_ERROR


def test_tokens_of_padding_at_the_end_do_not_count(tmp_path, oracle):
    """transformers scores the last token that is not pad_token_id, in a text without a batch."""
    path = tiny_module.write_checkpoint(tmp_path / "model", tiny_module.scorer("llama2") | {
        "pad_token_id": 5})
    prompt, completions = np.array([5, 3]), [[4, 5, 6], [4, 5, 6, 5, 5], [5, 5], []]
    want = oracle_scores(oracle(path), prompt, [np.array(c, int) for c in completions])[:, 0]
    (got,) = bon.LM.load(path).scores([prompt], [completions])
    assert distance(got, want) < F32_ERROR
    assert got[0] == got[1]
    assert got[2] == got[3]


@pytest.mark.parametrize("name", ["llama_biases", "gemma2", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_score_does_not_depend_on_what_else_is_scored(tiny, name, dtype):
    prompts = [ids(50), ids(7)]
    completions = [[ids(n, seed=3) for n in LENGTHS], [ids(n, seed=4) for n in (3, 60, 3, 90)]]
    many = bon.LM.load(tiny(name, labels=2, dtype=dtype), threads=2).scores(prompts, completions)
    one = bon.LM.load(tiny(name, labels=2, dtype=dtype), threads=1)
    for prompt, texts, scores in zip(prompts, completions, many, strict=True):
        for text, score in zip(texts, scores, strict=True):
            ((alone,),) = one.scores([prompt], [[text]])
            np.testing.assert_array_equal(alone, score)


def test_many_short_completions_are_scored_in_groups(tiny):
    lm = bon.LM.load(tiny("llama2", labels=1), threads=1)
    completions = [ids(int(n), seed=5) for n in np.random.default_rng(0).integers(0, 6, 300)]
    (scores,) = lm.scores([[1, 2]], [completions])
    for i in (0, 127, 128, 299):
        assert lm.scores([[1, 2]], [[completions[i]]])[0][0] == scores[i]


def test_texts_and_nothing_at_all_are_scored(tiny):
    lm = bon.LM.load(tiny("counting", labels=1, tokenizer=True), threads=1)
    got = lm.scores(["ab", "c"], [["ba", "b"], []])
    want = lm.scores([lm.encode("ab")], [[[8], [3]]])[0]
    np.testing.assert_array_equal(got[0], want)
    assert got[1].shape == (0,)
    assert lm.scores([], []) == []
    assert bon.LM.load(tiny("counting", labels=3)).scores([[1]], [[]])[0].shape == (0, 3)


def test_a_text_may_fill_the_context_and_not_more(tiny):
    lm = bon.LM.load(tiny("llama2", labels=1), threads=1)
    assert np.isfinite(lm.scores([ids(CONTEXT - 9)], [[ids(9)]])[0]).all()
    with pytest.raises(ValueError, match=rf"prompt \+ completion of at most {CONTEXT} tokens"):
        lm.scores([ids(CONTEXT - 9)], [[ids(10)]])


@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen2", "mistral"])
def test_transformers_opens_a_score_head_that_save_wrote(tmp_path, oracle, name):
    lm = bon.LM.from_config(tiny_module.scorer(name, 2) | {"initializer_range": 0.3}, rng=2)
    lm.save(tmp_path / "saved")
    prompt, completions = ids(20), [ids(n, seed=2) for n in (1, 30)]
    want = oracle_scores(oracle(tmp_path / "saved"), prompt, completions)
    (got,) = lm.scores([prompt], [completions])
    assert distance(got, want) < F32_ERROR
    (again,) = bon.LM.load(tmp_path / "saved").scores([prompt], [completions])
    np.testing.assert_array_equal(again, got)
    assert not (tmp_path / "saved" / "generation_config.json").exists()


def test_a_score_head_begins_as_in_transformers():
    lm = bon.LM.from_config(tiny_module.scorer("wide", 64) | {"initializer_range": 0.05})
    head = lm._model.get("score", 0)
    assert head.shape == (64, 192)
    assert head.std() == pytest.approx(0.05, rel=0.05)
    assert lm.labels == 64
    assert lm.num_parameters == sum(
        lm._model.get(slot, layer or 0).size for slot, layer, _ in lm.arch.slots())


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [
    lambda lm: lm.logits([1]),
    lambda lm: lm.logp([[1]], [[[2]]]),
    lambda lm: lm.generate([[1]], n=1),
    lambda lm: lm.stream([]),
], ids=["logits", "logp", "generate", "stream"])
def test_a_score_head_predicts_no_tokens(tiny, call):
    lm = bon.LM.load(tiny("counting", labels=1))
    with pytest.raises(ValueError, match=r"needs a model that predicts tokens, but .* is a "
                                         r"LlamaForSequenceClassification.*use lm\.scores"):
        call(lm)


def test_a_model_that_predicts_tokens_gives_no_scores(tiny):
    with pytest.raises(ValueError, match=r"scores need a model with a score head, but counting"
                                         r".* is a LlamaForCausalLM: use logp"):
        bon.LM.load(tiny("counting")).scores([[1]], [[[2]]])


def test_what_does_not_fit_together_is_refused(tiny):
    lm = bon.LM.load(tiny("counting", labels=1))
    with pytest.raises(ValueError, match="got 1 prompts and 2 lists"):
        lm.scores([[1]], [[[2]], [[3]]])
    with pytest.raises(TypeError, match="completions must hold a list of completions"):
        lm.scores([[1]], ["ab"])
    with pytest.raises(ValueError, match="token 2 of prompt and completions does not"):
        lm.scores([[1]], [[[2, 11]]])
    with pytest.raises(ValueError, match="a prompt of at least one token"):
        lm.scores([[]], [[[2]]])


def test_the_engine_itself_refuses_the_other_head(tiny):
    scorer = bon.LM.load(tiny("counting", labels=1))._model
    causal = bon.LM.load(tiny("counting"))._model
    one, length = np.array([1], np.int32), np.array([1], np.uintp)
    for call in (lambda: scorer.logits(one), lambda: scorer.logp(one, one, length, 1.0)):
        with pytest.raises(ValueError, match="logits need a model without a score head"):
            call()
    with pytest.raises(ValueError, match="scores need a model with a score head"):
        causal.score(one, one, length)
    with pytest.raises(ValueError, match="lengths must add up to the 1 tokens of completions"):
        scorer.score(one, one, np.array([2], np.uintp))
    with pytest.raises(ValueError, match="lengths must add up"):
        scorer.score(one, one, np.array([0], np.uintp))
    with pytest.raises(ValueError, match="this architecture has no slot head in layer 0"):
        scorer.get("head", 0)
    with pytest.raises(ValueError, match="this architecture has no slot score in layer 0"):
        causal.get("score", 0)


def test_a_checkpoint_without_its_score_head_is_refused(tmp_path):
    path = tiny_module.write_checkpoint(tmp_path / "model", MODELS["llama2"])
    (path / "config.json").write_text(json.dumps(tiny_module.scorer("llama2")))
    with pytest.raises(ValueError, match=r"tensor score.weight must have shape \[1, 40\] "
                                         r"\(labels, hidden\), found no such tensor"):
        bon.LM.load(path)


# -- memory and interrupts -------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "call"), [
    (0, lambda lm, text: lm.logits(text)),
    (0, lambda lm, text: lm.logp([text], [[text]])),
    (1, lambda lm, text: lm.scores([text], [[text]])),
], ids=["logits", "logp", "scores"])
def test_texts_that_need_more_than_memory_are_refused(tiny, labels, call):
    path, text = tiny("wide", labels=labels), ids(1500, vocab=1003)
    with pytest.raises(MemoryError, match=r"of a text of \d+ tokens needs \d+\.\d MiB, but memory"
                                          r"=3000000 allows 2\.9 MiB"):
        call(bon.LM.load(path, memory=3_000_000), text)
    call(bon.LM.load(path, memory=100_000_000), text)


def test_what_is_needed_grows_with_the_texts(tiny):
    model = bon.LM.load(tiny("wide"), threads=1)._model
    block = model.block_bytes

    def needed(length, lengths):
        return model.score_bytes(length, np.array(lengths, np.uintp))

    assert needed(64, [32]) - needed(32, [32]) >= block
    assert needed(32, [32] * 4) - needed(32, [32]) == 3 * block
    assert needed(32, [32] * 400) == needed(32, [32] * 4)  # groups of 128 rows
    assert needed(32, [1000, 5]) - needed(32, [32] * 4) >= (32 - 4) * block


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(),
                    reason="signals need the main thread")
def test_scores_can_be_interrupted(tiny):
    lm = bon.LM.load(tiny("wide", labels=1), threads=1)
    prompt, completions = ids(2000, vocab=1003), [ids(2000, vocab=1003)] * 40
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    started = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        lm.scores([prompt], [completions])
    assert time.perf_counter() - started < 5
    timer.join()
    assert np.isfinite(lm.scores([prompt[:5]], [[prompt[:5]]])[0]).all()
