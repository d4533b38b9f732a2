"""LM.generate: what is drawn follows the stated law, and ends when and how it should."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from sampling import (
    LAWS,
    PROMPT,
    assert_frequencies_follow,
    draw_in_worker,
    drawn,
    law,
    next_law,
    smallest_memory,
    softmax,
)
from tiny import MODELS, PIECES, write_checkpoint

import bonaware as bon


@pytest.fixture
def counting(tiny):
    return bon.LM.load(tiny("counting"), dtype="float32")


@pytest.fixture
def ending(tiny):
    """With a tokenizer, and two tokens that end a sample."""
    return bon.LM.load(tiny("counting", tokenizer=True, eos=[0, 1]), dtype="float32")


# -- the law -----------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("how", LAWS, ids=str)
def test_frequencies_of_one_token_follow_its_probabilities(counting, how):
    samples = counting.generate([PROMPT], n=20_000, max_new_tokens=1, rng=3, **how)
    tokens = np.array([s.tokens[0] for s in samples])
    counts = np.bincount(tokens, minlength=11)
    assert_frequencies_follow(counts, next_law(counting, PROMPT, **how))


@pytest.mark.heavy
@pytest.mark.parametrize("how", LAWS, ids=str)
def test_frequencies_of_two_tokens_follow_their_joint_probabilities(counting, how):
    samples = counting.generate([PROMPT], n=20_000, max_new_tokens=2, rng=4, **how)
    counts = np.zeros((11, 11), int)
    for s in samples:
        counts[*s.tokens] += 1
    first = next_law(counting, PROMPT, **how)
    second = np.stack([next_law(counting, [*PROMPT, token], **how) for token in range(11)])
    assert_frequencies_follow(counts.ravel(), (first[:, None] * second).ravel())


def test_samples_of_neighbouring_seeds_and_indices_are_independent(counting):
    def tokens(rng):
        samples = counting.generate([PROMPT], n=4000, max_new_tokens=1, rng=rng)
        return np.array([s.tokens[0] for s in samples])

    p = next_law(counting, PROMPT)
    for a, b in [(tokens(0), tokens(1)), (tokens(0)[:-1], tokens(0)[1:])]:
        counts = np.bincount(11 * a + b, minlength=121)
        assert_frequencies_follow(counts, np.outer(p, p).ravel())


@pytest.mark.parametrize("how", LAWS, ids=str)
def test_logp_is_the_models_and_sampled_logp_that_of_the_draw(counting, how):
    samples = counting.generate([PROMPT], n=20, max_new_tokens=6, rng=5, **how)
    for s in samples:
        logits = counting.logits([*PROMPT, *s.tokens])[len(PROMPT) - 1 : -1]
        at = np.arange(len(s.tokens)), s.tokens
        raw = np.log([softmax(row.astype(np.float64)) for row in logits])
        with np.errstate(divide="ignore"):  # what truncation left out, but did not draw
            used = np.log([law(row, **how) for row in logits])
        np.testing.assert_allclose(s.logp, raw[at], atol=1e-5)
        np.testing.assert_allclose(s.sampled_logp, used[at], atol=1e-5)
        np.testing.assert_allclose(s.certainty, -(np.log(11) + raw).mean(axis=1), atol=1e-5)


def test_logp_of_what_was_drawn_is_the_same_by_lm_logp(tiny):
    lm = bon.LM.load(tiny("gemma2"), dtype="float32")
    prompts = [PROMPT, list(range(1, 60))]
    samples = lm.generate(prompts, n=4, temperature=0.8, max_new_tokens=50, rng=1)
    for temperature, field in ((1.0, samples.logp), (0.8, samples.sampled_logp)):
        scored = lm.logp(prompts, samples.tokens, temperature=temperature)
        for p, i in itertools.product(range(2), range(4)):
            np.testing.assert_allclose(scored[p][i], field[p][i], atol=3e-4)


def test_a_sample_can_be_recomputed_from_numpy_alone(counting):
    """Philox, key (seed, hash of the prompt), counter (position, sample, repeat, stream)."""

    def prompt_hash(tokens):
        h = 0xCBF29CE484222325
        for byte in np.asarray(tokens, "<i4").tobytes():
            h = (h ^ byte) * 0x100000001B3 % 2**64
        for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            h = (h ^ (h >> 33)) * multiplier % 2**64
        return h ^ (h >> 33)

    def uniform(seed, repeat, sample, position):
        counter = position + (sample << 64) + (repeat << 128)
        block = np.random.Philox(key=seed + (prompt_hash(PROMPT) << 64),
                                 counter=(counter - 1) % 2**256)
        return (int(block.random_raw()) >> 11) * 2.0**-53

    seed = int(np.random.SeedSequence(9).generate_state(1, np.uint64)[0])
    samples = counting.generate([PROMPT, PROMPT], n=8, max_new_tokens=10, rng=9)
    for s in samples:
        tokens = list(PROMPT)
        for position in range(10):
            below = next_law(counting, tokens).cumsum()
            u = uniform(seed, s.prompt, s.index, position)
            tokens.append(int(np.searchsorted(below, u, side="right")))
        assert s.tokens.tolist() == tokens[len(PROMPT) :]


# -- temperature -------------------------------------------------------------


def test_temperature_zero_draws_the_largest_logit_with_certainty(counting):
    samples = counting.generate([PROMPT], n=1, temperature=0, max_new_tokens=20)
    tokens = list(PROMPT)
    for token in samples.tokens[0][0]:
        assert token == counting.logits(tokens)[-1].argmax()
        tokens.append(int(token))
    assert (samples.sampled_logp[0][0] == 0).all()
    assert (samples.logp[0][0] < 0).all()


def test_each_sample_has_its_own_temperature(counting):
    schedule = np.array([0.0, 0.3, 0.8, 1.0, 2.5])
    together = counting.generate([PROMPT], n=5, temperature=schedule, max_new_tokens=12, rng=2)
    np.testing.assert_array_equal(together.temperature, schedule[None])
    for i, temperature in enumerate(schedule):
        alone = counting.generate([PROMPT], n=1, start=i, temperature=float(temperature),
                                  max_new_tokens=12, rng=2)
        assert drawn(alone) == drawn(together)[i : i + 1]


def test_frequencies_under_a_schedule_follow_each_temperature(counting):
    schedule = np.tile([0.4, 1.6], 10_000)
    samples = counting.generate([PROMPT], n=20_000, temperature=schedule, max_new_tokens=1, rng=8)
    tokens = np.array([s.tokens[0] for s in samples])
    for start, temperature in enumerate((0.4, 1.6)):
        counts = np.bincount(tokens[start::2], minlength=11)
        assert_frequencies_follow(counts, next_law(counting, PROMPT, temperature=temperature))


def test_a_schedule_goes_on_where_start_says(counting):
    schedule = np.linspace(0.5, 1.5, 32)
    whole = counting.generate([PROMPT], n=32, temperature=schedule, max_new_tokens=5, rng=6)
    later = counting.generate([PROMPT], n=24, start=8, temperature=schedule[8:], max_new_tokens=5,
                              rng=6)
    assert drawn(later) == drawn(whole)[8:]


# -- how a sample ends -------------------------------------------------------


def test_a_sample_ends_at_max_new_tokens(counting):
    samples = counting.generate([PROMPT], n=7, max_new_tokens=9)
    assert (samples.lengths == 9).all()
    assert (samples.finish_reason == "length").all()
    assert samples.text == [[None] * 7]


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 60, 63])
def test_a_sample_ends_where_the_context_ends(counting, length):
    prompt = np.arange(length) % 11
    samples = counting.generate([prompt.tolist()], n=3, max_new_tokens=256)
    assert (samples.lengths == 64 - length).all()
    assert (samples.finish_reason == "length").all()


@pytest.mark.parametrize("eos", [1, [1], [5, 0, 1]], ids=str)
def test_a_sample_ends_with_an_end_token_which_is_part_of_it(tiny, eos):
    lm = bon.LM.load(tiny("counting", tokenizer=True, eos=eos), dtype="float32")
    samples = lm.generate([PROMPT], n=200, max_new_tokens=6, rng=1)
    ends = [eos] if isinstance(eos, int) else eos
    for s in samples:
        assert not set(ends) & set(s.tokens[:-1])
        assert (s.finish_reason == "eos") == (s.tokens[-1] in ends)
        shown = s.tokens[:-1] if s.finish_reason == "eos" else s.tokens
        assert s.text == "".join(PIECES[t] for t in shown if t > 1)
        assert len(s.tokens) == len(s.logp) == len(s.sampled_logp) == len(s.certainty)
    assert set(samples.finish_reason[0]) == {"eos", "length"}


def test_without_generation_config_the_end_token_of_the_config_counts(tiny, tmp_path):
    config = MODELS["counting"] | {"eos_token_id": 4}
    path = write_checkpoint(tmp_path / "model", config, logit_scale=1.0)
    samples = bon.LM.load(path).generate([PROMPT], n=50, max_new_tokens=30)
    assert "eos" in samples.finish_reason
    assert all((s.tokens[-1] == 4) == (s.finish_reason == "eos") for s in samples)


def joined(tokens):
    return "".join(PIECES[t] for t in tokens if t > 1)


@pytest.mark.parametrize("stops", [("abb",), ("abb", "c."), ("b",), ("ba", ". b")], ids=str)
def test_a_stop_string_ends_a_sample_wherever_tokens_begin(ending, stops):
    samples = ending.generate([PROMPT], n=600, max_new_tokens=25, stop_strings=stops, rng=7)
    pieces = set()
    for s in samples:
        text = joined(s.tokens)
        found = [text.index(stop) for stop in stops if stop in text]
        assert (s.finish_reason == "stop") == bool(found)
        assert not any(stop in joined(s.tokens[:-1]) for stop in stops)
        assert s.text == (text[: min(found)] if found else text)
        if found:
            pieces.add(tuple(s.tokens[-2:]))
    assert len(pieces) > 1  # the same string, cut into tokens in several ways
    assert "stop" in samples.finish_reason
    assert "eos" in samples.finish_reason


def test_a_stop_string_does_not_change_what_was_drawn_before_it(ending):
    options = {"n": 100, "max_new_tokens": 25, "rng": 7}
    free = ending.generate([PROMPT], **options)
    stopped = ending.generate([PROMPT], stop_strings=["ab"], **options)
    for a, b in zip(free, stopped, strict=True):
        np.testing.assert_array_equal(a.tokens[: len(b.tokens)], b.tokens)
        np.testing.assert_array_equal(a.logp[: len(b.tokens)], b.logp)


def test_a_stop_string_in_the_prompt_does_not_count(ending):
    samples = ending.generate(["abb"], n=30, max_new_tokens=10, stop_strings=["abb"], rng=1)
    assert (samples.lengths[samples.finish_reason == "stop"] >= 1).all()
    assert (samples.finish_reason != "stop").any()


# -- many samples, many prompts ----------------------------------------------


def test_eight_samples_and_twenty_four_more_are_the_same_as_thirty_two(ending):
    prompts, options = [PROMPT, [2, 3]], {"max_new_tokens": 20, "rng": 11}
    whole = ending.generate(prompts, n=32, **options)
    first = ending.generate(prompts, n=8, **options)
    more = ending.generate(prompts, n=24, start=8, **options)
    assert more.start == 8
    for p in range(2):
        assert drawn(first[p]) + drawn(more[p]) == drawn(whole[p])


def test_equal_prompts_get_different_samples(counting):
    samples = counting.generate([PROMPT, [3], PROMPT], n=5, max_new_tokens=20, rng=0)
    rows = [[t.tolist() for t in samples.tokens[p]] for p in (0, 2)]
    assert all(a != b for a, b in zip(*rows, strict=True))


def test_the_prompt_is_read_once_however_many_samples(counting):
    prompts = [PROMPT, list(range(10)) * 4]
    for n in (1, 50):
        stats = counting.generate(prompts, n=n, max_new_tokens=3).stats
        assert stats.prompt_tokens == 45
        assert stats.new_tokens == 2 * n * 3
        assert 0 < stats.prefill_seconds + stats.decode_seconds <= stats.seconds


@pytest.mark.parametrize("n", [1024, 5000])
def test_more_samples_than_fit_are_drawn_in_waves(tiny, n):
    path = tiny("counting", eos=1)
    memory = 4 * smallest_memory(path, PROMPT, 20, dtype="float32")
    prompts = [PROMPT, [4, 4], [9]]
    lm = bon.LM.load(path, dtype="float32", memory=memory)
    samples = lm.generate(prompts, n=n, max_new_tokens=20, rng=13)
    assert samples.valid.all()
    assert samples.valid.shape == (3, n)
    assert samples.stats.prompt_tokens == 8  # a prompt stays while its samples wait
    few = bon.LM.load(path, dtype="float32").generate(prompts, n=5, max_new_tokens=20, rng=13)
    for p in range(3):
        assert drawn(samples[p])[:5] == drawn(few[p])


def test_prompts_may_be_lists_arrays_or_text(ending):
    text = "ab c"
    ids = ending.encode(text)
    options = {"n": 3, "max_new_tokens": 8, "rng": 1}
    want = [row[2:] for row in drawn(ending.generate([text], **options))]
    for prompt in (ids, ids.tolist(), ids.astype(np.int64)):
        assert [row[2:] for row in drawn(ending.generate([prompt], **options))] == want


def test_the_seed_decides(counting):
    def tokens(rng):
        return drawn(counting.generate([PROMPT], n=4, max_new_tokens=20, rng=rng))

    assert tokens(5) == tokens(np.random.SeedSequence(5)) != tokens(6)
    assert tokens(None) != tokens(None)
    generator = np.random.default_rng(5)
    assert tokens(generator) != tokens(generator)
    assert tokens(np.random.default_rng(5)) == tokens(np.random.default_rng(5))


def test_stream_gives_each_sample_when_it_ends(ending):
    from bonaware.samples import Request

    requests = [Request(prompt=0, tokens=np.array(PROMPT, np.int32), indices=[0, 1, 5]),
                Request(prompt=1, tokens=np.array([3], np.int32), indices=[2])]
    options = {"max_new_tokens": 20, "rng": 4}
    streamed = sorted(ending.stream(requests, **options), key=lambda s: (s.prompt, s.index))
    want = drawn(ending.generate([PROMPT, [3]], n=6, **options))
    assert drawn(streamed) == [want[0], want[1], want[5], want[8]]


# -- interruption ------------------------------------------------------------


@pytest.fixture
def interrupt_after():
    """A function: seconds -> a timer that then sends SIGINT, and notes when, in its list."""
    timers = []

    def start(seconds):
        sent = []

        def send():
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        timers.append(threading.Timer(seconds, send))
        timers[-1].start()
        return sent

    yield start
    for timer in timers:
        timer.cancel()
        timer.join()


@pytest.mark.clock
def test_ctrl_c_ends_generate_at_once_and_keeps_what_is_finished(tiny, interrupt_after):
    path = tiny("wide", eos=[5, 6, 7])
    lm = bon.LM.load(path, dtype="float32")
    prompts = [[1, 2, 3], [8, 9]]
    options = {"n": 4096, "max_new_tokens": 4000, "rng": 1}
    sent = interrupt_after(1.5)
    with pytest.warns(UserWarning, match=r"interrupted: \d+ of 8192 samples are finished"):
        samples = lm.generate(prompts, **options)
    assert time.perf_counter() - sent[0] < 0.5
    assert (samples.valid == (samples.finish_reason != "")).all()
    assert set(samples.finish_reason[samples.valid]) == {"eos", "aborted"}
    finished = next(s for s in samples if s.finish_reason == "eos")
    again = lm.generate([prompts[0]], n=1, start=finished.index, max_new_tokens=4000, rng=1)
    np.testing.assert_array_equal(again.tokens[0][0], finished.tokens)


@pytest.mark.clock
def test_ctrl_c_during_a_long_prompt_is_answered(tiny, interrupt_after):
    lm = bon.LM.load(tiny("wide"), dtype="float32")
    prompts = [np.random.default_rng(p).integers(0, 1003, 4000) for p in range(40)]
    sent = interrupt_after(0.5)
    with pytest.warns(UserWarning, match="interrupted: .* of 40 samples"):
        samples = lm.generate(prompts, n=1, max_new_tokens=1)
    assert sent
    assert time.perf_counter() - sent[0] < 0.5
    assert not samples.valid.all() or "aborted" in samples.finish_reason


@pytest.mark.clock
def test_other_threads_run_while_samples_are_drawn(tiny):
    lm = bon.LM.load(tiny("wide"), dtype="float32", threads=1)
    pauses, done = [], threading.Event()

    def watch():
        last = time.perf_counter()
        while not done.wait(0.001):
            last, before = time.perf_counter(), last
            pauses.append(last - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    lm.generate([PROMPT], n=64, max_new_tokens=200)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    assert len(pauses) > 3
    assert max(pauses) < max(0.1, seconds / 2)


# -- beside others -----------------------------------------------------------

DRAW = """
import bonaware
lm = bonaware.LM.load({path!r}, dtype="float32")
samples = lm.generate([{prompt}], n=8, max_new_tokens=30, rng=1)
"""
TORCH = "import torch; a = torch.rand(600, 600); b = (a @ a).sum().item()\n"
SHOW = "print([s.tokens.tolist() for s in samples])\n"


@pytest.mark.heavy
@pytest.mark.parametrize("code", [TORCH + DRAW + SHOW, DRAW + TORCH + DRAW + TORCH + SHOW],
                         ids=["torch_first", "torch_later"])
def test_torch_in_the_same_process_does_no_harm(tiny, code):
    pytest.importorskip("torch", reason="needs torch")
    path = str(tiny("wide"))
    result = subprocess.run([sys.executable, "-c", code.format(path=path, prompt=PROMPT)],
                            capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(draw_in_worker(path))


def test_spawned_workers_draw_the_same_samples(tiny):
    path = str(tiny("wide"))
    here = draw_in_worker(path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map_async(draw_in_worker, [path] * 4).get(timeout=300) == [here] * 4


def test_two_threads_with_a_model_each_draw_the_same_samples(tiny):
    path, results = str(tiny("wide")), [None, None]

    def work(slot):
        results[slot] = draw_in_worker(path)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert results[0] == results[1] == draw_in_worker(path)
