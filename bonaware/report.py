"""The report of a run: one HTML page that loads nothing.

Settings, curves, tables, and the prompts with their samples to look through. It takes what a
`Run` knows and estimates nothing itself. What models and files say is shown as text: escaped,
control characters made visible, and the page's own policy lets no script run but report.js.

To add a section, write a function of a `Run` and a level that gives HTML, and put it into
SECTIONS.
"""

import base64
import hashlib
import html
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bonaware
from bonaware import _charts

__all__ = ["page", "write"]

# What a page shows of a large run; it says what it leaves out.
PROMPTS = 500
SAMPLES = 64  # of a prompt, besides those that a selector chose
CHARACTERS = 2000  # of a text
BUDGET = 8_000_000  # characters of HTML, all prompts together

HERE = Path(__file__).parent


def write(run: Any, path: str | os.PathLike[str], level: float = 0.95) -> Path:
    """Write the page of a run; see `Run.report`."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(page(run, level), encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def page(run: Any, level: float = 0.95) -> str:
    """The page as a str.

    Parameters
    ----------
    run : Run
    level : float
        Of the intervals, in (0, 1).

    Notes
    -----
    The same run gives the same page.
    """
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
        *(section(run, level) for section in SECTIONS),
        f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
    ])  # fmt: skip


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# -- text ----------------------------------------------------------------------

KEPT = "\n\t\u200c\u200d"  # joiners belong to the spelling of some languages


class _Visible(dict):
    """For str.translate: characters that steer rather than show become \\x1b and the like."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        steers = not (char.isprintable() or char in KEPT or unicodedata.category(char) == "Zs")
        self[code] = ascii(char)[1:-1] if steers else char
        return self[code]


VISIBLE = _Visible()


def _text(text: Any) -> str:
    """Anything as text of a page, or as the value of an attribute in double quotes."""
    return html.escape(str(text).translate(VISIBLE))


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


def _figures(run: Any, level: float) -> str:
    if not run.counted.any():
        return f"<section><h2>Figures</h2><p>{_text(run.without_figures)}</p></section>\n"
    notes = "".join(f"<p>{_text(note)}</p>" for note in run.without_score())
    return f"<section>{run.figures_html(level)}{notes}</section>\n"


def curves_html(run: Any, level: float) -> str:
    """What k samples give, and what each selector picks."""
    curves = run.curves(level)
    picks = [(name, f"{reward:.3f}") for name, reward in run.selected().items()]
    return "".join([
        "<h2>What k samples give</h2>",
        f"<figure>{_charts.svg(curves)}{_charts.legend(curves)}</figure>",
        _wide(curves._repr_html_(), "curves as a table"),
        f"<h3>Chosen from all {run.n} samples</h3><p>Equal scores: the first sample.</p>"
        + _wide(_table(("selector", "mean reward"), picks), "selectors") if picks else "",
    ])  # fmt: skip


def _settings(run: Any, level: float) -> str:
    rows = [
        (name, value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in run.settings.items()
        if value is not None
    ]
    return ("<section><details><summary>Settings</summary>"
            f"{_wide(_table(('name', 'value'), rows), 'settings')}</details></section>\n")


def _samples(run: Any, level: float) -> str:
    shown = list(_within_budget(run))
    listed = {"all": "all prompts", "unsolved": "without a right sample"} | {
        f"missed-{s}": f"with a right sample, {name} chose another"
        for s, name in enumerate(run.chosen())
    }
    options = "".join(f'<option value="{key}">{_text(said)}</option>'
                      for key, said in listed.items())  # fmt: skip
    return "".join([
        "<section><h2>Prompts and samples</h2>",
        f"<p>{_said(run, len(shown))}</p>",
        '<form id="finder" hidden><label>Search <input type="search" id="search" '
        'placeholder="in prompts and samples"></label> ',
        f'<label>Show <select id="show">{options}</select></label> ',
        '<output id="count" for="search show"></output></form>\n',
        f'<div id="prompts">{"".join(shown)}</div></section>\n',
    ])  # fmt: skip


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
    for p in range(min(len(run.problems), PROMPTS)):
        made = _prompt(run, p, {name: int(pick[p]) for name, pick in chosen.items()})
        left -= len(made)
        if left < 0:
            return
        yield made


SECTIONS = (_figures, _settings, _samples)

# -- one prompt ------------------------------------------------------------------


def _prompt(run: Any, p: int, chosen: dict[str, int]) -> str:
    rewards = run.rewards[p]
    drawn = np.flatnonzero(~np.isnan(rewards))
    shown = sorted({*drawn[:SAMPLES].tolist(), *chosen.values()} - {-1})
    prompt = _prompt_text(run, p)
    title = " ".join(prompt.split())
    return "".join([
        f'<details data-is="{" ".join(_kinds(rewards[drawn], rewards, chosen))}">',
        f'<summary><span class="id">{_text(run.problems[p].id)}</span> ',
        f"<bdi>{_text(title[:160])}</bdi> " if title else "",
        f'<span class="tally">{_tally(rewards[drawn], rewards, chosen)}</span></summary>',
        f'<pre dir="auto" class="prompt">{_cut(prompt)}</pre>' if prompt else "",
        "<ol>", *(_sample(run, p, i, chosen) for i in shown), "</ol></details>\n",
    ])  # fmt: skip


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
    missed = [f"missed-{s}" for s, i in enumerate(chosen.values()) if rewards[i] < drawn.max()]
    return missed + ["unsolved"] * bool(drawn.max() <= 0)


def _tally(drawn: Any, rewards: Any, chosen: dict[str, int]) -> str:
    """How many samples are right, and what each selector chose."""
    if not len(drawn):
        return "no sample"
    right = np.count_nonzero(drawn == 1)
    marks = (f"{_text(name)} {_mark(rewards[i])}" for name, i in chosen.items())
    return " · ".join([f"{right} of {len(drawn)} right", *marks])


def _mark(reward: float) -> str:
    """Right, wrong, or the reward between: a sign and a word, not a colour alone."""
    if reward in (0, 1):
        word = "right" if reward else "wrong"
        return f'<b class="{word}">{"✓" if reward else "✗"} {word}</b>'
    return f"<b>reward {reward:.3g}</b>"


def _sample(run: Any, p: int, i: int, chosen: dict[str, int]) -> str:
    said = [f"#{i}", _mark(run.rewards[p, i])]
    said += [f"{_text(name)} {score[p, i]:.4g}" for name, score in run.scores.items()
             if not np.isnan(score[p, i])]  # fmt: skip
    if run.answers is not None and run.answers[p][i]:
        said.append(f"answer <bdi>{_cut(run.answers[p][i])}</bdi>")
    if run.samples is not None:
        said += [str(run.samples.finish_reason[p, i]), f"{run.samples.lengths[p, i]} tokens"]
    by = [name for name, pick in chosen.items() if pick == i]
    said += [f"<mark>chosen by {_text(', '.join(by))}</mark>"] if by else []
    text = None if run.samples is None else run.samples.text[p][i]
    body = "" if text is None else f'<pre dir="auto">{_cut(text)}</pre>'
    kind = ' class="chosen"' if by else ""
    return f"<li{kind}><p>{' · '.join(said)}</p>{body}</li>"
