"""bonaware.tasks.countdown: made problems, their splits, solutions and the exact verifier."""

import itertools
import operator
import re
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonaware import tasks
from bonaware.tasks import Problem
from bonaware.tasks._countdown_arrays import SHARES, draw, programs, results, shares, write
from bonaware.tasks._countdown_text import read
from bonaware.tasks.countdown import HIGH, LEVELS, LIMIT, SMALL, SPLITS, steps_text

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def problem(target, *numbers):
    return Problem("0", "?", {"numbers": list(numbers), "target": target})


def reward(target, numbers, text):
    return tasks.get("countdown").reward(problem(target, *numbers), text)


# -- an independent solver: exact fractions, every order, no vectors ------------


def every_way(left):
    """(value, expression) of all ways to combine (value, expression) pairs."""
    if len(left) == 1:
        yield left[0]
        return
    for i, j in itertools.permutations(range(len(left)), 2):
        (one, first), (other, second) = left[i], left[j]
        rest = [pair for k, pair in enumerate(left) if k not in (i, j)]
        for sign, apply in SIGNS.items():
            if sign != "/" or other != 0:
                yield from every_way([*rest, (apply(one, other), f"({first}{sign}{second})")])


def ways(numbers):
    return list(every_way([(Fraction(number), str(number)) for number in numbers]))


def whole_values(numbers, limit):
    """All that the numbers can reach by steps within whole numbers from 1 to limit."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for apply in SIGNS.values():
            value = apply(Fraction(numbers[i]), numbers[j])
            if value.denominator == 1 and 1 <= value <= limit:
                found |= whole_values([*rest, int(value)], limit)
    return found


# -- all results at once -----------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(2, 4), (3, 48), (4, 1152), (5, 46080)])
def test_programs_are_all_different_and_use_every_place_once(size, count):
    steps = programs(size)
    assert steps.shape == (count, size - 1, 3)
    assert len(np.unique(steps.reshape(count, -1), axis=0)) == count
    places = np.sort(steps[:, :, :2].reshape(count, -1), axis=1)
    assert (places == np.arange(2 * size - 2)).all()


@pytest.mark.parametrize("size", [0, 1, 6])
def test_programs_refuses_other_sizes(size):
    with pytest.raises(ValueError, match=f"need 2 to 5 numbers, got {size}"):
        programs(size)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_results_reach_what_an_independent_solver_reaches(size):
    rng = np.random.default_rng(size)
    numbers = rng.integers(1, 13, (12, size))
    for row, reached in zip(numbers.tolist(), results(numbers, 60), strict=True):
        assert set(reached.tolist()) - {0} == whole_values(row, 60)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_write_gives_the_steps_that_results_computes(size):
    rng = np.random.default_rng(size)
    numbers = rng.integers(1, 20, (200, size))
    reached = results(numbers, 99)
    program = (rng.random(reached.shape) * (reached > 0)).argmax(axis=1)
    kept = reached[np.arange(200), program] > 0
    steps = write(numbers[kept], program[kept])
    assert (steps[:, -1, 3] == reached[kept, program[kept]]).all()
    for given_, row in zip(numbers[kept].tolist(), steps, strict=True):
        found = read(steps_text(row), given_)
        assert found is not None
        assert found.true


# -- splits ------------------------------------------------------------------------


def test_shares_depend_on_the_multiset_alone_and_are_even():
    numbers = np.array(list(itertools.combinations_with_replacement(range(1, 26), 4)))
    share = shares(numbers)
    np.testing.assert_array_equal(share, shares(numbers[:, [2, 0, 3, 1]]))
    counts = np.bincount(share, minlength=SHARES)
    expected = len(numbers) / SHARES
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square, 15 degrees, p < 1e-4
    assert shares(np.array([[1, 2, 3], [25, 4, 4]])).tolist() == [3, 13]


def test_splits_share_no_multiset_whatever_the_seed():
    multisets = {
        split: {tuple(sorted(p.answer["numbers"])) for seed in range(3)
                for p in tasks.get("countdown", seed=seed).load(split, 2000)}
        for split in SPLITS
    }
    for one, other in itertools.combinations(multisets.values(), 2):
        assert not one & other
    assert sorted(n for taken, _ in SPLITS.values() for n in taken) == list(range(SHARES))


@pytest.mark.parametrize("kind", ["usual", "heldout"])
@pytest.mark.parametrize("level", LEVELS)
def test_made_problems_are_different_solved_and_of_their_kind(level, kind):
    task = tasks.get("countdown", level=level, kind=kind)
    problems = task.load("validation", 60)
    assert len({(*p.answer["numbers"], p.answer["target"]) for p in problems}) == 60
    assert len({p.id for p in problems}) == 60
    for p, size in zip(problems, itertools.cycle(LEVELS[level]), strict=False):
        numbers, target = p.answer["numbers"], p.answer["target"]
        assert len(numbers) == size
        assert (sum(number > SMALL for number in numbers) > 1) == (kind == "heldout")
        assert min(numbers) >= 1
        assert max(numbers) <= HIGH
        assert 1 <= target <= LIMIT
        assert target not in numbers
        assert task.prompt(p) == f"make {target} from {' '.join(map(str, numbers))} :"
        assert task.reward(p, p.fields["solution"]) == 1.0
        assert max(map(int, re.findall(r"\d+", p.fields["solution"]))) <= HIGH


def test_splits_have_their_sizes_and_limit_takes_the_first():
    task = tasks.get("countdown")
    every = task.load("validation")
    assert len(every) == 1000
    assert len(task.load()) == 2000
    assert [p.answer for p in task.load("validation", 7)] == [p.answer for p in every[:7]]
    assert task.load(limit=0) == []
    assert len(task.load("validation", 10**9)) == 1000


def test_a_seed_makes_the_same_problems_and_another_seed_others():
    def prompts(seed):
        return [p.prompt for p in tasks.get("countdown", seed=seed).load("train", 50)]
    assert prompts(1) == prompts(1)
    assert not set(prompts(1)) & set(prompts(2))


def test_draw_makes_every_target_about_equally_often():
    numbers, targets, _ = next(draw(np.random.default_rng(0), 2, 3, 50,
                                    lambda numbers: (numbers == 3).all(axis=1)))
    assert (numbers == 3).all()
    counts = np.bincount(targets, minlength=10)
    assert set(np.flatnonzero(counts)) == {1, 6, 9}  # 3 - 3 gives nothing, 3 / 3 gives 1
    assert counts[[1, 6, 9]].min() > 0.3 * counts.sum()


def test_arrays_agree_with_load():
    task = tasks.get("countdown", level="easy", seed=3)
    numbers, targets, steps = next(task.arrays("train", 3))
    first = task.load("train", 1)[0]
    assert first.answer == {"numbers": numbers[0].tolist(), "target": targets[0]}
    assert first.fields["solution"] == steps_text(steps[0])


@pytest.mark.parametrize(("options", "message"), [
    ({"level": "mad"}, "level must be one of easy, medium, hard, mixed, got 'mad'"),
    ({"kind": "odd"}, "kind must be one of usual, heldout, got 'odd'"),
    ({"seed": -1}, "seed must be >= 0, got -1"),
])
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.get("countdown", **options)


def test_unknown_splits_and_negative_limits_are_errors():
    with pytest.raises(ValueError, match="has the splits train, validation, test, not 'dev'"):
        tasks.get("countdown").load("dev")
    with pytest.raises(ValueError, match="limit must be >= 0 or None, got -1"):
        tasks.get("countdown").load(limit=-1)


# -- solutions ---------------------------------------------------------------------


def test_solutions_are_all_right_and_all_different_and_begin_with_the_demonstration():
    task = tasks.get("countdown")
    for p in task.load("train", 40):
        found = task.solutions(p)
        assert found[0] == p.fields["solution"]
        assert all(task.reward(p, text) == 1.0 for text in found)
        forms = [task.answer(p, text) for text in found]
        assert len(set(forms)) == len(forms)


def test_solutions_leave_none_out():
    task, p = tasks.get("countdown"), problem(24, 2, 3, 4, 5)
    forms = {task.answer(p, text) for text in task.solutions(p)}
    whole = {read(text, [2, 3, 4, 5]).form for value, text in ways([2, 3, 4, 5]) if value == 24}
    assert forms <= whole
    assert "(3+4+5)*2" in forms


# -- the verifier ------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "25 - 3 = 22 , 22 * 4 = 88", "25-3=22,22*4=88", "25-3=22\n4*22=88\n", "25 - 3 = 22; 22 * 4",
    "(25 - 3) * 4", "4*(25-3)=88", "((((25))-(3)))*4", "25-3=22.0, 22.00*4=88",
    "(25 \N{MINUS SIGN} 3) \N{MULTIPLICATION SIGN} 4", "25 - 3 = 22 , 22 * 4 = 88 , 88 = 88",
    "25 - 3 = 22 left 4 22 , 22 * 4 = 88", "25 - 3 = 22 (left: 4, 22)\n4 * 22 = 88 (left: 88)",
    "25-3=22 (Left: 4; 22.0), 22*4=88", "25 - 3 = 22 left: 4 22, (22) * 4 = 88 left 88",
    "25 - 3 = 22 left 4 22\n22 * 4 = 88", "25 - 3 = 22 left 4 22; 22 * 4 = 88 left",
    "25 - 3 = 22 left 7 8 9 , 22 * 4 = 88",  # a remark is no arithmetic
])
def test_reward_takes_every_way_to_write_a_solution(text):
    assert reward(88, [3, 4, 25], text) == 1.0


@pytest.mark.parametrize("text", [
    "", " ", ",", "88", "= 88", "25 - 3 = 22", "25 - 3 = 22 ,", "25 - 3 = 22 , 22 * 4 = 87",
    "25 - 3 = 21 , 21 * 4 = 88", "25 * 4 - 3 * 4", "22 * 4 = 88", "25 - 3 , 22 * 4 = 88",
    "25 - 3 = 22 22 * 4 = 88", "25 - 3 = 22 , 22 * 4 = 88 !", "25 - 3 = = 22 , 22 * 4",
    "25 - 3 = 22 = 22 , 22 * 4", "(25 - 3 * 4", "25 - 3) * 4", "()", "(25 - 3) 4", "25 - - 3",
    "+25 - 3 = 22 , 22 * 4", "(25 - 3) ** 4", "(25 - 3) x 4", "25 - 3 = 22 , 22 * 4 = 88 , 88 + 0",
    "25 - 3 = 22 , 22 * 4 = 8e1", "2 5 - 3 = 22 , 22 * 4", "(25 - 3) * 4 / 1", "1e9", "None",
    "left 25 - 3 = 22 , 22 * 4 = 88", "25 left - 3 = 22 , 22 * 4 = 88", "25 - 3 left 22 * 4 = 88",
    "25 - 3 = 22 left 4 22 22 * 4 = 88", "25 - 3 = 22 (left 4 22 , 22 * 4 = 88",
    "25 - 3 = 22 leftover , 22 * 4 = 88", "25 - 3 = 22 left 4 , 22 x , 22 * 4 = 88",
    "25 - 3 = 22 (left (4) 22) , 22 * 4 = 88", "25 - 3 = left 22 , 22 * 4 = 88",
    "25 - 3 = 2(left)2, 22 * 4 = 88", "25 - 3 = 22, 22 * 4 = 8(left: 88)8", "25-3=2left 2, 22*4=88",
    "25 - 3 = 22 left 22.5 , 22 * 4 = 88", "25 - 3 = 22 (left 4) 22 * 4 = 88",
])
def test_reward_refuses_everything_else(text):
    assert reward(88, [3, 4, 25], text) == 0.0


def test_reward_lets_each_number_be_used_once_and_all_of_them():
    assert reward(9, [3, 3], "3 * 3 = 9") == 1.0
    assert reward(9, [3, 3, 3], "3 * 3 = 9") == 0.0
    assert reward(9, [3, 4], "3 * 3 = 9") == 0.0
    assert reward(6, [3, 3, 6], "3 + 3 = 6, 6 * 6 = 36") == 0.0
    assert reward(36, [3, 3, 6], "3 + 3 = 6, 6 * 6 = 36") == 1.0


def test_reward_is_exact_with_fractions_and_signs():
    assert reward(24, [3, 3, 8, 8], "8 / (3 - 8 / 3)") == 1.0
    assert reward(7, [7, 3, 3], "7 / 3 * 3") == 1.0
    assert reward(5, [5, 2, 2], "5 / 2 = 2.5, 2.5 * 2 = 5") == 1.0
    assert reward(1, [1, 3, 3], "1 / 3 = 0.333333333333333, 0.333333333333333 * 3 = 1") == 0.0
    assert reward(20, [2, 5, 30], "2 - 5 = -3, 30 / -3 = -10, -10") == 0.0
    assert reward(-10, [2, 5, 30], "2 - 5 = -3, 30 / -3 = -10") == 1.0
    assert reward(1, [1, 1, 1], "1 - 1 = 0, 1 / 0 = 1") == 0.0
    assert reward(0, [1, 1, 1], "1 / (1 - 1)") == 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.data())
def test_reward_agrees_with_exact_fractions_on_every_expression(numbers, data):
    value, text = data.draw(st.sampled_from(ways(numbers)))
    target = data.draw(st.sampled_from([int(value), int(value) + 1]))
    assert reward(target, numbers, text) == float(value == target)
    assert read(text, numbers).value == value


@pytest.mark.parametrize("text", [
    "(" * 10**6, "(" * 2000 + "1" + ")" * 2000, "1" * 4000, "9" * 10**6, "1+" * 2000, "-" * 4000,
    "1" + " " * 4000, "1 " * 2000, " " * 4096, "=" * 4000, ",".join(["1=1"] * 1000), "\0",
    "\N{ARABIC-INDIC DIGIT THREE} + 1", "\ud800", "1/0", "1.1.1", "1" * 15 + "*" + "9" * 15,
    "= 1 (left " * 400, "=1left" * 600, "=1 left " + "1 " * 2000, "=1(left" + " " * 4000,
    "9**9**9**9", "((1)" * 900, "1=" + "1" * 15 + ".1",
])
def test_hostile_texts_are_wrong_at_once(text):
    began = time.perf_counter()
    assert reward(88, [3, 4, 25], text) == 0.0
    assert tasks.get("countdown").answer(problem(88, 3, 4, 25), text) is None
    assert reward(1, [1], text) in (0.0, 1.0)
    assert time.perf_counter() - began < 1.0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*"0123456789+-*/()=,;. \n", "= 5", "left", "(left:", "2 + 3 = 5"]),
                max_size=60).map("".join))
def test_any_text_of_the_alphabet_is_read(text):
    assert reward(5, [2, 3], text) in (0.0, 1.0)


# -- votes -------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [
    ("25 - 3 = 22 , 22 * 4 = 88", "4 * (25 - 3)"),
    ("3 + 4 = 7 , 25 - 7 = 18", "25 - 3 - 4"),
    ("25 + 3 = 28 , 28 - 4 = 24", "3 - (4 - 25)"),
    ("25 * 3 = 75 , 75 / 4", "25 / 4 * 3"), ("25 / (4 / 3)", "3 * 25 / 4"),
])
def test_votes_are_equal_for_all_orders_of_terms_and_factors(one, other):
    task, p = tasks.get("countdown"), problem(88, 3, 4, 25)
    assert task.answer(p, one) == task.answer(p, other) is not None


def test_a_vote_is_the_expression_even_where_a_step_is_false():
    task, p = tasks.get("countdown"), problem(88, 3, 4, 25)
    assert task.answer(p, "25 - 3 = 20 , 20 * 4 = 88") == "(25-3)*4"
    assert task.answer(p, "25 - 3 = 22") is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.data())
def test_a_vote_reads_back_with_the_same_value_and_is_its_own_form(numbers, data):
    value, text = data.draw(st.sampled_from(ways(numbers)))
    form = read(text, numbers).form
    again = read(form, numbers)
    assert (again.value, again.form) == (value, form)
