"""The texts that countdown-selfeval learns from: what they say, their cuts, their labels."""

import sys
from pathlib import Path

import numpy as np
import pytest

from bonaware import tasks
from bonaware.tasks._countdown_text import read

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def selfeval():
    if not BENCHMARKS.is_dir():
        pytest.skip("needs the repository's folder benchmarks")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import countdown_selfeval
    finally:
        sys.path.remove(str(BENCHMARKS))
    return countdown_selfeval


def some(size, count=200):
    """Numbers, targets and steps of problems of one size."""
    arrays = next(tasks.get("countdown").arrays("train", size))
    return [column[:count] for column in arrays]


def left_after(numbers, words):
    """Numbers left by true steps, read from the text alone: equations between the commas."""
    left = list(numbers)
    for part in " ".join(words).removesuffix("<end>").split(","):
        if "=" in part:
            one, _, other, _, result = part.split()[:5]
            left.remove(int(one))
            left.remove(int(other))
            left.append(int(result))
    return sorted(left)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_told_texts_are_solutions_and_end_where_ends_says(selfeval, size, named):
    for numbers, target, steps in zip(*some(size), strict=True):
        words = selfeval.told(numbers.tolist(), steps, named)
        found = read(" ".join(words[:-1]), numbers.tolist())
        assert found.true
        assert found.value == target
        cuts = selfeval.ends(size, named)
        assert len(words) == cuts[-1]
        assert words[-1] == selfeval.END
        for step, cut in enumerate(cuts, 1):
            true, left = selfeval.follow(words[:cut], numbers.tolist(), named)
            assert true
            assert left == left_after(numbers.tolist(), words[:cut])
            assert len(left) == size - step
            if named and step < size - 1:
                assert words[cut - len(left) - 1:cut] == [selfeval.LEFT, *map(str, left)]


@pytest.mark.parametrize("named", [False, True])
def test_texts_with_false_steps_have_the_shape_of_true_ones_and_are_not_sound(selfeval, named):
    rng = np.random.default_rng(0)
    cuts = selfeval.ends(4, named)
    for numbers, _, steps in zip(*some(4), strict=True):
        wrong = steps.copy()
        at = rng.integers(0, 3)
        wrong[at, 3] += rng.integers(1, 9)
        words = selfeval.told(numbers.tolist(), wrong, named)
        assert len(words) == cuts[-1]
        assert words[-1] == selfeval.END
        for step, cut in enumerate(cuts):
            true, left = selfeval.follow(words[:cut], numbers.tolist(), named)
            assert true == (step != at)
            assert (left is None) == (step >= at)


@pytest.mark.parametrize(("words", "left"), [
    ("25 - 3 = 22 left 4 22", [4, 22]), ("25 - 3 = 22 left 22 4", None), ("25 - 3 = 22", None),
    ("25 - 3 = 22 left 4 21", None), ("25 - 3 = 21 left 4 21", None), ("25 - 4 = 21", None),
    ("22 - 3 = 19 left 4 19", None), ("3 - 25 = -22 left -22 4", None), ("25 / 3 = 8", None),
    ("25 - 3 = 22 left 4 22 , 22 * 4 = 88 <end>", [88]), ("25 - 3 = 22 left 4 22 , 22 * 4", None),
    ("25 - 3 = 22 left 4 22 , 22 * 4 = 88", None), ("", [3, 4, 25]),
    ("25 - 3 = 22 left 4 22 , 22 * 4 = 88 , 88 * 1 = 88 <end>", None), (", <end> left", None),
])
def test_follow_tells_what_is_left_and_distrusts_everything_else(selfeval, words, left):
    assert selfeval.follow(words.split(), [3, 4, 25], True)[1] == left


def test_reachable_is_what_any_program_gives(selfeval):
    lefts = [[4, 22], [22, 4], [4, 22], [88], [87], None, [3, 4, 25], [3, 4, 25]]
    targets = [26, 18, 19, 88, 88, 88, 22 + 4, 49]
    assert selfeval.reachable(lefts, targets).tolist() == [1, 1, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("name", ["learning", "naming"])
def test_made_texts_are_labelled_by_exact_arithmetic(selfeval, name):
    run = selfeval.RUNS[name]
    given = list(selfeval.made(np.random.default_rng(1), run, *some(4)))
    assert len(given) == 200
    fates = [selfeval.follow(words, numbers, run.named) for numbers, _, words in given]
    sound = np.array([left is not None for _, left in fates])
    assert 0.4 < sound.mean() < 0.95
    assert all((len(words) in selfeval.ends(4, run.named)) for *_, words in given)
    for (numbers, _, words), (_, left) in zip(given, fates, strict=True):
        if left is not None:
            assert left == left_after(numbers, words)


@pytest.mark.parametrize("name", ["reaching", "naming"])
def test_reaching_texts_are_sound_and_half_of_them_open(selfeval, name):
    run = selfeval.RUNS[name]
    given = list(selfeval.reaching(np.random.default_rng(2), run, some(4)[0]))
    lefts = [selfeval.follow(words, numbers, run.named)[1] for numbers, _, words in given]
    assert {len(left) for left in lefts} == {2, 3}
    assert np.mean([len(left) == 2 for left in lefts]) > 0.6
    assert any(not words for *_, words in given) == (not run.named)
    assert 0.3 < selfeval.reachable(lefts, [target for _, target, _ in given]).mean() < 0.75


def test_beginnings_are_told_apart_once_with_the_samples_that_begin_so(selfeval):
    tokens = [np.array(text, np.int32) for text in ([1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4], [7])]
    found = {tuple(text.tolist()): alike for text, alike in selfeval.beginnings(tokens, [2])}
    assert found == {(1, 2): [0, 1, 2], (1, 2, 3, 4): [0, 2], (1, 2, 5): [1], (7,): [3]}
