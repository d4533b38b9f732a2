"""PolicyRun: what `evaluate` returns where a policy decided how much was drawn."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware import estimators
from bonaware._html import text as as_html
from bonaware.evaluation import Run
from bonaware.policies import Policy, describe

__all__ = ["PolicyRun", "no_curves"]


def no_curves(policy: Policy) -> ValueError:
    """Why a run under a policy has none, and so takes no k."""
    return ValueError(
        f"curves over k need samples whose number did not depend on what they were, but policy "
        f"{policy!r} decides it: see accuracy() and samples_per_prompt, or replay the policy on a "
        "run without one")


@dataclass(eq=False, repr=False)
class PolicyRun(Run):
    """Samples that a policy had drawn, which of them it took, and what that cost.

    Parameters
    ----------
    policy : Policy
    done : dict of int -> int
        Prompts that it is done with, and the sample that it took; -1 where none had ended.
    Others
        As in `bonaware.evaluation.Run`; rewards and scores are NaN where a sample was pruned.
    """

    policy: Policy = field(kw_only=True)
    done: dict[int, int] = field(kw_only=True)

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which prompts `[P]` the policy is done with."""
        return np.isin(np.arange(len(self.rewards)), list(self.done))

    @property
    def values(self) -> NDArray[np.float64]:
        """Reward of the sample that the policy took, shape [prompts it is done with].

        0 where no sample had ended.
        """
        rows = np.flatnonzero(self.counted)
        if not rows.size:
            raise ValueError(f"need a prompt that {self.policy!r} is done with, but of "
                             f"{len(self.rewards)} prompts there is none")
        picks = np.array([self.done[p] for p in rows.tolist()], np.int64)
        return np.where(picks < 0, 0.0, self.rewards[rows, picks])

    def accuracy(self, level: float = 0.95) -> tuple[float, float, float]:
        """Mean reward of what the policy took, and its interval over prompts; NaN for one."""
        values = self.values
        bounds = estimators.interval(values, level=level) if len(values) > 1 else (np.nan, np.nan)
        return float(values.mean()), float(bounds[0]), float(bounds[1])

    @property
    def samples_per_prompt(self) -> NDArray[np.int64]:
        """Samples that were begun, shape [prompts it is done with]."""
        return np.asarray(self._drawn.valid[self.counted].sum(1))

    @property
    def tokens_per_prompt(self) -> NDArray[np.int64]:
        """Tokens that were drawn, of dropped samples too, shape [prompts it is done with]."""
        return np.asarray(self._drawn.lengths[self.counted].sum(1))

    @property
    def pruned(self) -> float:
        """Share of the samples that were dropped early."""
        drawn = self._drawn
        return float((drawn.finish_reason[self.counted] == "pruned").sum()
                     / max(1, drawn.valid[self.counted].sum()))

    @property
    def _drawn(self) -> Any:
        assert self.samples is not None
        return self.samples

    def chosen(self) -> dict[str, NDArray[np.int64]]:
        """Which sample `[P]` the policy took; -1 where it took none, or is not done."""
        picks = np.full(len(self.rewards), -1)
        for p, pick in self.done.items():
            picks[p] = pick
        return {"policy": picks}

    def curves(self, level: float = 0.95) -> Any:
        """Not of samples whose number was decided by looking at them: such figures are biased."""
        raise no_curves(self.policy)

    def selected(self) -> dict[str, float]:
        """Mean reward of what the policy took."""
        return {"policy": float(self.values.mean())}

    def plot(self, ax: Any = None, level: float = 0.95) -> Any:
        """Draw how many samples the prompts took; returns the matplotlib Axes."""
        from bonaware import plot

        ax = plot.samples_per_prompt(self.samples_per_prompt, self.values, self.n, ax=ax)
        ax.set_title(f"{self.title}\n{self._said(level)}")
        return ax

    @property
    def head(self) -> str:
        text = (f"{self.title}: {len(self.rewards)} prompts, {self.policy!r}, "
                f"{int(self._drawn.valid.sum())} samples")
        if self.complete:
            return text
        return f"{text}: interrupted, {int(self.counted.sum())} prompts are done"

    def _said(self, level: float) -> str:
        mean, low, high = self.accuracy(level)
        of = "of 1 prompt" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"
        return f"mean reward {mean:.3f} {of}"

    def _rows(self, level: float = 0.95) -> list[tuple[str, str]]:
        """Figures with their names."""
        begun, tokens = self.samples_per_prompt, self.tokens_per_prompt
        rows = [
            ("mean reward", self._said(level).removeprefix("mean reward ")),
            ("samples per prompt", f"{begun.mean():.2f} of at most {self.policy.n} "
             f"(median {np.median(begun):g}, most {begun.max()})"),
            ("tokens per prompt", f"{tokens.mean():.1f} of samples"),
        ]
        if self.policy.checkpoints:
            rows.append(("dropped early", f"{100 * self.pruned:.1f} % of the samples"))
        stats = self._drawn.stats
        if stats is not None and stats.question_tokens:
            asked = stats.question_tokens / max(1, stats.new_tokens)
            rows.append(("questions", f"{stats.question_tokens} tokens, {100 * asked:.1f} % of "
                         f"those drawn, in {stats.ask_seconds:.3g} of {stats.seconds:.3g} s"))
        return rows

    def _figures_text(self, width: int | None) -> list[str]:
        rows = self._rows()
        column = max(len(name) for name, _ in rows)
        return [*(f"{name:<{column}}  {value}" for name, value in rows),
                "a policy decides which samples there are: figures of k samples (pass@k and the "
                "like) may be biased and are not shown", *self.without_score()]

    @property
    def without_figures(self) -> str:
        return f"{self.policy!r} is done with no prompt yet, so there are no figures"

    def without_score(self) -> list[str]:
        """Nothing to say of verifiers that were not asked about dropped samples."""
        return []

    def chart(self, columns: int, encoding: str) -> str:
        """How many prompts took how many samples, as text."""
        counts = np.bincount(self.samples_per_prompt, minlength=self.policy.n + 1)
        used = np.flatnonzero(counts)
        full = "█" if encoding.lower().replace("-", "").startswith("utf") else "#"
        room = max(10, columns - 28)
        lines = [f"{k:>7} samples {full * max(1, round(room * counts[k] / counts.max()))} "
                 f"{counts[k]}" for k in used]
        return "\n".join(["prompts by the samples they took", *lines])

    def to_dict(self) -> dict[str, Any]:
        """The figures, as JSON has them: None for no interval, empty where there are none yet."""
        if not self.counted.any():
            return {}
        mean, *bounds = self.accuracy()
        low, high = (None if np.isnan(bound) else bound for bound in bounds)
        return {
            "policy": describe(self.policy), "mean_reward": mean, "low": low, "high": high,
            "samples_per_prompt": float(self.samples_per_prompt.mean()),
            "tokens_per_prompt": float(self.tokens_per_prompt.mean()), "pruned": self.pruned,
        }  # fmt: skip

    def figures_html(self, level: float = 0.95) -> str:
        rows = "".join(f"<tr><th>{as_html(name)}</th><td>{as_html(value)}</td></tr>"
                       for name, value in self._rows(level))
        return (f"<h2>What the policy drew and took</h2><table>{rows}</table>"
                "<p>A policy decides which samples there are, so figures of k samples may be "
                "biased and are not shown.</p>")

    def _repr_html_(self) -> str:
        figures = self.figures_html() if self.counted.any() else ""
        return f"<p><b>{as_html(self.head)}</b></p>{figures}"
