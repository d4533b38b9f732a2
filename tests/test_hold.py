"""Samples that are held, asked and kept, in the engine's sessions (csrc/decode.h).

Whatever is held, asked or dropped, what is drawn is the same bit for bit; an answer is that of the
whole text in one fresh pass; slots and cache come back.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny import MODELS

import bonaware as bon
from bonaware.config import engine

DTYPES = ["float32", "bfloat16"]
NAMES = ["llama3", "gemma2", "qwen3", pytest.param("large", marks=pytest.mark.heavy)]
LENGTHS = [1, 31, 32, 33, 70]  # of prompts, around the borders of blocks
EACH, NEW, SEED = 4, 40, 3
WAYS = [(0, 1.0, 0.0), (20, 0.9, 0.01)]  # top-k, top-p, min-p
# So large in either precision that threads share the products of a pass; the others are so
# small that each thread computes some of the samples.
LARGE = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 211, "hidden_size": 192,
    "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1,
}


def uint(values):
    return np.array(values, np.uintp)


def ids(values):
    return np.array(values, np.int32)


@pytest.fixture(scope="module")
def load(tiny):
    """A function: name, dtype, threads -> the model."""
    cache = {}

    def loaded(name, dtype="float32", threads=1):
        key = name, dtype, threads
        if key not in cache:
            cache[key] = (
                bon.LM.from_config(LARGE, rng=0, dtype=dtype, threads=threads)
                if name == "large" else
                bon.LM.load(tiny(name, dtype=dtype), dtype=dtype, threads=threads))
        return cache[key]

    return loaded


def open_session(lm, slots, blocks, ends=(), **options):
    return engine().Session(lm._model, slots, blocks, ids(list(ends)), None, **options)


def add_samples(session, prompt, indices, new=NEW, how=WAYS[0], **hold):
    return session.add_samples(prompt, np.array(indices, np.uint64),
                               np.ones(len(indices), np.float32), *how, new, SEED, 0,
                               *hold.values())


def run(session, steps=1000):
    """All events until nothing is pending."""
    events = []
    while session.pending:
        events += session.run(steps)
    return events


def bits(session, sample):
    state, *arrays = session.view(sample)
    return state, *(array.tobytes() for array in arrays)


# -- same bits ---------------------------------------------------------------


def add_all(session, vocab, rng=None):
    """Samples of all prompts, drawn in two ways; with rng, held at random. Their numbers."""
    texts = np.random.default_rng(0).integers(0, vocab, (len(LENGTHS), max(LENGTHS)))
    numbers = []
    for text, length in zip(texts, LENGTHS, strict=True):
        prompt = session.add_prompt(ids(text[:length]))
        for i in range(EACH):
            hold_at = 0 if rng is None else int(rng.integers(0, 15))
            numbers += add_samples(session, prompt, [i], how=WAYS[i % 2], hold_at=hold_at)
    return numbers


def ask_some(session, numbers, vocab, rng):
    kept = [n for n in numbers if session.view(n)[0] in ("live", "held", "eos", "length")]
    asked = uint(rng.permutation(kept)[:rng.integers(0, len(kept) + 1)])
    question = ids(rng.integers(0, vocab, rng.integers(1, 7)))
    logp, logits = session.ask(asked, question, ids([0, 5]))
    assert logp.shape == (len(asked), 2)
    assert logits.shape == (len(asked), vocab)


def disturbed(session, vocab, rng):
    """Bits of all samples, while they are held, asked and forgotten at random."""
    numbers, found = add_all(session, vocab, rng), {}
    while len(found) < len(numbers):
        while session.pending:
            session.run(int(rng.integers(1, 8)))
            ask_some(session, [n for n in numbers if n not in found], vocab, rng)
        for number in set(numbers).difference(found):
            state, tokens = session.view(number)[:2]
            if state == "held":
                hold_at = int(rng.integers(0, 3) and len(tokens) + rng.integers(1, 20))
                session.go_on(uint([number]), hold_at)
            elif state != "waiting":
                found[number] = bits(session, number)
                session.forget(number)
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_holds_and_questions_change_no_bit(load, name, dtype, threads):
    lm = load(name, dtype, threads)
    assert (lm._model.bytes > 8 << 20) == (name == "large")
    vocab = lm.arch.vocab
    ends = range(0, vocab, 37)
    calm = open_session(load(name, dtype), 256, 1000, ends)
    numbers = add_all(calm, vocab)
    run(calm)
    want = {number: bits(calm, number) for number in numbers}
    assert {state for state, *_ in want.values()} == {"eos", "length"}
    for slots, blocks in ((5, 200), (64, 12)):
        session = open_session(lm, slots, blocks, ends, hold_ends=True, ask_blocks=2)
        assert disturbed(session, vocab, np.random.default_rng(slots)) == want
        stats = session.stats()
        assert (stats["live"], stats["held"], stats["waiting"]) == (0, 0, 0)
        assert stats["free_blocks"] == blocks


# -- answers -----------------------------------------------------------------


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_that_of_the_whole_text(load, name, dtype, threads):
    lm = load(name, dtype, threads)
    # The text is cut otherwise: sums differ in last bits, which a cache of bfloat16 rounds apart.
    error = {"float32": 1e-5, "bfloat16": 1e-4}[dtype]
    rng = np.random.default_rng(1)
    vocab = lm.arch.vocab
    session = open_session(lm, 16, 400, range(0, vocab, 37), hold_ends=True)
    texts = {}
    for length in (1, 40):
        prompt = rng.integers(0, vocab, length)
        number = session.add_prompt(ids(prompt))
        texts |= dict.fromkeys(add_samples(session, number, range(4), new=70, hold_at=33), prompt)
        texts |= dict.fromkeys(add_samples(session, number, range(4, 8), new=70), prompt)
    seen = set()
    question, named = ids(rng.integers(0, vocab, 5)), ids([3, 7])
    while session.pending:
        session.run(19)
        logp, logits = session.ask(uint(list(texts)), question, named)
        for row, (number, prompt) in enumerate(texts.items()):
            state, tokens = session.view(number)[:2]
            seen.add(state)
            want = lm.logits(np.concatenate([prompt, tokens, question]))[-1]
            np.testing.assert_allclose(logits[row], want, atol=error)
            np.testing.assert_allclose(logp[row], log_softmax(logits[row])[named], atol=1e-5)
            np.testing.assert_allclose(logp[row], log_softmax(want)[named], atol=error)
            assert abs(np.exp(logp[row]) - np.exp(log_softmax(want)[named])).max() < error
    assert seen >= {"live", "held", "eos"}


@pytest.mark.parametrize("name", ["gemma2", "large"])
def test_a_sample_is_answered_the_same_alone_and_in_any_company(load, name):
    answers = []
    for threads, blocks in ((1, 500), (2, 500), (2, 60)):
        lm = load(name, threads=threads)
        session = open_session(lm, 64, blocks, ask_blocks=2)
        numbers = []
        for p in range(2):
            prompt = session.add_prompt(ids(range(3, 20 + 30 * p)))
            numbers += add_samples(session, prompt, range(10), hold_at=7)
        run(session)
        logp, logits = session.ask(uint(numbers), ids([4, 5, 6]), ids([1, 2]))
        order = np.random.default_rng(0).permutation(len(numbers))
        again = session.ask(uint(numbers)[order], ids([4, 5, 6]), ids([1, 2]))
        np.testing.assert_array_equal(again[0], logp[order])
        np.testing.assert_array_equal(again[1], logits[order])
        alone = session.ask(uint(numbers[3:4]), ids([4, 5, 6]), ids([1, 2]))
        np.testing.assert_array_equal(alone[1][0], logits[3])
        answers.append((logp.tobytes(), logits.tobytes()))
    assert answers[0] == answers[1] == answers[2]
    assert len(np.unique(logp[:, 0])) == len(numbers)


def test_nobody_asked_gives_no_answers(load):
    session = open_session(load("counting"), 1, 4)
    logp, logits = session.ask(uint([]), ids([1]), ids([1, 2]))
    assert (logp.shape, logits.shape) == ((0, 2), (0, MODELS["counting"]["vocab_size"]))


# -- rest --------------------------------------------------------------------


@pytest.fixture
def counting(load):
    """Some sessions of the model with 11 tokens and a context of 64; no end tokens."""
    lm = load("counting", threads=2)

    def opened(slots, blocks=100, **options):
        session = open_session(lm, slots, blocks, **options)
        return SimpleNamespace(session=session, prompt=session.add_prompt(ids(range(5))), lm=lm)

    return opened


def test_samples_are_held_where_they_were_told_to(counting):
    play = counting(4)
    first, second = add_samples(play.session, play.prompt, [0, 1], hold_at=3)
    assert play.session.run(100) == [(first, "held"), (second, "held")]
    assert not play.session.pending
    assert play.session.run(100) == []
    assert play.session.stats()["held"] == 2
    play.session.go_on(uint([second]), 8)
    assert run(play.session) == [(second, "held")]
    assert [len(play.session.view(n)[1]) for n in (first, second)] == [3, 8]
    play.session.go_on(uint([first, second]), 0)
    assert sorted(run(play.session)) == [(first, "length"), (second, "length")]
    assert play.session.stats()["free_blocks"] == 100


def test_a_hold_at_the_last_token_is_an_end(counting):
    play = counting(4)
    add_samples(play.session, play.prompt, [0], new=6, hold_at=6)
    assert run(play.session) == [(0, "length")]


def test_dropped_samples_free_slot_and_cache_for_those_that_wait(counting):
    play = counting(4, blocks=1 + 4 * 2)
    add_samples(play.session, play.prompt, range(12), hold_at=2)
    assert [state for _, state in run(play.session)] == ["held"] * 4
    assert play.session.stats()["waiting"] == 8  # no slot for them, and nothing to run
    for sample in (0, 2, 3):
        play.session.end(sample, "pruned")
    stats = play.session.stats()
    assert (stats["held"], stats["free_blocks"]) == (1, 6)
    entered = [sample for sample, state in run(play.session) if state == "held"]
    assert entered == [4, 5, 6]
    assert play.session.stats()["waiting"] == 5


def test_ended_samples_keep_slot_and_cache_until_they_are_forgotten(counting):
    play = counting(2, hold_ends=True)
    add_samples(play.session, play.prompt, range(3), new=4)
    assert run(play.session) == [(0, "length"), (1, "length")]
    assert play.session.stats()["waiting"] == 1
    play.session.ask(uint([0, 1]), ids([1]), ids([2]))
    play.session.forget(0)
    assert play.session.pending
    assert run(play.session) == [(2, "length")]
    for sample in (1, 2):
        play.session.forget(sample)
    assert play.session.stats()["free_blocks"] == 100


@pytest.mark.parametrize(("reason", "kept"), [
    ("stop", True), ("eos", True), ("length", True), ("pruned", False), ("aborted", False)])
def test_only_what_ends_by_itself_is_kept(counting, reason, kept):
    play = counting(2, hold_ends=True)
    add_samples(play.session, play.prompt, [0], hold_at=4)
    run(play.session)
    play.session.end(0, reason)
    assert play.session.view(0)[0] == reason
    assert (play.session.stats()["free_blocks"] < 100) == kept


def test_nothing_is_kept_without_hold_ends(counting):
    play = counting(2)
    add_samples(play.session, play.prompt, [0], hold_at=4)
    run(play.session)
    play.session.end(0, "stop")
    assert play.session.stats()["free_blocks"] == 100


def test_entering_samples_leave_blocks_for_questions(counting):
    play = counting(9, blocks=10, ask_blocks=3)
    add_samples(play.session, play.prompt, range(9), hold_at=32)
    run(play.session)
    assert play.session.stats()["held"] == 3  # 1 + 3 * 2 blocks, and 3 are left
    logp, _ = play.session.ask(uint([0, 1, 2]), ids([1] * 25), ids([2]))
    assert np.isfinite(logp).all()
    assert play.session.stats()["free_blocks"] == 3


# -- errors ------------------------------------------------------------------


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda s: s.go_on(uint([9]), 0), IndexError, "the session has no sample 9"),
    (lambda s: s.go_on(uint([1]), 0), ValueError,
     "only held samples can go on, but sample 1 is in the state waiting"),
    (lambda s: s.go_on(uint([0]), 4), ValueError,
     "hold_at must be 0 or more than the tokens drawn, but sample 0 has 4 and hold_at is 4"),
    (lambda s: s.go_on(uint([0]), -1), ValueError, "need hold_at >= 0, got -1"),
    (lambda s: s.go_on([0], 0), TypeError, "samples must be a numpy array, got list"),
    (lambda s: add_samples(s, 0, [5], hold_at=-2), ValueError, "need hold_at >= 0, got -2"),
    (lambda s: s.ask(uint([0, 9]), ids([1]), ids([1])), IndexError, "the session has no sample 9"),
    (lambda s: s.ask(uint([0, 1]), ids([1]), ids([1])), ValueError,
     "only samples in the cache can be asked, but sample 1 is not: its state is waiting"),
    (lambda s: s.ask(uint([0]), ids([]), ids([1])), ValueError,
     "a question needs at least one token, got none"),
    (lambda s: s.ask(uint([0]), ids([1, 11]), ids([1])), ValueError,
     r"token ids must lie in \[0, 11\), but token 1 of the question is 11"),
    (lambda s: s.ask(uint([0]), ids([1]), ids([-1])), ValueError,
     r"token ids must lie in \[0, 11\), but token 0 of named is -1"),
    (lambda s: s.ask(uint([0]), ids([1] * 56), ids([1])), ValueError,
     r"must fit into the context of 64 tokens, but those of sample 0 have 5 \+ 4 \+ 56"),
    (lambda s: s.ask(uint([0]), ids([1] * 55), ids([1])), MemoryError,
     "no cache blocks left to fork even one sample for a question"),
], ids=lambda part: part if isinstance(part, str) else "")
def test_what_a_session_cannot_do_is_said(counting, call, error, message):
    session = counting(1, blocks=3).session
    add_samples(session, 0, [0, 1], hold_at=4)
    run(session)
    with pytest.raises(error, match=message):
        call(session)
    assert session.stats()["free_blocks"] == 0
    assert session.view(0)[0] == "held"


def test_an_ended_sample_cannot_be_asked_or_ended_again(counting):
    session = counting(2).session
    add_samples(session, 0, [0], new=4)
    run(session)
    with pytest.raises(ValueError, match="sample 0 is not: its state is length"):
        session.ask(uint([0]), ids([1]), ids([1]))
    with pytest.raises(ValueError, match="sample 0 is not waiting, live or held"):
        session.end(0, "pruned")


@pytest.mark.parametrize("ask_blocks", [-1, 8, 9])
def test_blocks_for_questions_leave_some_for_samples(counting, ask_blocks):
    message = f"need 0 <= ask_blocks < cache_blocks = 8, got {ask_blocks}"
    with pytest.raises(ValueError, match=message):
        counting(2, blocks=8, ask_blocks=ask_blocks)
