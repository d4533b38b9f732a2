"""A sample is the same, bit for bit, whatever it is drawn beside.

Tokens, log-probabilities and certainty are compared with ==: alone, among 32, among other prompts,
in another order, in waves, with one thread and with two, in float32, bfloat16 and int8. Lengths are
chosen to end before, on and behind the borders of blocks of 16, 32 and 64 tokens, and to cross
every window.
"""

import numpy as np
import pytest
from sampling import smallest_memory
from tiny import MODELS

import bonaware as bon

NAMES = ["llama3", "gemma2", "gemma3", "qwen3", "wide"]
STORED = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16"}  # by dtype
DTYPES = list(STORED)
ROUTES = [("dot", "bfloat16"), ("dot", "int8"), ("onednn", "float32"), ("onednn", "bfloat16")]
LENGTHS = [1, 15, 16, 17, 32, 33, 64, 90]
NEW_TOKENS = 40  # own tokens cross a block, too


def prompts_of(name):
    rng = np.random.default_rng(0)
    return [rng.integers(0, MODELS[name]["vocab_size"], length).tolist() for length in LENGTHS]


def bits(samples, prompt=None):
    """(prompt, index) -> all that was computed about a sample, as bytes; one prompt counts as 0."""
    chosen = samples if prompt is None else samples[prompt]
    fields = ("tokens", "logp", "sampled_logp", "certainty")
    return {(s.prompt, s.index): [getattr(s, f).tobytes() for f in fields] for s in chosen}


def draw(lm, prompts, n=3, **options):
    return lm.generate(prompts, n=n, max_new_tokens=NEW_TOKENS, rng=7, **options)


@pytest.fixture(scope="module")
def loaded(tiny):
    """A function: name, dtype -> the model with two threads, and three samples of each prompt."""
    cache = {}

    def load(name, dtype):
        if (name, dtype) not in cache:
            lm = bon.LM.load(tiny(name, dtype=STORED[dtype]), dtype=dtype, threads=2)
            cache[name, dtype] = lm, draw(lm, prompts_of(name))
        return cache[name, dtype]

    return load


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_drawn_alone_is_the_one_drawn_among_prompts(loaded, name, dtype):
    lm, together = loaded(name, dtype)
    for p, prompt in enumerate(prompts_of(name)):
        alone = draw(lm, [prompt], n=1, start=1)
        assert bits(alone)[0, 1] == bits(together, p)[0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_first_of_32_samples_are_the_three_drawn_before(loaded, name, dtype):
    lm, three = loaded(name, dtype)
    for p in (0, 3, 7):
        among = bits(draw(lm, [prompts_of(name)[p]], n=32))
        assert {key: among[key] for key in [(0, 0), (0, 1), (0, 2)]} == bits(three, p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_prompts_does_not_matter(loaded, name, dtype):
    lm, together = loaded(name, dtype)
    order = np.random.default_rng(1).permutation(len(LENGTHS))
    mixed = draw(lm, [prompts_of(name)[p] for p in order])
    for row, p in enumerate(order):
        assert bits(mixed, row) == bits(together, p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_one_thread_draws_what_two_draw(loaded, tiny, name, dtype):
    _, together = loaded(name, dtype)
    single = bon.LM.load(tiny(name, dtype=STORED[dtype]), dtype=dtype, threads=1)
    assert bits(draw(single, prompts_of(name))) == bits(together)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gemma3", "wide"])
def test_waves_within_a_small_memory_draw_the_same(loaded, tiny, name, dtype):
    _, together = loaded(name, dtype)
    path = tiny(name, dtype=STORED[dtype])
    budget = smallest_memory(path, prompts_of(name)[-1], NEW_TOKENS, dtype=dtype)
    for memory in (budget, 3 * budget):
        lm = bon.LM.load(path, dtype=dtype, memory=memory)
        assert bits(draw(lm, prompts_of(name))) == bits(together)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_that_end_early_do_not_touch_their_neighbours(tiny, dtype):
    plain = bon.LM.load(tiny("llama3", dtype=STORED[dtype]), dtype=dtype)
    ends = list(range(0, 97, 8))
    ending = bon.LM.load(tiny("llama3", dtype=STORED[dtype], eos=ends), dtype=dtype)
    prompts = prompts_of("llama3")
    free, ended = draw(plain, prompts, n=8), draw(ending, prompts, n=8)
    assert len(np.unique(ended.lengths)) > 10
    for a, b in zip(free, ended, strict=True):
        for field in ("tokens", "logp", "sampled_logp", "certainty"):
            want = getattr(a, field)[: len(b.tokens)]
            np.testing.assert_array_equal(getattr(b, field), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_truncated_sampling_and_schedules_keep_the_rule(loaded, dtype):
    lm, _ = loaded("qwen3", dtype)
    how = {"top_k": 20, "top_p": 0.9, "min_p": 0.02}
    schedule = np.linspace(0.3, 1.4, 16)
    prompts = prompts_of("qwen3")
    together = draw(lm, prompts, n=16, temperature=schedule, **how)
    for i in (0, 7, 15):
        alone = draw(lm, [prompts[5]], n=1, start=i, temperature=float(schedule[i]), **how)
        assert bits(alone)[0, i] == bits(together, 5)[0, i]


@pytest.mark.parametrize(("route", "dtype"), ROUTES)
@pytest.mark.parametrize("name", ["gemma3", "wide"])
def test_every_route_keeps_the_rule(tiny, by_route, name, route, dtype):
    by_route(route, dtype)
    models = [bon.LM.load(tiny(name, dtype=STORED[dtype]), dtype=dtype, threads=t) for t in (1, 2)]
    assert route in models[0].routes.values()  # oneDNN is refused for some shapes
    assert (route, dtype) == ("onednn", "bfloat16") or set(models[0].routes.values()) == {route}
    prompts = prompts_of(name)
    together = draw(models[0], prompts)
    assert bits(draw(models[1], prompts)) == bits(together)
    for p in (0, 5):
        assert bits(draw(models[1], [prompts[p]], n=1))[0, 0] == bits(together, p)[0, 0]


def test_kernels_are_chosen_once_for_any_number_of_threads(tiny, monkeypatch, tmp_path):
    from bonaware import routes

    measured = []
    monkeypatch.setenv("BONAWARE_CACHE", str(tmp_path))
    monkeypatch.setattr(routes, "SMALL", 0)
    monkeypatch.setattr(routes, "_fastest", lambda model, products, _: (
        measured.extend(products) or dict.fromkeys(products, "tile")))
    for threads in (2, 1):
        bon.LM.load(tiny("wide"), dtype="float32", threads=threads)
        assert len(measured) == 10  # five shapes in two phases, measured by the first load


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_logp_do_not_depend_on_threads_or_neighbours(loaded, tiny, name, dtype):
    lm, samples = loaded(name, dtype)
    single = bon.LM.load(tiny(name, dtype=STORED[dtype]), dtype=dtype, threads=1)
    prompts = prompts_of(name)
    np.testing.assert_array_equal(lm.logits(prompts[-1]), single.logits(prompts[-1]))
    together = lm.logp(prompts, samples.tokens)
    for p, prompt in enumerate(prompts):
        alone = single.logp([prompt], [samples.tokens[p][1:2]])
        np.testing.assert_array_equal(alone[0][0], together[p][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_do_not_depend_on_the_tokens_that_follow(loaded, name, dtype):
    lm, _ = loaded(name, dtype)
    tokens = np.random.default_rng(2).integers(0, MODELS[name]["vocab_size"], 200)
    whole = lm.logits(tokens)
    for length in (1, 16, 31, 33, 65, 128, 199):
        np.testing.assert_array_equal(lm.logits(tokens[:length]), whole[:length])


@pytest.mark.parametrize("name", ["llama3", "wide"])
@pytest.mark.parametrize("length", [127, 128, 129, 255, 256, 257, 300])
def test_a_prompt_is_read_whole_however_many_rows_go_together(loaded, name, length):
    lm, _ = loaded(name, "float32")
    prompt = np.random.default_rng(length).integers(0, MODELS[name]["vocab_size"], length)
    sample = lm.generate([prompt.tolist()], n=1, max_new_tokens=1, rng=0, progress=False)[0][0]
    logits = lm.logits(prompt)[-1].astype(float)  # by other pieces
    want = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    np.testing.assert_allclose(sample.logp, want[sample.tokens], rtol=0, atol=1e-5)
