"""bonaware._charts: curves as characters and as SVG; what is drawn is what was measured."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bonaware import _charts
from bonaware.curves import Curves


def some_curves(k=(1, 2, 4, 8), interval=0.05, **means):
    means = {name.replace("_", " "): np.array(values, float) for name, values in means.items()}
    return Curves(
        np.array(k), means,
        {name: values - interval for name, values in means.items()},
        {name: values + interval for name, values in means.items()}, 8, 64, 0.95,
    )  # fmt: skip


@pytest.mark.parametrize(("low", "high", "labels"), [
    (0.2, 0.66, ["0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]), (0, 1, ["0.0", "0.2", "0.4", "0.6",
    "0.8", "1.0"]), (0.994, 0.999, ["0.994", "0.995", "0.996", "0.997", "0.998", "0.999"]),
    (1, 1, ["0.8", "1.0"]), (0, 0, ["0.0", "0.2"]), (-3, -3, ["-3.0", "-2.5"]),
    (-100, 1234, ["-500", "0", "500", "1000", "1500"]),
    (0, 5e9, ["0", "1e+09", "2e+09", "3e+09", "4e+09", "5e+09"]),
], ids=str)  # fmt: skip
def test_ticks_are_round_and_hold_all_values(low, high, labels):
    ticks = _charts._ticks(low, high)
    assert _charts._labels(ticks) == labels
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9


# -- characters ------------------------------------------------------------------


def grid(text):
    """Rows of the chart: (number at the axis, cells, name)."""
    columns = text.count("─") - 1  # the axis begins below its own line
    rows = [re.split("[┤│]", line, maxsplit=1) for line in text.splitlines()
            if re.search("[┤│]", line)]  # fmt: skip
    return [(label.strip(), rest[:columns], rest[columns:].strip()) for label, rest in rows]


def test_marks_stand_where_the_values_are():
    made = some_curves(up=[0.0, 0.2, 0.4, 1.0], down=[1.0, 0.8, 0.6, 0.0])
    rows = grid(_charts.text(made))
    assert (rows[0][0], rows[-1][0]) == ("1.0", "0.0")
    places = {mark: [(row, column) for column in range(80) for row, (_, cells, _) in enumerate(rows)
                     if cells[column : column + 1] == mark] for mark in "●■"}  # fmt: skip
    last = len(rows) - 1
    for mark, mean in zip("●■", made.mean.values(), strict=True):
        heights = [1 - row / last for row, _ in places[mark]]
        assert heights == pytest.approx(mean.tolist(), abs=0.5 / last)
        steps = np.diff([column for _, column in places[mark]])
        assert steps.max() - steps.min() <= 1  # k doubles
    assert rows[0][2] == "● up"
    assert rows[-1][2] == "■ down"


def test_the_first_curve_lies_on_top():
    made = some_curves(first=[0.5, 0.6, 0.7, 0.8], second=[0.5, 0.6, 0.7, 0.8])
    cells = "".join(cells for _, cells, _ in grid(_charts.text(made)))
    assert (cells.count("●"), cells.count("■")) == (4, 0)
    svg = _charts.svg(made)
    assert svg.rindex("line c0") > svg.rindex("mark c1") > svg.rindex("band c0")


@pytest.mark.parametrize("count", [2, 5, 20])
def test_names_of_curves_that_end_together_stand_in_rows_of_their_own(count):
    made = some_curves(**{f"name_{i}": [0.1, 0.5, 0.5, 0.5 + i / 1000] for i in range(count)})
    names = [name for _, _, name in grid(_charts.text(made))]
    assert sorted(name[2:] for name in filter(None, names)) == sorted(made.mean)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_chart_is_no_wider_than_the_terminal_and_cuts_names(width):
    made = some_curves(short=[0.1, 0.2, 0.3, 0.4], **{"long" * 30: [0.1, 0.2, 0.2, 0.2]})
    lines = _charts.text(made, width).splitlines()
    assert max(map(len, lines)) <= width
    assert any(re.search(r"■ (long)+.?.?.?…$", line) for line in lines)


def test_every_k_is_written_below_its_mark_where_there_is_room():
    lines = _charts.text(some_curves(up=[0.0, 0.2, 0.4, 1.0])).splitlines()
    assert re.fullmatch(r" +1 +2 +4 +8", lines[-2])
    for k in "18":
        assert lines[-2].index(k) in {line.find("●") if k == "1" else line.rfind("●", 0, -6)
                                      for line in lines}  # fmt: skip
    crowded = some_curves(k=range(1, 101), up=np.linspace(0, 1, 100))
    written = _charts.text(crowded).splitlines()[-2].split()
    assert [int(k) for k in written] == sorted({int(k) for k in written} & set(range(1, 101)))
    assert written[:2] == ["1", "2"]
    svg = ET.fromstring(_charts.svg(crowded))
    places = [float(label.get("x")) for label in svg.findall("text[@class='mid']")
              if label.text.isdigit()]  # fmt: skip
    assert np.diff(places).min() > 14


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437-that-nobody-knows"])
def test_a_terminal_without_the_marks_gets_ascii(encoding):
    made = some_curves(**{"up" * 40: [0.0, 0.2, 0.4, 1.0], "down": [1.0, 0.8, 0.6, 0.0]})
    text = _charts.text(made, 80, encoding)
    assert text.isascii()
    assert len(text.splitlines()) == len(_charts.text(made, 80, "utf-8").splitlines())


def test_a_single_k_is_a_point():
    assert sum(cells.count("●") for _, cells, _ in grid(
        _charts.text(some_curves(k=[4], up=[0.5])))) == 1  # fmt: skip


# -- SVG -------------------------------------------------------------------------


def numbers(text):
    return np.array([float(word) for word in re.split("[ ,]", text)]).reshape(-1, 2)


def test_lines_and_bands_have_the_height_of_their_values():
    made = some_curves(up=[0.1, 0.2, 0.4, 0.9], down=[0.9, 0.8, 0.6, 0.1])
    svg = ET.fromstring(_charts.svg(made))
    labels = [(float(text.text), float(text.get("y")) - 5)
              for text in svg.findall("text[@class='end']")]  # fmt: skip
    (low, bottom), (high, top) = labels[0], labels[-1]
    for c, name in enumerate(made.mean):
        line = numbers(svg.find(f"polyline[@class='line c{c}']").get("points"))
        band = numbers(svg.find(f"polygon[@class='band c{c}']").get("points"))
        for points, values in [(line, made.mean[name]), (band[:4], made.high[name]),
                               (band[4:][::-1], made.low[name])]:  # fmt: skip
            heights = np.interp(-points[:, 1], [-bottom, -top], [low, high])
            np.testing.assert_allclose(heights, values, atol=1e-3)
            np.testing.assert_allclose(np.diff(points[:, 0], 2), 0, atol=0.11)  # k doubles


def test_a_single_prompt_has_lines_without_bands():
    svg = _charts.svg(some_curves(interval=np.nan, up=[0.1, 0.2, 0.4, 0.9]))
    assert "polygon" not in svg
    assert "nan" not in svg


def test_curves_can_be_told_apart_without_colour():
    assert len(set(_charts.SHAPES)) == _charts.HUES
    made = some_curves(**{f"name_{i}": [0.1, 0.2, 0.3, 0.4] for i in range(9)})
    marks = [ET.tostring(item.find(".//path")) for item in ET.fromstring(_charts.legend(made.mean))]
    assert len(set(marks)) == _charts.HUES


def test_names_are_escaped():
    made = some_curves(**{"<&\"'>": [0.1, 0.2, 0.3, 0.4]})
    (item,) = ET.fromstring(_charts.legend(made.mean))
    assert "".join(item.itertext()) == "<&\"'>"
    assert "<&\"'>, k = 8: 0.400 [0.350, 0.450]" in [
        title.text for title in ET.fromstring(_charts.svg(made)).iter("title")]  # fmt: skip


def test_points_without_a_line_have_strokes_and_lie_where_their_values_say():
    x, y = np.array([0.2, 0.4, 0.9]), np.array([0.3, 0.5, 0.8])
    points = _charts.Line("points", 2, x, y, y - 0.1, y + 0.1, joined=False)
    fit = _charts.Line("fit", 2, x, y, marked=False)
    svg = ET.fromstring(_charts.chart([points, fit], "t", "across", "up", "score", equal=True))
    assert svg.findall("polygon") == []
    assert len(svg.findall("polyline[@class='line c2']")) == 1
    assert len(svg.findall("path[@class='bar c2']")) == len(svg.findall("g")) == 3
    along = numbers(svg.find("polyline[@class='grid equal']").get("points"))
    (left, bottom), (right, top) = along  # from 0.2 or less to 1 on both axes
    places = [re.findall(r"[0-9.]+", mark.get("transform")) for mark in svg.findall("g")]
    across, up = np.array(places, float).T
    begin = 0.2 - (across[0] - left) / (across[2] - across[0]) * 0.7
    np.testing.assert_allclose(np.interp(across, [left, right], [begin, 1]), x, atol=2e-3)
    np.testing.assert_allclose(np.interp(-up, [-bottom, -top], [begin, 1]), y, atol=2e-3)
    assert [title.text for title in svg.iter("title")][1:] == [
        "points, score = 0.2: 0.300 [0.200, 0.400]", "points, score = 0.4: 0.500 [0.400, 0.600]",
        "points, score = 0.9: 0.800 [0.700, 0.900]"]  # fmt: skip
    assert bottom > top


@pytest.mark.parametrize(("low", "high", "steps"), [
    (18, 576, [20, 50, 100, 200, 500]), (21, 40, [21, 40]), (1, 10, [1, 2, 5, 10]), (7, 7, [7]),
], ids=str)  # fmt: skip
def test_steps_of_a_logarithmic_axis_are_round_and_within(low, high, steps):
    assert _charts._steps(low, high).tolist() == steps
