"""The report of a run: one HTML page that loads nothing.

Curves, what tokens buy, temperatures, how good the judges are, settings, and the prompts with
their samples to look through. It takes what a `Run` and `bonaware._figures` know and estimates
nothing itself. What models and files say is shown as text: escaped, control characters made
visible, and the page's own policy lets no script run but report.js.

To add a section, write a function of a `View` that gives HTML, "" where there is nothing to show,
and put it into SECTIONS.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import bonaware
from bonaware import _charts, _figures
from bonaware._html import text as _text

__all__ = ["page", "write"]

# What a page shows of a large run; it says what it leaves out.
PROMPTS = 500
SAMPLES = 64  # of a prompt, besides those that a selector chose
CHARACTERS = 2000  # of a text
BUDGET = 8_000_000  # characters of HTML, all prompts together

HERE = Path(__file__).parent


class View(NamedTuple):
    """What a page is made of.

    Parameters
    ----------
    run : Run
    level : float
        Of the intervals, in (0, 1).
    beside : sequence of Run
        Of the same problems, to compare with.
    """

    run: Any
    level: float = 0.95
    beside: Sequence[Any] = ()


def write(run: Any, path: str | os.PathLike[str], level: float = 0.95,
          beside: Sequence[Any] = ()) -> Path:
    """Write the page of a run; see `Run.report`."""
    target = Path(path)
    made = page(run, level, beside)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(made, encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def page(run: Any, level: float = 0.95, beside: Sequence[Any] = ()) -> str:
    """The page as a str.

    Parameters
    ----------
    run, level, beside
        As in `View`.

    Raises
    ------
    ValueError
        A run beside is of other problems.

    Notes
    -----
    The same runs give the same page.
    """
    _figures.need_same_problems(run, beside)
    view = View(run, level, beside)
    style, script = ((HERE / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return "".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f'<meta name="generator" content="bonaware {bonaware.__version__}">\n',
        f"<title>{_text(run.title)} - bonaware</title>\n<style>{style}</style>\n</head>\n<body>\n",
        f"<header><h1>{_text(run.title)}</h1><p>{_text(run.head)}</p></header>\n<main>\n",
        *(f"<section>{made}</section>\n" for made in (make(view) for make in SECTIONS) if made),
        f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
    ])  # fmt: skip


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# -- text ----------------------------------------------------------------------

def _cut(text: str) -> str:
    if len(text) <= CHARACTERS:
        return _text(text)
    left = len(text) - CHARACTERS
    return f'{_text(text[:CHARACTERS])}<i class="cut"> … {left} characters more</i>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    lines = (
        f'<tr><th scope="row">{_text(first)}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )  # fmt: skip
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _wide(table: str, label: str) -> str:
    """A table that scrolls by itself where the page is narrow, also by keyboard."""
    return f'<div class="wide" role="region" aria-label="{label}" tabindex="0">{table}</div>'


# -- sections --------------------------------------------------------------------


def _results(view: View) -> str:
    run = view.run
    if not run.counted.any():
        return f"<h2>Figures</h2><p>{_text(run.without_figures)}</p>"
    notes = "".join(f"<p>{_text(note)}</p>" for note in run.without_score())
    return run.figures_html(view.level) + notes


def curves_html(run: Any, level: float) -> str:
    """What k samples give, and what each selector picks."""
    curves = run.curves(level)
    picks = [(name, f"{reward:.3f}") for name, reward in run.selected().items()]
    return "".join([
        "<h2>What k samples give</h2>",
        f"<figure>{_charts.svg(curves)}{_charts.legend(curves.mean)}</figure>",
        _wide(curves._repr_html_(), "curves as a table"),
        f"<h3>Chosen from all {run.n} samples</h3><p>Equal scores: the first sample.</p>"
        + _wide(_table(("selector", "mean reward"), picks), "selectors") if picks else "",
    ])  # fmt: skip


def _compute(view: View) -> str:
    """Accuracy over what was drawn: of this run, and of those beside it."""
    runs = (view.run, *view.beside)
    tokens = all(run.samples is not None for run in runs)
    found = _figures.spent(runs, view.level, tokens)
    if not found or not (tokens or view.beside):
        return ""
    if len(found) == len(found[0].cost) == 1:
        return ("<h2>What the compute buys</h2><p>One run under a policy is one point: put others "
                "of the same problems beside it, as in <code>bonaware report RUN OTHER</code>.</p>")
    unit = "tokens" if tokens else "samples"
    lines = [_charts.Line(one.name, c, one.cost, one.mean, one.low, one.high)
             for c, one in enumerate(found)]  # fmt: skip
    costs = np.concatenate([one.cost for one in found])
    rows = [(one.name, f"{one.cost[-1]:.4g}", _interval(one.mean[-1], one.low[-1], one.high[-1]))
            for one in found]  # fmt: skip
    drawing = _charts.chart(
        lines, f"mean reward over {unit} per prompt", f"{unit} of samples per prompt",
        "mean reward of what is taken", unit,
        logarithmic=bool(costs.max() >= 4 * costs.min()),
    )  # fmt: skip
    return "".join([
        "<h2>What the compute buys</h2>",
        f"<figure>{drawing}{_charts.legend(one.name for one in found)}</figure>",
        _wide(_table(("way", f"{unit} per prompt, at most", "mean reward there"), rows),
              "compute as a table"),
    ])  # fmt: skip


def _temperatures(view: View) -> str:
    """pass@k by temperature, with the fitted law."""
    found = _figures.temperatures((view.run, *view.beside), view.level)
    if found is None:
        return ""
    names = [f"T = {temperature:g}" for temperature in found.curves]
    ks = next(iter(found.curves.values())).k
    lines = [
        _charts.Line(name, c, ks, *(part["pass@k"] for part in (of.mean, of.low, of.high)),
                     joined=found.fit is None)
        for c, (name, of) in enumerate(zip(names, found.curves.values(), strict=True))
    ]  # fmt: skip
    head, rows = ["k", *names], [
        [str(k), *(_interval(line.y[j], line.low[j], line.high[j]) for line in lines)]
        for j, k in enumerate(ks.tolist())
    ]  # fmt: skip
    said, further = _text(found.without_fit), [int(ks[-1]) * more for more in (2, 4)]
    if found.fit is not None:
        fine = np.geomspace(ks[0], further[-1], 60)
        lines += [_charts.Line(name, c, fine, found.fit.predict(fine, t), marked=False)
                  for c, (name, t) in enumerate(zip(names, found.curves, strict=True))]  # fmt: skip
        for k in further:
            rows.append([f"{k}, predicted", *(f"{found.fit.predict(k, t):.3f}"
                                              for t in found.curves)])  # fmt: skip
        best = found.fit.best_temperature(further[-1])
        said = (f"Points are measured, lines fitted: pass@k = exp(a k<sup>b</sup>) for each "
                f"temperature; at k = {further[-1]} T = {best:g} is predicted to be the best.")
    drawing = _charts.chart(
        lines, "pass@k over k by temperature", "k, samples", "solved (share of prompts)", "k",
        logarithmic=True, at=[*ks, *further] if found.fit is not None else ks,
    )  # fmt: skip
    return "".join([
        "<h2>Temperature and tries</h2>",
        f"<figure>{drawing}{_charts.legend(names)}</figure><p>{said}</p>",
        _wide(_table(head, rows), "temperatures as a table"),
    ])  # fmt: skip


def _judges(view: View) -> str:
    """Whether higher scores mean right samples, and whether probabilities are true."""
    found = _figures.judged(view.run)
    if not found:
        return ""
    rows = [
        (one.name, *(("-" if value is None else f"{value:.3f}") for value in (
            one.within, one.auroc, one.calibration and one.calibration.ece,
            one.calibration and one.calibration.brier)))
        for one in found
    ]  # fmt: skip
    probable = [one for one in found if one.calibration is not None]
    lines = []
    for c, one in enumerate(probable):
        some = one.calibration.counts > 0
        lines.append(_charts.Line(one.name, c, one.calibration.scores[some],
                                  one.calibration.labels[some]))  # fmt: skip
    figure = _charts.chart(
        lines, "mean reward over mean score of ten bins", "score, mean of its bin",
        "mean reward", "score", equal=True,
    ) + _charts.legend(one.name for one in probable) if probable else ""  # fmt: skip
    prompts = max(one.prompts for one in found)
    return "".join([
        "<h2>How well scores tell right from wrong</h2>",
        f"<figure>{figure}</figure><p>Read as probabilities of being right; on the dashed line "
        "they are true.</p>" if probable else "",
        _wide(_table(("verifier", "AUROC within prompts", "AUROC of all", "ECE", "Brier"), rows),
              "judges as a table"),
        "<p>AUROC: how often a right sample scores above a wrong one; 0.5 is chance. Within "
        f"prompts, it is the mean over the {prompts} that have both, and what selecting lives on. "
        "ECE and Brier score are of scores between 0 and 1.</p>",
    ])  # fmt: skip


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _settings(view: View) -> str:
    rows = [
        (name, value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in view.run.settings.items()
        if value is not None
    ]
    return ("<details><summary>Settings</summary>"
            f"{_wide(_table(('name', 'value'), rows), 'settings')}</details>")


HELP = ("Keys: <kbd>/</kbd> searches, <kbd>↓</kbd> and <kbd>↑</kbd> go from prompt to prompt, "
        "<kbd>Enter</kbd> opens and closes one.")


def _samples(view: View) -> str:
    run = view.run
    shown = list(_within_budget(run))
    listed = {"all": "all prompts", "unsolved": "without a right sample"} | {
        f"missed-{s}": f"with a better sample than {name} chose"
        for s, name in enumerate(run.chosen())
    }
    # Numbers are those of the entries of data-by.
    keys = {"": "as drawn"} | {str(c): name for c, name in enumerate(("reward", *run.scores))}
    return "".join([
        "<h2>Prompts and samples</h2>",
        f"<p>{_said(run, len(shown))}</p>",
        '<form id="finder" hidden><label>Search <input type="search" id="search" '
        'placeholder="in prompts and samples"></label> ',
        f'<label>Show <select id="show">{_options(listed)}</select></label> ',
        f'<label>Sort by <select id="sort">{_options(keys)}</select></label> ',
        '<label><input type="checkbox" id="rising"> lowest first</label> ',
        f'<output id="count" for="search show"></output><p>{HELP}</p></form>\n',
        f'<div id="prompts">{"".join(shown)}</div>',
    ])  # fmt: skip


def _options(said: dict[str, str]) -> str:
    return "".join(f'<option value="{key}">{_text(word)}</option>' for key, word in said.items())


def _said(run: Any, shown: int) -> str:
    """What is shown, and what is not."""
    total = len(run.problems)
    prompts = f"All {total}" if shown == total else f"The first {shown} of {total}"
    parts = [f"{prompts} prompts"]
    if run.n > SAMPLES:
        parts.append(f"of each the first {SAMPLES} samples and those that were chosen")
    return f"{', '.join(parts)}. Texts are shown to {CHARACTERS} characters."


def _within_budget(run: Any) -> Iterator[str]:
    """Prompts as HTML, as many as a page may have."""
    chosen, left = run.chosen(), BUDGET
    known = run.rewards[~np.isnan(run.rewards)]
    truths = bool(((known >= 0) & (known <= 1)).all())
    for p in range(min(len(run.problems), PROMPTS)):
        made = _prompt(run, p, {name: int(pick[p]) for name, pick in chosen.items()}, truths)
        left -= len(made)
        if left < 0:
            return
        yield made


SECTIONS = (_results, _compute, _temperatures, _judges, _settings, _samples)

# -- one prompt ------------------------------------------------------------------


def _prompt(run: Any, p: int, chosen: dict[str, int], truths: bool) -> str:
    """A prompt with its samples; truths: rewards are from 0, wrong, to 1, right."""
    rewards = run.rewards[p]
    drawn = np.flatnonzero(~np.isnan(rewards))
    shown = sorted({*drawn[:SAMPLES].tolist(), *chosen.values()} - {-1})
    name, prompt = str(run.problems[p].id), _prompt_text(run, p)
    title = " ".join(prompt.split())
    columns = np.array([rewards, *(score[p] for score in run.scores.values())])
    best = [rewards[drawn].mean() if len(drawn) else np.nan, *map(_largest, columns[1:])]
    return "".join([
        f'<details data-is="{" ".join(_kinds(rewards[drawn], rewards, chosen))}" '
        f'data-by="{_numbers(best)}">',
        "<summary>",
        f'<span class="id">{_text(name[:160])}</span> ' if name != prompt else "",
        f"<bdi>{_text(title[:160])}</bdi> " if title else "",
        f'<span class="tally">{_tally(rewards[drawn], rewards, chosen, truths)}</span></summary>',
        f'<pre dir="auto" class="prompt">{_cut(prompt)}</pre>' if prompt else "",
        "<ol>", *(_sample(run, p, i, chosen, columns[:, i], truths) for i in shown), "</ol>",
        "</details>\n",
    ])  # fmt: skip


def _largest(values: Any) -> float:
    known = values[~np.isnan(values)]
    return known.max() if len(known) else np.nan


def _numbers(values: Any) -> str:
    """What the page sorts by: the reward and each score; nan where there is none."""
    return " ".join(f"{value:.9g}" for value in values)


def _prompt_text(run: Any, p: int) -> str:
    """The prompt for people: text, the messages of a chat, or ids."""
    prompt = run.problems[p].prompt if run.samples is None else run.samples.prompts[p]
    if isinstance(prompt, str):
        return prompt
    if len(prompt) and isinstance(prompt[0], dict):
        return "\n\n".join(f"{each.get('role', '')}: {each.get('content', '')}" for each in prompt)
    return " ".join(str(int(token)) for token in prompt)


def _kinds(drawn: Any, rewards: Any, chosen: dict[str, int]) -> list[str]:
    """By what the page's filter finds a prompt."""
    if not len(drawn):
        return []
    missed = [f"missed-{s}" for s, i in enumerate(chosen.values())
              if i >= 0 and rewards[i] < drawn.max()]
    return missed + ["unsolved"] * bool(drawn.max() <= 0)


def _tally(drawn: Any, rewards: Any, chosen: dict[str, int], truths: bool) -> str:
    """How many samples are right, or their mean, and what each selector chose."""
    if not len(drawn):
        return "no sample"
    right = f"{np.count_nonzero(drawn == 1)} of {len(drawn)} right"
    mean = f"mean reward {drawn.mean():.3g} of {len(drawn)}"
    marks = (f"{_text(name)} {_mark(rewards[i], truths)}" for name, i in chosen.items() if i >= 0)
    return " · ".join([right if truths else mean, *marks])


def _mark(reward: float, truths: bool) -> str:
    """Right, wrong, or the reward between: a sign and a word, not a colour alone."""
    if truths and reward in (0, 1):
        word = "right" if reward else "wrong"
        return f'<b class="{word}">{"✓" if reward else "✗"} {word}</b>'
    return f"<b>reward {reward:.3g}</b>"


def _sample(run: Any, p: int, i: int, chosen: dict[str, int], by: Any, truths: bool) -> str:
    said = [f"#{i}", _mark(run.rewards[p, i], truths)]
    said += [f"{_text(name)} {score[p, i]:.4g}" for name, score in run.scores.items()
             if not np.isnan(score[p, i])]  # fmt: skip
    if run.answers is not None and run.answers[p][i]:
        said.append(f"answer <bdi>{_cut(run.answers[p][i])}</bdi>")
    if run.samples is not None:
        said += [str(run.samples.finish_reason[p, i]), f"{run.samples.lengths[p, i]} tokens",
                 f"T = {run.samples.temperature[p, i]:g}"]
    who = [name for name, pick in chosen.items() if pick == i]
    said += [f"<mark>chosen by {_text(', '.join(who))}</mark>"] if who else []
    texts = run.texts if run.samples is None else run.samples.text
    text = texts and texts[p][i]
    body = "" if text is None else f'<pre dir="auto">{_cut(text)}</pre>'
    kind = ' class="chosen"' if who else ""
    return f'<li data-by="{_numbers(by)}"{kind}><p>{" · ".join(said)}</p>{body}</li>'
