"""bonaware.plot: Axes in, Axes out; what is drawn is what was measured."""

import sys

import numpy as np
import pytest

from bonaware import plot
from bonaware.curves import Curves

K = np.array([1, 2, 4, 8])


def some_curves(**means):
    means = {name: np.asarray(values) for name, values in means.items()}
    return Curves(
        k=K,
        mean=means,
        low={name: values - 0.1 for name, values in means.items()},
        high={name: values + 0.1 for name, values in means.items()},
        n=8,
        prompts=64,
        level=0.95,
    )


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot

    yield matplotlib.pyplot
    matplotlib.pyplot.close("all")


def test_curves_are_drawn_with_their_bands_and_named(pyplot):
    made = some_curves(**{"pass@k": [0.1, 0.2, 0.3, 0.4], "majority@k": [0.1, 0.1, 0.2, 0.2]})
    ax = plot.curves(made)
    assert [line.get_label() for line in ax.lines] == ["pass@k", "majority@k"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), K)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), made.mean["pass@k"])
    for band, name in zip(ax.collections, made.mean, strict=True):
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(made.low[name].min())
        assert heights.max() == pytest.approx(made.high[name].max())
    assert "n=8 samples of each of 64 prompts" in ax.get_title()
    assert "95 %" in ax.get_title()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    assert ax.get_xlabel().startswith("k, ")
    assert ax.get_ylabel() == "solved (share of prompts)"


def test_other_rewards_are_not_called_solved(pyplot):
    ax = plot.curves(some_curves(**{"max@k": [1.0, 2.0, 3.0, 4.0]}))
    assert ax.get_ylabel() == "mean reward of the chosen sample"


def test_given_axes_are_used_and_returned(pyplot):
    _, ax = pyplot.subplots()
    assert plot.curves(some_curves(**{"pass@k": [0.1, 0.2, 0.3, 0.4]}), ax=ax) is ax
    assert plot.coscaling([1.0], K, [[0.1, 0.2, 0.3, 0.4]], ax=ax) is ax
    assert len(pyplot.get_fignums()) == 1


def test_lines_can_be_told_apart_without_colour(pyplot):
    made = some_curves(**{f"best-of-k by {i}": [0.1, 0.2, 0.3, 0.4] for i in range(7)})
    lines = plot.curves(made).lines
    assert len({line.get_marker() for line in lines}) == 7
    assert len({line.get_color() for line in lines}) == 7


def test_global_style_is_left_alone(pyplot):
    before = dict(pyplot.rcParams)
    plot.curves(some_curves(**{"pass@k": [0.1, 0.2, 0.3, 0.4]}))
    assert dict(pyplot.rcParams) == before


class Law:
    def predict(self, n, temperature):
        return np.exp(-temperature * np.asarray(n) ** -0.5)


def test_coscaling_draws_points_and_the_fitted_law_beyond_them(pyplot):
    temperatures = [0.5, 1.0]
    measured = [Law().predict(K, t) for t in temperatures]
    ax = plot.coscaling(temperatures, K, measured, fit=Law())
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    laws = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [line.get_label() for line in points] == ["T = 0.5", "T = 1"]
    for law, t in zip(laws, temperatures, strict=True):
        x, y = law.get_data()
        assert (x.min(), x.max()) == pytest.approx((1, 32))
        np.testing.assert_allclose(y, Law().predict(x, t))


def test_coscaling_refuses_another_shape(pyplot):
    with pytest.raises(ValueError, match=r"\[temperatures, k\] = \(2, 4\), got \(4, 2\)"):
        plot.coscaling([0.5, 1.0], K, np.zeros((4, 2)))


ROWS = [("adaptive", 3.0, 0.5, 0.4, 0.6), ("best_of_n", 1.0, 0.2, 0.1, 0.35),
        ("adaptive", 1.5, 0.3, 0.2, 0.4), ("prune", 4.0, 0.6, np.nan, np.nan)]  # fmt: skip


def test_policies_are_drawn_over_their_cost_and_those_of_one_name_joined(pyplot):
    ax = plot.policies(ROWS, cost="tokens per prompt")
    assert ax.get_xlabel() == "tokens per prompt"
    assert ax.get_xscale() == "log"
    drawn = {bars.get_label(): bars for bars in ax.containers}
    assert list(drawn) == ["adaptive", "best_of_n", "prune"]
    line, _, (bars,) = drawn["adaptive"]
    np.testing.assert_array_equal(line.get_data(), [[1.5, 3.0], [0.3, 0.5]])
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.2, 0.4], [0.4, 0.6]])
    (low, high), = (segment[:, 1] for segment in drawn["best_of_n"][2][0].get_segments())
    assert (low, high) == pytest.approx((0.1, 0.35))


def test_costs_that_are_alike_are_drawn_on_a_plain_axis(pyplot):
    assert plot.policies(ROWS[:1] + ROWS[2:3]).get_xscale() == "linear"


@pytest.mark.parametrize("rows", [[], [("free", 0.0, 0.5, 0.4, 0.6)]], ids=["none", "free"])
def test_policies_that_cost_nothing_are_refused(rows):
    with pytest.raises(ValueError, match="need rows with a cost > 0, got"):
        plot.policies(rows)


def test_without_matplotlib_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'bonaware\[plot\]'"):
        plot.curves(some_curves())
