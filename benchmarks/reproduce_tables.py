"""Summary of the reproduction as JSON, as tables in Markdown, and in docs/reproduction.md."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from reproduce_claims import claims, coscaling
from reproduce_figures import BEST, Runs

from bonaware import estimators

__all__ = ["lines", "markdown", "rates_table", "summarise", "write_docs"]

SETS = ("test", "heldout")
DIGITS = 4
SUMMARY = Path("benchmarks/results/reproduce_bon.json")
DOCS = Path("docs/reproduction.md")
BEGIN, END = (f"<!-- {where} of what reproduce_bon.py writes -->" for where in ("begin", "end"))


# -- summary -------------------------------------------------------------------


def summarise(out: Path) -> dict[str, Any]:
    """Everything that is shown, as plain lists and numbers.

    Returns
    -------
    dict
        "settings", "made", "seeds", "arms", "missing" (arms that lack a seed), "ks",
        "selectors"; "figures": set -> temperature, or "best" -> arm -> selector -> "mean", and
        its difference to base, "change", with "low", "high" (95 %, over problems) and "spread"
        (standard deviation over seeds), each a list over ks, and the chosen "temperature" where
        it is "best"; "entropy": set -> temperature -> arm, nats per sample; "coscaling": arm ->
        see `reproduce_claims.coscaling`; "claims"; "training": arm -> curves, mean over seeds;
        "rates": arm -> learning rate; "tuned": what --tune found; "cpu_seconds": mean over runs.
    """
    runs = Runs(out)
    tuned = out / "learning_rates.json"
    places = [*runs.temperatures, BEST]
    return {
        "settings": _without_paths(runs.settings), "made": _made(runs), "seeds": runs.seeds,
        "arms": list(runs.found), "missing": runs.missing, "ks": runs.ks,
        "selectors": runs.selectors,
        "figures": {where: {str(t): _figures(runs, where, t) for t in places} for where in SETS},
        "entropy": {where: {str(t): {arm: round(runs.entropy(arm, where, t), 3)
                                     for arm in runs.found} for t in runs.temperatures}
                    for where in SETS},
        "coscaling": {arm: coscaling(runs, arm) for arm in runs.found},
        "claims": claims(runs), "training": _training(runs),
        "rates": {arm: each[runs.seeds[0]]["rate"] for arm, each in runs.found.items()
                  if arm != "base"},
        "tuned": json.loads(tuned.read_text()) if tuned.exists() else {},
        "cpu_seconds": _seconds(runs),
    }  # fmt: skip


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Models by their names: where they lie says something about one machine only."""
    return {name: Path(value).name if name in ("policy", "verifier", "other") else value
            for name, value in settings.items()}


def _made(runs: Runs) -> list[dict[str, Any]]:
    """The different versions and machines, dates aside."""
    made = [each["made"] for of_arm in runs.found.values() for each in of_arm.values()]
    dates = sorted({one["date"] for one in made})
    alike = {json.dumps({**one, "date": ""}, sort_keys=True) for one in made}
    return [json.loads(text) | {"date": f"{dates[0]} to {dates[-1]}" if len(dates) > 1 else
                                dates[0]} for text in sorted(alike)]


def _figures(runs: Runs, where: str, temperature: float | str) -> dict[str, dict[str, Any]]:
    """Of one set at one temperature, for all arms, selectors and k; one bootstrap for all."""
    arms, chosen = list(runs.found), {}
    one = runs.per_seed("base", "pass", where, runs.temperatures[0])
    values = np.empty((len(arms), len(runs.selectors), *one.shape))
    for i, arm in enumerate(arms):
        for j, selector in enumerate(runs.selectors):
            at = [runs.best(arm, selector, k) if temperature == BEST else float(temperature)
                  for k in runs.ks]
            chosen[arm, selector] = at
            for place, t in enumerate(at):
                values[i, j, ..., place] = runs.per_seed(arm, selector, where, t)[..., place]
    gaps = values - values[arms.index("base")]
    low, high = estimators.interval(gaps.mean(axis=2), axis=2)
    spread = gaps.mean(axis=3).std(axis=2, ddof=1) if len(runs.seeds) > 1 else np.zeros(low.shape)
    parts = {"mean": values.mean(axis=(2, 3)), "change": gaps.mean(axis=(2, 3)), "low": low,
             "high": high, "spread": spread}
    return {
        arm: {
            selector: {name: np.round(part[i, j], DIGITS).tolist() for name, part in parts.items()}
            | ({"temperature": chosen[arm, selector]} if temperature == BEST else {})
            for j, selector in enumerate(runs.selectors)
        }
        for i, arm in enumerate(arms)
    }  # fmt: skip


def _training(runs: Runs) -> dict[str, dict[str, list[float]]]:
    curves = {}
    for arm, of_arm in runs.found.items():
        each = [of_arm[seed]["training"] for seed in runs.seeds]
        curves[arm] = {name: np.mean([one[name] for one in each], axis=0).round(DIGITS).tolist()
                       for name in each[0]}
    return curves


def _seconds(runs: Runs) -> dict[str, float]:
    every = [each["cpu_seconds"] for of_arm in runs.found.values() for each in of_arm.values()]
    return {name: round(float(np.mean([one[name] for one in every])), 1) for name in every[0]}


# -- Markdown ------------------------------------------------------------------


def markdown(summary: dict[str, Any]) -> str:
    """All tables."""
    top, settings = summary["ks"][-1], summary["settings"]
    parts = [
        _provenance(summary),
        "### Claims\n\n" + _claims(summary),
        f"### Test problems, T = 1\n\n{_main(summary)}",
        f"### Test problems, each figure at the temperature that is best on validation problems\n\n"
        f"{_best(summary)}",
        f"### Other temperatures, and the held-out kind\n\n{_carried(summary, top)}",
        f"### Co-scaling: pass@N(T) = exp(a N^b)\n\n{_coscaling(summary)}",
    ]
    if summary["tuned"]:
        parts.append("### Learning rates\n\nOn validation problems at T = 1, one seed.\n\n"
                     + rates_table(summary["tuned"], settings["draws"]))
    return "\n\n".join(parts) + "\n"


def _provenance(summary: dict[str, Any]) -> str:
    settings, seconds = summary["settings"], summary["cpu_seconds"]
    made = "; ".join(f"commit {one['commit']}, {one['date']}, {one['cores']} cores of "
                     f"{one['processor']}, Python {one['python']}, NumPy {one['numpy']}"
                     for one in summary["made"])
    text = (f"{len(summary['seeds'])} seeds; {settings['steps']} steps of {settings['prompts']} "
            f"problems x {settings['samples']} samples; measured on {settings['test']} test and "
            f"{settings['heldout']} held-out problems with n = {settings['draws']} samples each, "
            f"temperatures chosen on {settings['validation']} validation problems. Figures in "
            f"percent; intervals are 95 %, bootstrap over problems, of the mean over seeds; ± is "
            f"the standard deviation over seeds. Made by {made}; {seconds['training']:.0f} s of "
            f"training and {seconds['measuring']:.0f} s of measuring per run on one core, on "
            f"average. {_rates(summary)}")  # fmt: skip
    if summary["missing"]:
        text += f" Not all seeds have been run of {', '.join(summary['missing'])}: left out."
    return text


def _rates(summary: dict[str, Any]) -> str:
    used = ", ".join(sorted({f"{rate:g}" for rate in summary["rates"].values()}))
    if summary["tuned"]:
        return "The learning rate of each arm is the best of those tried, by the arm's own aim."
    return f"No learning rate was tuned; used: {used or 'none'}."


def _claims(summary: dict[str, Any]) -> str:
    rows = [(each["claim"], each["paper"], _ways(each["ways"]),
             "**holds**" if each["holds"] else "**does not hold**") for each in summary["claims"]]
    return _table(("claim", "paper", "here", ""), rows)


def _ways(ways: list[list[dict[str, Any]]]) -> str:
    """Parts of each way, with what came out; ways are alternatives."""
    return "<br>or<br>".join("<br>".join(map(_part, way)) for way in ways)


def _part(part: dict[str, Any]) -> str:
    verdict = "yes" if part["holds"] else "no"
    if "mean" not in part:
        return f"{part['text']}: {verdict}"
    agree = sum((seed > 0) == (part["mean"] > 0) for seed in part["seeds"])
    return (f"{part['text']}: {_change(part['mean'], part['low'], part['high'])}, {agree} of "
            f"{len(part['seeds'])} seeds: {verdict}")


def _main(summary: dict[str, Any]) -> str:
    ks, figures = summary["ks"], summary["figures"]["test"]["1.0"]
    shown = [k for k in ks if k in (1, 4, ks[-1] // 2, ks[-1])]
    others = summary["selectors"][1:]
    head = ("arm", *(f"pass@{k}" for k in shown), f"pass@{ks[-1]} - base",
            *(f"best of {ks[-1]} by {name}" for name in others), f"by {others[0]} - base",
            "entropy, nats")  # fmt: skip
    rows = []
    for arm in summary["arms"]:
        passes = figures[arm]["pass"]["mean"]
        rows.append((
            arm, *(_percent(passes[ks.index(k)]) for k in shown), _at(figures[arm]["pass"], -1),
            *(_percent(figures[arm][name]["mean"][-1]) for name in others),
            _at(figures[arm][others[0]], -1), f"{summary['entropy']['test']['1.0'][arm]:.2f}",
        ))  # fmt: skip
    return _table(head, rows)


def _best(summary: dict[str, Any]) -> str:
    figures = summary["figures"]["test"][BEST]
    top, first = summary["ks"][-1], summary["selectors"][1]
    head = ("arm", "pass@1", f"pass@{top}", f"pass@{top} - base", f"best of {top} by {first}",
            f"by {first} - base")  # fmt: skip
    rows = [(arm, _with_t(each["pass"], 0), _with_t(each["pass"], -1), _at(each["pass"], -1),
             _with_t(each[first], -1), _at(each[first], -1)) for arm, each in figures.items()]
    last = summary["settings"]["temperatures"][-1]
    if any(f"(T {last:g})" in cell for row in rows for cell in row):
        return _table(head, rows) + f"\n\nT = {last:g} is the highest that was tried."
    return _table(head, rows)


def _carried(summary: dict[str, Any], top: int) -> str:
    shown = [t for t in ("0.1", "1.5") if t in summary["figures"]["test"]]
    points = [("test", t) for t in shown] + [("heldout", "1.0"), ("heldout", BEST)]
    names = [f"{where}, {'best T' if t == BEST else f'T = {float(t):g}'}" for where, t in points]
    first = summary["selectors"][1]
    head = ["arm"]
    for name in names:
        head += [f"{name}: pass@{top}", "- base", f"by {first} - base"]
    rows = []
    for arm in summary["arms"]:
        row = [arm]
        for where, t in points:
            each = summary["figures"][where][t][arm]
            row += [_percent(each["pass"]["mean"][-1]), _at(each["pass"], -1), _at(each[first], -1)]
        rows.append(tuple(row))
    return _table(tuple(head), rows)


def _coscaling(summary: dict[str, Any]) -> str:
    top = summary["ks"][-1]
    few = max(top // 4, 2)
    head = ("arm", "T", "a", "b", "error of log pass@N", "largest error, points",
            f"measured - predicted pass@{top} (from N <= {few})",
            f"best T for N = {', '.join(map(str, summary['ks']))}")
    rows = []
    for arm, each in summary["coscaling"].items():
        best = ", ".join(f"{t:g}" for t in each["best"])
        for place, t in enumerate(each["temperatures"]):
            rows.append((arm if place == 0 else "", f"{t:g}", f"{each['a'][place]:.3f}",
                         f"{each['b'][place]:.3f}", f"{each['residual'][place]:.3f}",
                         f"{100 * each['miss'][place]:.1f}", f"{100 * each['ahead'][place]:+.1f}",
                         best if place == 0 else ""))
    return _table(head, rows)


def rates_table(rates: dict[str, Any], top: int) -> str:
    """What --tune found on validation problems at T = 1, one seed."""
    head = ("arm", "aim", "rate", "tried: aim, pass@1, " + f"pass@{top}")
    rows = []
    for arm, each in rates.items():
        tried = "; ".join(f"{rate}: {', '.join(map(_percent, found))}"
                          for rate, found in each["tried"].items())
        rows.append((arm, each["aim"], f"{each['rate']:g}", tried))
    return _table(head, rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _change(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _at(each: dict[str, list[float]], place: int) -> str:
    mean, low, high = (each[name][place] for name in ("change", "low", "high"))
    return f"{_change(mean, low, high)} ± {100 * each['spread'][place]:.1f}"


def _with_t(each: dict[str, list[float]], place: int) -> str:
    return f"{_percent(each['mean'][place])} (T {each['temperature'][place]:g})"


# -- files ---------------------------------------------------------------------


def write_docs(summary: dict[str, Any], root: Path) -> None:
    """The summary into benchmarks/results, the tables into docs/reproduction.md."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = " ".join(["python", "benchmarks/reproduce_bon.py", *words])
    (root / SUMMARY).parent.mkdir(parents=True, exist_ok=True)
    (root / SUMMARY).write_text(lines({"command": command} | summary) + "\n", encoding="utf-8")
    text = (root / DOCS).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{root / DOCS} must have one line {BEGIN} and one line {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    (root / DOCS).write_text(f"{before}{BEGIN}\n\n{markdown(summary)}\n{END}{after}",
                             encoding="utf-8")


def lines(content: Any, indent: str = "") -> str:
    """JSON with one line per innermost object, so that a change shows where it is."""
    if not isinstance(content, dict) or not any(isinstance(x, dict) for x in content.values()):
        return json.dumps(content)
    inner = indent + " "
    rows = [f"{inner}{json.dumps(name)}: {lines(value, inner)}" for name, value in content.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
