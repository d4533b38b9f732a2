"""bonaware.costs: counts token by token, fits against another solver, gains against formulas."""

from types import SimpleNamespace

import numpy as np
import pytest

from bonaware import estimators
from bonaware.costs import Cost, CostModel, cost, gain
from bonaware.models import arch_of
from bonaware.policies import get, replay
from bonaware.samples import Sample, Samples


def stored(lengths, reason="eos"):
    def sample(p, i, length):
        zeros = np.zeros(length, np.float32)
        return Sample(p, i, np.zeros(length, np.int32), zeros, zeros, zeros, None, reason, 1.0)

    rows = [[sample(p, i, length) if length else None for i, length in enumerate(row)]
            for p, row in enumerate(lengths)]
    return Samples(["?"] * len(rows), rows)


def run_through(prompt, samples, reads, question):
    """(tokens, pairs): each token put behind its context, one by one.

    samples: lengths; reads: lengths at which a sample is asked.
    """
    contexts = [range(prompt)] + [range(prompt, prompt + length) for length in samples]
    contexts += [range(prompt + at, prompt + at + question) for at in reads]
    tokens = [earlier + 1 for context in contexts for earlier in context]
    return len(tokens), sum(tokens)


# -- counts -------------------------------------------------------------------


def test_cost_counts_each_token_and_what_it_attends_to():
    found = cost(stored([[3, 5], [4, 0]]), prompt_tokens=[7, 2], question_tokens=6)
    assert found.samples.tolist() == [2, 1]
    assert found.prompt_tokens.tolist() == [7, 2]
    assert found.new_tokens.tolist() == [8, 4]
    assert found.reads.tolist() == [2, 1]
    assert found.question_tokens.tolist() == [12, 6]
    wanted = [run_through(7, [3, 5], [3, 5], 6), run_through(2, [4], [4], 6)]
    assert list(zip(found.tokens.tolist(), found.pairs.tolist(), strict=True)) == wanted


def test_a_pruned_sample_is_read_at_each_checkpoint_that_it_came_to_and_a_whole_one_at_its_end():
    """Lengths 2 and 4 end before or at the first checkpoint; of the rest one goes on each time."""
    policy = get("prune", checkpoints=(4, 6), fractions=(0.5, 0.5), n=4)
    samples = stored([[2, 4, 9, 9], [9, 9, 9, 9]])
    prefixes = np.zeros((2, 4, 2))
    run = replay(policy, samples, np.zeros((2, 4)), prefixes).samples
    assert run.lengths.tolist() == [[2, 4, 9, 4], [9, 6, 4, 4]]
    found = cost(run, 5, policy, question_tokens=3)
    reads = [[2, 4, 4, 4, 6, 9], [4, 4, 4, 4, 6, 6, 9]]
    assert found.reads.tolist() == [6, 7]
    wanted = [run_through(5, lengths, asked, 3)
              for lengths, asked in zip(run.lengths.tolist(), reads, strict=True)]
    assert list(zip(found.tokens.tolist(), found.pairs.tolist(), strict=True)) == wanted


def test_a_policy_that_does_not_look_at_beginnings_reads_whole_samples_only():
    policy = get("prune_random", checkpoints=4, fractions=0.5, n=4)
    run = replay(policy, stored([[9, 9, 9, 9]]), np.zeros((1, 4))).samples
    assert cost(run, 5, policy, question_tokens=3).reads.tolist() == [2]


def test_nothing_is_read_where_there_is_no_question():
    policy = get("prune", checkpoints=4, fractions=0.5, n=2)
    found = cost(stored([[9, 9]]), 5, policy)
    assert (found.reads.tolist(), found.question_tokens.tolist()) == ([0], [0])


def test_a_prompt_without_samples_costs_nothing():
    found = cost(stored([[0, 0]]), 5, question_tokens=2)
    assert (found.tokens.tolist(), found.pairs.tolist()) == ([0], [0])


def test_aborted_samples_are_paid_for_and_not_asked():
    found = cost(stored([[4, 3]], reason="aborted"), 5, question_tokens=2)
    assert (found.new_tokens.tolist(), found.reads.tolist()) == ([7], [0])


@pytest.mark.parametrize(("error", "message", "prompt", "question"), [
    (ValueError, "prompt_tokens must be >= 0, but element 1 is -1", [3, -1], 0),
    (ValueError, r"one for each of 2 prompts, got shape \(3,\)", [1, 2, 3], 0),
    (TypeError, "prompt_tokens must hold integers", 3.5, 0),
    (ValueError, "question_tokens must be >= 0, but it is -2", 3, -2),
])  # fmt: skip
def test_cost_says_what_is_wrong(error, message, prompt, question):
    with pytest.raises(error, match=message):
        cost(stored([[1], [1]]), prompt, question_tokens=question)


# -- the model of a cost ------------------------------------------------------


def kinds(prompt, new, question, pairs=0):
    """A run of one prompt with that many tokens of each kind, and pairs."""
    zero = np.array([0])
    return Cost(zero, zero + prompt, zero + new, zero, zero + question, zero + pairs)


RUNS = [kinds(*row) for row in
        [(100, 900, 0, 40000), (100, 200, 60, 9000), (500, 500, 20, 700), (50, 1500, 300, 8000),
         (30, 80, 400, 5000), (10, 10, 10, 3000)]]


def speeds(model):
    return [model.prefill_s, model.decode_s, model.read_s, model.pair_s]


def test_fit_finds_the_speeds_that_made_the_times():
    made = CostModel(prefill_s=1e-4, decode_s=3e-3, read_s=5e-4, pair_s=2e-6)
    found = CostModel(parameters=9).fit(RUNS, [made.seconds(run)[0] for run in RUNS])
    assert speeds(found) == pytest.approx(speeds(made))
    assert found.residual == pytest.approx(0, abs=1e-12)
    assert found.parameters == 9


@pytest.mark.parametrize("seed", range(6))
def test_fit_is_the_non_negative_least_squares_of_relative_errors(seed):
    nnls = pytest.importorskip("scipy.optimize").nnls
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(0.1, 5, len(RUNS))
    found = CostModel().fit(RUNS, seconds)
    table = [[run.prompt_tokens[0], run.new_tokens[0], run.question_tokens[0], run.pairs[0]]
             for run in RUNS]
    best, error = nnls(np.array(table) / seconds[:, None], np.ones(len(RUNS)))
    assert speeds(found) == pytest.approx(best.tolist())
    assert found.residual == pytest.approx(error / np.sqrt(len(RUNS)))


def test_a_kind_of_token_that_no_run_has_is_not_known():
    found = CostModel().fit([kinds(10, 100, 0), kinds(10, 900, 0)], [0.3, 1.9])
    assert np.isnan(found.read_s)
    assert found.seconds(kinds(10, 100, 0)) == pytest.approx(0.3)
    assert np.isnan(found.seconds(kinds(10, 100, 1))).all()


def test_pairs_count_nothing_where_runs_do_not_tell_them_from_tokens():
    """Samples of one length: pairs are as many times the tokens in every run."""
    runs = [kinds(10, new, 0, 20 * new + 200) for new in (100, 400, 900)]
    found = CostModel().fit(runs, [0.3, 0.9, 1.9])
    assert found.pair_s == 0
    assert found.decode_s == pytest.approx(2e-3)
    assert found.seconds(runs[1]) == pytest.approx(0.9)


def test_flops_are_two_per_weight_and_token_and_those_of_attention():
    run = cost(stored([[3, 5]]), 7)
    assert CostModel(parameters=100, attention=12).flops(run) == 2 * 100 * 15 + 12 * run.pairs
    assert np.isnan(CostModel().flops(run)).all()


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_a_model_are_its_weights_without_an_embedding_that_is_only_looked_up(tied):
    arch = arch_of({"architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 8,
                    "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2,
                    "tie_word_embeddings": tied})
    count = sum(int(np.prod(arch.shape(words))) for _, _, words in arch.slots())
    found = CostModel.of(SimpleNamespace(arch=arch, num_parameters=count))
    assert found.parameters == 32 * 8 + 3 * (4 * 8 * 8 + 3 * 8 * 12 + 2 * 8) + 8
    assert found.attention == 3 * 2 * 4 * (2 + 2)  # layers, heads, head_dim; scores and sums


@pytest.mark.parametrize(("message", "runs", "seconds"), [
    ("need the seconds > 0 of each of 2 runs, got", RUNS[:2], [1.0]),
    ("need the seconds > 0 of each of 2 runs, got", RUNS[:2], [1.0, 0.0]),
    ("need the seconds > 0 of each of 2 runs, got", RUNS[:2], [1.0, np.nan]),
    ("2 runs do not tell the seconds of 3 kinds of tokens apart", RUNS[1:3], [1.0, 2.0]),
    ("3 runs do not tell the seconds of 2 kinds", [kinds(5, 10, 0)] * 3, [1.0, 1.0, 1.1]),
    ("0 runs do not tell the seconds of 0 kinds", [], []),
])  # fmt: skip
def test_fit_says_what_is_wrong(message, runs, seconds):
    with pytest.raises(ValueError, match=message):
        CostModel().fit(runs, seconds)


# -- gain ---------------------------------------------------------------------


def test_gain_is_the_share_of_what_best_of_n_adds():
    one, best, policy = np.tile([[0.0, 0.5, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 0.5, 0.0, 1.0]],
                                30)  # fmt: skip
    assert gain(one, one, best) == pytest.approx((0, 0, 0))
    assert gain(best, one, best) == pytest.approx((100, 100, 100))
    assert gain(policy, one, best)[0] == pytest.approx(100 * 1.0 / 1.5)


def test_gain_has_the_interval_of_a_mean_where_the_ends_are_certain():
    policy = np.random.default_rng(0).random(300)
    percent, low, high = gain(policy, np.zeros(300), np.ones(300))
    ends = estimators.interval(100 * policy)
    assert percent == pytest.approx(100 * policy.mean())
    assert (low, high) == pytest.approx(tuple(map(float, ends)), rel=1e-3)


def test_gain_resamples_all_three_means_together():
    """Where each prompt gains the same share, resampling the prompts changes nothing."""
    rng = np.random.default_rng(1)
    one = rng.random(50)
    best = one + rng.random(50)
    assert gain(0.3 * best + 0.7 * one, one, best) == pytest.approx((30, 30, 30))


def test_gains_of_several_policies_are_those_of_each():
    rng = np.random.default_rng(2)
    one, many = rng.random(40), rng.random((40, 2, 3))
    several = gain(many, one, one + 1)
    for place in np.ndindex(2, 3):
        alone = gain(many[(slice(None), *place)], one, one + 1)
        assert alone == pytest.approx(tuple(part[place] for part in several))


def test_gain_is_not_bounded_where_it_is_not_clear_that_there_is_any():
    one = np.zeros(20)
    best = np.where(np.arange(20) < 11, 1.0, -1.0)
    percent, low, high = gain(best, one, best)
    assert (percent, low, high) == (pytest.approx(100), -np.inf, np.inf)


@pytest.mark.parametrize(("message", "arguments"), [
    ("it adds 0 on average, so there is no share", ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])),
    (r"one value per prompt, got shapes \(2,\), \(3,\), \(2,\)", ([1, 1], [0, 0, 0], [1, 1])),
    ("rewards must be finite, but row 1, column 2 is not", ([1, np.nan], [0, 0], [1, 1])),
    ("need at least 2 prompts, got 1", ([1], [0], [1])),
    (r"level must be in \(0, 1\), got 1.5", ([1, 1], [0, 0], [1, 1], 1.5)),
])  # fmt: skip
def test_gain_says_what_is_wrong(message, arguments):
    with pytest.raises(ValueError, match=message):
        gain(*arguments)
