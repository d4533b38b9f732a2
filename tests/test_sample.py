"""bonaware._engine's random numbers and sampler: against NumPy, and against transformers."""

import numpy as np
import pytest
from sampling import LAWS, law

_engine = pytest.importorskip("bonaware._engine", reason="the engine is not built")

LAST_U = 1 - 2.0**-53
WORD = 2**64


def draw(logits, u, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Token, logp, sampled_logp and certainty of one row, or of many, at each u."""
    u = np.atleast_1d(np.asarray(u, np.float64))
    rows = np.ascontiguousarray(np.broadcast_to(np.float32(logits), (len(u), np.shape(logits)[-1])))
    temperatures = np.full(len(u), temperature, np.float32)
    return _engine.sample(rows, u, temperatures, top_k or 0, top_p or 1.0, min_p or 0.0)


def middles(p):
    """The kept tokens that weigh something, and the middles of their intervals of u."""
    kept = np.flatnonzero(p > 1e-5)
    return kept, (p.cumsum() - p / 2)[kept]


def assert_draws_follow(p, logits, **how):
    """Each token at its place in the cumulative distribution, with its probability. The
    probabilities add up to 1, so tokens that should have been dropped have no room."""
    tokens, u = middles(p)
    token, logp, sampled_logp, certainty = draw(logits, u, **how)
    np.testing.assert_array_equal(token, tokens)
    np.testing.assert_allclose(sampled_logp, np.log(p[tokens]), rtol=1e-6, atol=1e-5)
    raw = log_softmax(logits)
    np.testing.assert_allclose(logp, raw[tokens], rtol=2e-7, atol=1e-6)
    uniform = np.log(np.isfinite(raw).sum())
    np.testing.assert_allclose(certainty, -raw[np.isfinite(raw)].mean() - uniform, atol=2e-6)


def log_softmax(logits):
    x = np.asarray(logits, np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


# -- random numbers ----------------------------------------------------------


def numpy_stream(seed, prompt, repeat, sample, position):
    """NumPy's generator, whose first block belongs to its counter + 1."""
    counter = (position + (sample << 64) + (repeat << 128) - 1) % WORD**4
    words = [(counter >> shift) % WORD for shift in (0, 64, 128, 192)]
    return np.random.Philox(
        key=np.array([seed, prompt], np.uint64), counter=np.array(words, np.uint64)
    )


@pytest.mark.parametrize("key", [
    (0, 0, 0, 0, 0),
    (1, 2, 3, 4, 5),
    (7, 0, 0, 0, 2**40),
    (2**63, 2**64 - 1, 0, 2**32, 1),
    (WORD - 1,) * 5,
    tuple(int(word) for word in np.random.default_rng(0).integers(WORD - 1, size=5, dtype="u8")),
], ids=lambda key: "-".join(f"{word:x}" for word in key))
def test_rng_uniform_is_numpys_philox(key):
    assert _engine.rng_uniform(*key) == np.random.Generator(numpy_stream(*key)).random()


def test_rng_uniform_of_positions_in_a_row_is_one_numpy_stream():
    got = [_engine.rng_uniform(5, 6, 1, 2, position) for position in range(100)]
    words = numpy_stream(5, 6, 1, 2, 0).random_raw(400)[::4]
    np.testing.assert_array_equal(got, (words >> np.uint64(11)) * 2.0**-53)


def hash_of_bytes(tokens):
    h = 14695981039346656037
    for byte in np.asarray(tokens, "<i4").tobytes():
        h = (h ^ byte) * 1099511628211 % WORD
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ h >> 33) * factor % WORD
    return h ^ h >> 33


@pytest.mark.parametrize("tokens", [
    [], [0], [0, 0], [1, 2, 3], [128_000, 9906, 1917], [2**31 - 1, -1, -(2**31)], range(1000),
], ids=lambda tokens: f"{len(tokens)}_tokens")
def test_hash_tokens_is_fnv_1a_with_a_final_mix(tokens):
    assert _engine.hash_tokens(np.array(tokens, np.int32)) == hash_of_bytes(tokens)


def test_hash_tokens_does_not_change_between_versions():
    assert _engine.hash_tokens(np.array([1, 2, 3], np.int32)) == 0xF50E90AAE860FE4C


# -- sampler: values ---------------------------------------------------------


@pytest.mark.parametrize("how", LAWS, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("spread", [0.1, 2, 10])
def test_sample_follows_the_law(how, vocab, spread):
    logits = np.float32(spread * np.random.default_rng(vocab).normal(size=vocab))
    how = how | {"top_k": min(how["top_k"], vocab)} if "top_k" in how else how
    assert_draws_follow(law(logits, **how), logits, **how)


@pytest.mark.parametrize("how", LAWS, ids=str)
def test_sample_follows_the_law_with_banned_tokens(how):
    logits = np.random.default_rng(3).normal(size=300).astype(np.float32)
    logits[::3] = -np.inf
    with np.errstate(invalid="ignore"):
        assert_draws_follow(law(logits, **how), logits, **how)


@pytest.mark.heavy
@pytest.mark.parametrize("how", LAWS, ids=str)
def test_sample_keeps_what_transformers_keeps(how):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = {  # in the order of GenerationMixin
        "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper,
    }
    for vocab in (10, 200, 3000):
        logits = np.float32(2.5 * np.random.default_rng(vocab).normal(size=vocab))
        scores = torch.tensor(logits)[None]
        for name, warper in warpers.items():
            if name in how:
                scores = warper(how[name])(None, scores)
        p = scores.double().softmax(-1)[0].numpy()
        assert_draws_follow(p, logits, **how)


def test_sample_at_temperature_zero_takes_the_lowest_id_of_the_largest_logit():
    logits = np.float32([0, 2, 1, 2, -np.inf])
    token, logp, sampled_logp, _ = draw(logits, [0, 0.5, LAST_U], temperature=0)
    assert token.tolist() == [1, 1, 1]
    assert sampled_logp.tolist() == [0, 0, 0]
    np.testing.assert_allclose(logp, log_softmax(logits)[1], rtol=1e-6)


def test_sample_has_a_temperature_per_row():
    logits = np.float32(np.random.default_rng(1).normal(size=(3, 100)))
    u, temperatures = np.array([0.2, 0.5, 0.8]), np.float32([0, 0.5, 2])
    together = _engine.sample(logits, u, temperatures, 20, 0.9, 0.01)
    for row in range(3):
        at = slice(row, row + 1)
        alone = _engine.sample(logits[at], u[at], temperatures[at], 20, 0.9, 0.01)
        for got, want in zip(alone, together, strict=True):
            np.testing.assert_array_equal(got, want[at])


def test_sample_keeps_all_ties_with_the_kth_logit():
    token = draw([1, 3, 2, 2, 0], np.linspace(0, LAST_U, 500), top_k=2)[0]
    assert set(token.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("tenths", range(1, 10))
def test_sample_keeps_the_lowest_ids_of_ties_at_the_border_of_top_p(tenths):
    token = draw(np.zeros(10), np.linspace(0, LAST_U, 500), top_p=tenths / 10)[0]
    assert set(token.tolist()) == set(range(tenths))


@pytest.mark.parametrize("u", [0.0, 0.5, LAST_U])
@pytest.mark.parametrize("how", LAWS, ids=str)
def test_sample_never_draws_a_banned_token(how, u):
    for allowed in range(20):
        logits = np.where(np.arange(20) == allowed, 0, -np.inf)
        token, logp, sampled_logp, _ = draw(logits, u, **how)
        assert (token[0], logp[0], sampled_logp[0]) == (allowed, 0, 0)


def test_sample_certainty_is_the_divergence_of_the_uniform_distribution_from_the_model():
    assert draw(np.full(50, 3.25), 0.5)[3][0] == pytest.approx(0, abs=1e-6)
    p = np.array([0.5, 0.25, 0.125, 0.125])
    want = -np.log(4 * p).mean()
    assert draw(np.log(p), 0.5, top_k=1, temperature=0.3)[3][0] == pytest.approx(want, abs=1e-6)


# -- sampler: errors ---------------------------------------------------------


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_sample_names_the_row_that_is_not_finite(wrong):
    logits = np.zeros((3, 10), np.float32)
    logits[1, 4] = wrong
    with pytest.raises(ValueError, match="row 1"):
        draw(logits, [0.5, 0.5, 0.5])


def test_sample_refuses_a_row_without_a_token():
    with pytest.raises(ValueError, match="row 0"):
        draw(np.full(10, -np.inf), 0.5)


@pytest.mark.parametrize("how", [
    {"temperature": -1}, {"temperature": np.nan}, {"temperature": np.inf}, {"top_k": -1},
    {"top_p": -0.1}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 1.1},
], ids=str)
def test_sample_refuses_options_out_of_bounds(how):
    with pytest.raises(ValueError, match="need 0 <= u < 1, temperature >= 0"):
        draw(np.zeros(10), 0.5, **how)


@pytest.mark.parametrize("u", [-0.1, 1.0, np.nan])
def test_sample_refuses_u_outside_0_to_1(u):
    with pytest.raises(ValueError, match="row 0"):
        draw(np.zeros(10), u)
