"""Figures, verdicts and tables of reproduce_selfeval.py."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from reproduce_tables import lines

from bonaware import estimators
from bonaware.policies import gain

__all__ = ["markdown", "summarise", "write_docs"]

SUMMARY = Path("benchmarks/results/reproduce_selfeval.json")
DOCS = Path("docs/self_evaluation.md")
BEGIN, END = (f"<!-- {where} of what reproduce_selfeval.py writes -->"
              for where in ("begin", "end"))
SHOWN = (1, 2, 4, 8, 16)
ASKED_GAIN = 74.0  # percent of the maximum improvement that the paper reports at 1.2 samples
LOST = {0.5: 1.0, 0.75: 3.0}  # share that is pruned -> points it may cost


# -- figures -------------------------------------------------------------------


def summarise(out):
    """Everything that is shown, as plain lists and numbers; means are over seeds and problems."""
    seeds = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*.json"))]
    timed = out / "seconds.json"
    ks = seeds[0]["selected"]["ks"]
    by = {name: mean([seed["selected"]["by"][name] for seed in seeds])
          for name in seeds[0]["selected"]["by"]}  # [K, P]
    one, best = by["random"][0], by["self_evaluation"][-1]
    found = {
        "settings": json.loads((out / "settings.json").read_text()), "seeds": len(seeds),
        "made": [json.loads(text) for text in sorted({json.dumps(s["made"]) for s in seeds})],
        "ks": ks, "selected": {name: [figure(row) for row in rows] for name, rows in by.items()},
        "better": {name: [figure(a - b) for a, b in zip(by["self_evaluation"], rows, strict=True)]
                   for name, rows in by.items() if name not in ("self_evaluation", "oracle")},
        "adaptive": {anneal: [adaptive_row(seeds, anneal, i, one, best, by["self_evaluation"])
                              for i in range(len(seeds[0]["adaptive"][anneal]))]
                     for anneal in seeds[0]["adaptive"]},
        "first": {anneal: {"accuracy": figure(first), "gain": share(first, one, best)}
                  for anneal in seeds[0]["first"]
                  for first in [mean([seed["first"][anneal] for seed in seeds])]},
        "pruned": pruned_rows(seeds),
        "calibration": {name: [float(np.mean(values)), float(np.std(values))]
                        for name in seeds[0]["calibration"]
                        for values in [[seed["calibration"][name] for seed in seeds]]},
        "seconds": json.loads(timed.read_text()) if timed.exists() else None,
    }  # fmt: skip
    return found | {"claims": claims(found)}


def mean(rows):
    """Over seeds."""
    return np.mean(np.array(rows, float), axis=0)


def figure(values):
    """Mean over problems in points, and its 95 % interval."""
    low, high = estimators.interval(values)
    return [round(100 * float(x), 2) for x in (np.mean(values), low, high)]


def share(values, one, best):
    """Percent of the maximum improvement, with its interval."""
    return [round(float(x), 1) for x in gain(values, one, best)]


def adaptive_row(seeds, anneal, i, one, best, fixed):
    """One threshold: what it took, what it gave, and the fixed k that gives as much."""
    rows = [seed["adaptive"][anneal][i] for seed in seeds]
    rewards = mean([row["rewards"] for row in rows])
    needed = np.flatnonzero(fixed.mean(1) >= rewards.mean())
    return {"wished": rows[0]["wished"], "samples": figure_of(rows, "samples"),
            "tokens": figure_of(rows, "tokens"), "accuracy": figure(rewards),
            "gain": share(rewards, one, best),
            "fixed": interpolated(fixed.mean(1), rewards.mean(), needed)}


def figure_of(rows, name):
    return round(float(np.mean([row[name] for row in rows])), 3)


def interpolated(fixed, wanted, needed):
    """The k, with decimals, at which best-of-k reaches what is wanted; None beyond the last."""
    if not needed.size:
        return None
    k = int(needed[0])
    if k == 0:
        return 1.0
    return round(float(k + (wanted - fixed[k - 1]) / (fixed[k] - fixed[k - 1])), 2)


def pruned_rows(seeds):
    """Each way to prune against none, and against random pruning of the same share."""
    count = len(seeds[0]["pruned"])
    rewards = [mean([seed["pruned"][i]["rewards"] for seed in seeds]) for i in range(count)]
    tokens = [mean([seed["pruned"][i]["tokens"] for seed in seeds]).sum() for i in range(count)]
    new = [mean([seed["pruned"][i]["new_tokens"] for seed in seeds]).sum() for i in range(count)]
    found = []
    for i, row in enumerate(seeds[0]["pruned"]):
        found.append({
            **{key: row[key] for key in ("name", "checkpoint", "share") if key in row},
            "accuracy": figure(rewards[i]), "change": figure(rewards[i] - rewards[0]),
            "saved": round(100 * (1 - tokens[i] / tokens[0]), 1),
            "saved_new": round(100 * (1 - new[i] / new[0]), 1),
        })  # fmt: skip
        if row["name"] == "prune":
            found[-1]["over_random"] = figure(rewards[i] - rewards[i + 1])
    return found


# -- verdicts ------------------------------------------------------------------


def claims(found):
    """Name, what was seen, and whether it holds."""
    shown = [found["selected"]["self_evaluation"][k - 1][0] for k in SHOWN if k in found["ks"]]
    over = {name: rows[-1] for name, rows in found["better"].items()}
    annealed = found["adaptive"]["exponential"]
    enough = next((row for row in annealed if row["gain"][0] >= ASKED_GAIN), None)
    alone = found["first"]["exponential"]["gain"][0]
    rows = [
        ("accuracy of the sample selected rises with k", " ".join(f"{x:.1f}" for x in shown),
         all(a < b for a, b in pairwise(shown))),
        *((f"self-evaluation selects better than {name} of {found['ks'][-1]}", interval(diff),
           diff[1] > 0) for name, diff in over.items()),
        (f"adaptive + annealing reaches {ASKED_GAIN:g} % of the gain of {found['ks'][-1]} samples "
         "with fewer samples than best-of-k needs for it",
         "not reached" if enough is None else
         f"{enough['gain'][0]:.0f} % at {enough['samples']:.2f} samples on average; best-of-k "
         f"needs {enough['fixed']}",
         enough is not None and enough["fixed"] is not None
         and enough["samples"] < enough["fixed"]),
        ("and with more gain than annealing alone",
         "not reached" if enough is None else f"{enough['gain'][0]:.0f} % against {alone:.0f} %",
         enough is not None and enough["gain"][0] > alone),
    ]  # fmt: skip
    for share_, most in LOST.items():
        rows += pruning_claims(found["pruned"], share_, most)
    return [{"claim": name, "seen": seen, "holds": bool(holds)} for name, seen, holds in
            rows + seconds_claims(found["seconds"])]


def pruning_claims(pruned, share_, most):
    """Of the checkpoint that loses least."""
    best = max((row for row in pruned if row["name"] == "prune" and row["share"] == share_),
               key=lambda row: row["change"][0])
    where = f"at {best['checkpoint']} tokens"
    return [
        (f"dropping {share_:.0%} early costs at most {most:g} points",
         f"{interval(best['change'])} {where}, {best['saved']:.0f} % of all tokens saved",
         best["change"][0] >= -most),
        (f"dropping {share_:.0%} by self-evaluation beats dropping at random",
         f"{interval(best['over_random'])} {where}", best["over_random"][1] > 0),
    ]  # fmt: skip


def seconds_claims(timed):
    """Seconds saved, and how well the cost model foretells them."""
    if timed is None:
        return []
    rows = {row["name"]: row for row in timed["rows"]}
    full = rows["no pruning"]["seconds"]
    dropped = [row for name, row in rows.items() if "dropped" in name]
    saved = [f"{row['name']}: {100 * (1 - row['seconds'] / full):.0f} %" for row in dropped]
    error = {row["name"]: foretold(row) for row in timed["rows"] if not row["fitted"]}
    worst = max(error, key=lambda name: abs(error[name]))
    return [
        ("pruning saves seconds", "; ".join(saved),
         all(row["seconds"] < full for row in dropped)),
        ("the cost model is right within 10 %", f"worst {100 * error[worst]:+.1f} % ({worst})",
         abs(error[worst]) <= 0.1),
    ]  # fmt: skip


def foretold(row):
    """Relative error of the cost model."""
    return row["foretold"] / row["seconds"] - 1


def interval(three):
    return f"{three[0]:+.1f} [{three[1]:.1f}, {three[2]:.1f}]"


# -- tables --------------------------------------------------------------------


def markdown(found):
    """All tables."""
    settings, made = found["settings"], found["made"][0]
    head = (
        f"{found['seeds']} seeds of drawing; {settings['test']} test problems, n = "
        f"{settings['n']} samples each, thresholds fitted on {settings['validation']} validation "
        "problems. Figures in percent; intervals are 95 %, bootstrap over problems, of the mean "
        f"over seeds. Made by commit {made['commit']}, {made['date']}, {made['cores']} cores of "
        f"{made['processor']}, Python {made['python']}, NumPy {made['numpy']}."
    )
    parts = [head, "### Claims", table(("claim", "seen", ""), [
        (row["claim"], row["seen"], "**holds**" if row["holds"] else "**does not hold**")
        for row in found["claims"]]), "### Which sample is selected", selected_table(found),
        "### How many samples are drawn", adaptive_table(found),
        "### Which samples are dropped early", pruned_table(found),
        "### How well it tells right samples from wrong ones", table(
            ("score", "AUROC"), [(name, f"{m:.3f} ± {s:.3f}")
                                 for name, (m, s) in found["calibration"].items()])]  # fmt: skip
    if found["seconds"]:
        parts += ["### Seconds", seconds_table(found["seconds"])]
    return "\n\n".join(parts) + "\n"


def table(head, rows):
    return "\n".join(f"| {' | '.join(map(str, row))} |"
                     for row in (head, ["---"] * len(head), *rows))


def selected_table(found):
    ks = [k for k in SHOWN if k in found["ks"]]
    rows = [(name, *(f"{values[k - 1][0]:.1f} [{values[k - 1][1]:.1f}, {values[k - 1][2]:.1f}]"
                     for k in ks)) for name, values in found["selected"].items()]
    return table(("selector", *(f"best of {k}" for k in ks)), rows)


def adaptive_table(found):
    rows = [(f"{name}, one sample", 1, f"{each['accuracy'][0]:.1f}",
             f"{each['gain'][0]:.0f} [{each['gain'][1]:.0f}, {each['gain'][2]:.0f}]", "")
            for name, each in (("T = 1", found["first"]["constant"]),
                               ("annealing alone (greedy)", found["first"]["exponential"]))]
    for name, anneal in (("adaptive", "constant"), ("adaptive + annealing", "exponential")):
        rows += [(name, f"{row['samples']:.2f}", f"{row['accuracy'][0]:.1f}",
                  f"{row['gain'][0]:.0f} [{row['gain'][1]:.0f}, {row['gain'][2]:.0f}]",
                  row["fixed"] or f"> {found['ks'][-1]}") for row in found["adaptive"][anneal]]
    return table(("policy", "mean samples", "accuracy", "% of the maximum improvement",
                  "samples that best-of-k needs for it"), rows)


def pruned_table(found):
    rows = []
    for row in found["pruned"]:
        if row["name"] == "none":
            rows.append(("none", "", "", f"{row['accuracy'][0]:.1f}", "", "", ""))
            continue
        by = "self-evaluation" if row["name"] == "prune" else "random"
        rows.append((by, row["checkpoint"], f"{row['share']:.0%}", f"{row['accuracy'][0]:.1f}",
                     interval(row["change"]), f"{row['saved_new']:.0f}", f"{row['saved']:.0f}"))
    return table(("dropped by", "at token", "dropped", "accuracy", "change",
                  "% of drawn tokens saved", "% of all tokens saved"), rows)


def seconds_table(timed):
    full = next(row["seconds"] for row in timed["rows"] if row["name"] == "no pruning")
    rows = [(row["name"], f"{row['seconds']:.2f} ({min(row['turns']):.2f}-{max(row['turns']):.2f})",
             f"{full / row['seconds']:.2f}",
             "fitted" if row["fitted"] else f"{100 * foretold(row):+.1f} %")
            for row in timed["rows"]]
    head = f"{timed['turns']} turns of {timed['shares']} calls, {timed['threads']} threads"
    model = timed["model"]
    speeds = ", ".join(f"{1e6 * model[name]:.3g} µs a {what}" for name, what in (
        ("prefill_s", "token of a prompt"), ("decode_s", "token of a sample"),
        ("read_s", "token of a question"), ("pair_s", "pair of attention")))
    return (table((head, "seconds", "speed against no pruning", "error of the cost model"), rows)
            + f"\n\nThe cost model: {speeds}; its fit is good to {model['residual']:.1%}.")


def write_docs(found, root):
    """The summary into benchmarks/results, the tables into docs/self_evaluation.md."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = " ".join(["python", "benchmarks/reproduce_selfeval.py", *words])
    (root / SUMMARY).parent.mkdir(parents=True, exist_ok=True)
    (root / SUMMARY).write_text(lines({"command": command} | found) + "\n", encoding="utf-8")
    text = (root / DOCS).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{root / DOCS} must have one line {BEGIN} and one line {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    (root / DOCS).write_text(f"{before}{BEGIN}\n\n{markdown(found)}\n{END}{after}",
                             encoding="utf-8")
