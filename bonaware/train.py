"""Trainer: steps that make a model better, from arrays or from a source of batches.

A step turns rewards and scores into one weight per sample (`bonaware.losses`), adds up the
gradient of the weighted log-probabilities in the engine (`bonaware._learner`), and lets AdamW
move the weights. Where samples come from is the matter of `bonaware.training`; this file knows
no tasks and no verifiers.
"""

import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware import _export
from bonaware._arguments import Floats, as_floats, place
from bonaware._checks import count
from bonaware._copy import Copy
from bonaware._learner import AdamW, leave_adapters
from bonaware._question import Question
from bonaware.checkpoint import read_json
from bonaware.diagnostics import diagnose
from bonaware.lm import LM, Prompt
from bonaware.lora import TARGETS, fresh, need_scale, write
from bonaware.losses import Loss
from bonaware.models import pad_token_id
from bonaware.models._fields import show
from bonaware.samples import Samples
from bonaware.training.drawn import Drawn, of_completions, of_samples, sums
from bonaware.training.folder import RunFolder, StepBar, newest
from bonaware.training.loop import Loop

__all__ = ["AdamW", "LoRA", "Trainer"]

Ids = NDArray[np.int32]
Metrics = dict[str, Any]
STATE, ABOUT = "trainer.safetensors", "trainer.json"
# What is said of a trainer to go on with where fingerprints differ.
OTHERS = {"reference": "was trained against another reference",
          "base": "holds adapters of another model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Low-rank adapters in place of full fine-tuning.

    Parameters
    ----------
    rank : int in [1, 65536]
    alpha : float > 0
        The adapters' product is scaled by alpha / rank.
    targets : sequence of str
        Which matrices get one: of "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"
        and "down_proj"; all by default.

    Raises
    ------
    TypeError
        A number is of another kind.
    ValueError
        A number is out of its range, or a target is unknown, given twice, or there is none.

    Notes
    -----
    **Source:** Hu et al. 2021, arXiv:2106.09685; names and meanings are those of PEFT.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        need_scale(self.rank, self.alpha)
        wrong = [target for target in self.targets if target not in TARGETS]
        if wrong or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must be different ones of {', '.join(TARGETS)}, got "
                             f"{self.targets!r}")


class Trainer:
    """Trains a model in place.

    Parameters
    ----------
    lm : LM
        Its weights change with every step. A float32 model is trained where it is; of a bfloat16
        model float32 masters are kept, which round into it after each step.
    loss : Loss, optional
        One of `bonaware.losses`. None for what learns by cross-entropy: a score head
        (`step_scores`), and answers behind samples (`step_answers`).
    optimizer : AdamW
    lora : LoRA, optional
        Train low-rank adapters only. The model computes with them from then on, and no other
        trainer can be made of it: `lm.save` merges them, and `LM.load` gives a model without.
    kl : float
        > 0: this becomes the `kl` of the loss, the strength of its KL term; and it is the
        strength of that of `step_answers`.
    reference : LM, optional
        The reference policy of `ref_logp`, of the KL term and of the metric "kl". Default, where
        one is needed: a frozen copy of the model as it is now.
    memory : int, optional
        Bytes of scratch for a backward pass; default: the model's `memory`.

    Attributes
    ----------
    lm, loss, optimizer, lora, kl, reference
        As given.
    steps : int
        Steps made so far.
    complete : bool
        False where the newest `fit` left steps or the last evaluation to another one.

    Raises
    ------
    TypeError
        The loss has no option `kl`, or is none of `bonaware.losses`.
    ValueError
        Model, loss and reference do not belong together, or the model has adapters that another
        trainer taught.

    Examples
    --------
    >>> import bonaware as bon
    >>> lm = bon.LM.from_config({
    ...     "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
    ...     "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    ... }, rng=0, threads=1)
    >>> trainer = Trainer(lm, bon.losses.get("reinforce")(), AdamW(lr=0.01))
    >>> samples = lm.generate([[1, 2]], n=8, max_new_tokens=4, rng=0)
    >>> metrics = trainer.step([[1, 2]], samples, rewards=[[0, 1] * 4])
    >>> trainer.steps, metrics["reward"], metrics["trained_samples"], metrics["lr"]
    (1, 0.5, 8, 0.01)
    """

    def __init__(self, lm: LM, loss: Loss | None = None, optimizer: AdamW | None = None,
                 lora: LoRA | None = None, kl: float = 0.0, reference: LM | None = None,
                 memory: int | None = None) -> None:
        leave_adapters(lm)
        self.lm, self.lora = lm, lora
        self.optimizer = AdamW() if optimizer is None else optimizer
        self.loss: Any = _with_kl(lm, _checked_loss(lm, loss), kl)
        self.kl = float(kl)
        self.reference = self._reference(reference)
        self._base = None if lora is None else lm.fingerprint  # adapters belong to it
        start = None if lora is None else fresh(lm, lora.rank, lora.alpha, lora.targets)
        self._learner = lm.learner(memory, start)
        if self.reference is not None:
            self._learner.set_reference(self.reference)
        self.complete = True
        self._last: int | None = None  # steps of the run under way
        self._k: tuple[int, int] | None = None  # the loss's k at its start and end
        self._found: Metrics = {}  # metrics of the newest step, should Ctrl-C come right behind it
        self._folder: Path | None = None  # the run that this trainer goes on with

    def _reference(self, given: LM | None) -> LM | None:
        wanted = self.kl > 0 if self.loss is None else "ref_logp" in self.loss.inputs
        if given is None:
            return _frozen(self.lm) if wanted else None
        if given.labels or given.arch.vocab != self.lm.arch.vocab:
            raise ValueError(f"the reference must predict the same {self.lm.arch.vocab} tokens as "
                             f"the model, found {given!r} with {given.arch.vocab}")
        return given

    @property
    def steps(self) -> int:
        """Steps made so far."""
        return self._learner.steps

    def master(self, slot: str, layer: int = 0) -> NDArray[np.float32]:
        """A weight as it is trained, in float32; `lm.save(path, weights=trainer.master)`."""
        return self._learner.weight(slot, layer)

    # -- one step ------------------------------------------------------------

    def step(self, prompts: Sequence[Prompt], samples: Samples | Sequence[Sequence[Any]],
             rewards: ArrayLike, scores: ArrayLike | None = None, *,
             expert: ArrayLike | None = None, temperature: float | None = None,
             **inputs: ArrayLike) -> Metrics:
        """One optimiser step from the samples of P prompts.

        Parameters
        ----------
        prompts : sequence of P prompts
            As for `LM.generate`.
        samples : Samples, or P sequences of up to n completions
            Samples as the model drew them, untruncated and all at one temperature > 0; missing,
            aborted and pruned ones are left out. Those of an earlier step, or of another model,
            have the log-probability that the model gives them now. Or completions, each a str, a
            sequence of ids, or None where there is none.
        rewards : float, shape [P, n]
        scores : float, shape [P, n], optional
            What the loss ranks by. Default: the rewards.
        expert : bool, shape [P, n], optional
            True for a demonstration; for losses that take it.
        temperature : float, optional
            Of the policy that is trained: for completions, 1 by default; Samples know theirs.
        **inputs
            More that the loss takes: `old_logp`, `ref_scores`, `fail`, `win_rate`,
            `log_normaliser`.

        Returns
        -------
        dict
            "loss", mean over prompts; "reward" and the other diagnostics of
            `bonaware.diagnostics.diagnose`, rewards without those of experts; "entropy": mean of
            -logp per token of the samples that are no experts', nats, as far as it is known; "kl"
            where there is a reference: mean over prompts of logp - ref_logp, nats;
            "trained_samples" and "trained_tokens", with their prompts; "grad_norm" before
            clipping, "lr", "step_seconds".

        Raises
        ------
        TypeError
            The loss lacks an input, or does not take one.
        ValueError
            Shapes do not fit, samples were truncated or drawn for other prompts, or a number is
            not finite; the weights are as they were.

        Notes
        -----
        The gradient is the mean over prompts of ``sum_i weights[p, i] * d logp[p, i]``. Samples
        with weight 0 cost nothing. On Ctrl-C nothing has changed.
        """
        started = time.perf_counter()
        loss = self._loss_now()
        rewards = as_floats(rewards, "rewards")
        if not len(prompts):
            raise ValueError("need at least one prompt, got none")
        drawn = self._drawn(prompts, samples, rewards, temperature)
        if rewards.shape != drawn.mask.shape:
            raise ValueError("rewards must have the shape [P, n] of the samples, "
                             f"{drawn.mask.shape}, got {rewards.shape}")
        given = {"expert": expert, **inputs}
        given = {name: value for name, value in given.items() if value is not None}
        given |= self._inputs(loss, drawn, rewards if scores is None else scores, given)
        with self._clean():
            return self._update(self._learn(loss, drawn, rewards, given), started)

    def _learn(self, loss: Loss, drawn: Drawn, rewards: Floats,
               given: Mapping[str, Any]) -> Metrics:
        """Add the gradient of the loss; what it was."""
        value, weights = loss(rewards, **given)
        learned = drawn.learned(weights)
        logp = self._accumulate(drawn, weights, learned)
        if drawn.logp is None and "logp" in loss.inputs and "logp" not in given:
            value, _ = loss(rewards, **given, logp=np.nan_to_num(logp))  # weights did not need it
        expert = given.get("expert")
        own = drawn.mask if expert is None else drawn.mask & ~np.asarray(expert)
        return {
            "loss": float(value.mean()), **diagnose(weights, rewards, drawn.mask, expert),
            "entropy": drawn.per_token(-(logp if drawn.logp is None else drawn.logp), own),
            **self._kl(drawn, given, own),
            "trained_samples": int(learned.sum()), "trained_tokens": drawn.rows(learned),
        }  # fmt: skip

    def step_scores(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]],
                    labels: Sequence[ArrayLike] | NDArray[Any]) -> Metrics:
        """One optimiser step of a score head, from labelled completions of P prompts.

        Parameters
        ----------
        prompts : sequence of P prompts
        completions : P sequences of completions
            Each a str or a sequence of ids. A prompt runs once for all of its completions.
        labels : P sequences of one number in [0, 1] per completion
            Probability that the completion is right.

        Returns
        -------
        dict
            "loss": mean cross-entropy of sigmoid(score) with the labels over all completions,
            nats; "accuracy" and "auroc" of the scores for labels >= 0.5 (None where all are on
            one side); "trained_samples", "trained_tokens", "grad_norm", "lr", "step_seconds".

        Raises
        ------
        ValueError
            The model has no score head with one label, or labels do not fit.
        """
        started = time.perf_counter()
        lm = self.lm
        if lm.labels != 1:
            raise ValueError(f"step_scores needs a model with a score head of one label, but "
                             f"{lm.name} is a {lm.config['architectures'][0]} with {lm.labels}")
        pairs = list(lm._pairs(prompts, completions))
        ids = [lm.encode(prompt) for prompt, _ in pairs]
        texts = [[_unpadded(lm, text) for text in row] for _, row in pairs]
        targets: Any = [as_floats(row, "labels") for row in labels]
        _check_labels(targets, [len(row) for row in texts])
        tokens = sum(map(len, ids)) + sum(len(text) for row in texts for text in row)
        with self._clean():
            metrics = self._learn_scores(ids, texts, targets) | {"trained_tokens": tokens}
            return self._update(metrics, started)

    def _learn_scores(self, prompts: Sequence[Ids], texts: Sequence[Sequence[Ids]],
                      targets: Any) -> Metrics:
        """Add the gradient of the mean cross-entropy; what it was."""
        target = np.concatenate(targets)
        weights: Any = [np.full(len(row), -1.0 / len(target)) for row in targets]
        rows = self._learner.accumulate_scores(prompts, texts, weights, targets)
        score, right = np.concatenate(rows).astype(np.float64), target >= 0.5
        return {
            "loss": float((np.logaddexp(0, score) - target * score).mean()),
            "accuracy": float(((score > 0) == right).mean()), "auroc": auroc(score, right),
            "trained_samples": len(target),
        }  # fmt: skip

    def step_answers(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]],
                     labels: Sequence[ArrayLike] | NDArray[Any], question: Any = None) -> Metrics:
        """One optimiser step on the answers to a question behind samples of P prompts.

        Parameters
        ----------
        prompts : sequence of P prompts
        completions : P sequences of completions
            Samples, whole with their end token or cut, each a str or a sequence of ids. A prompt
            runs once for all of its completions.
        labels : P sequences of one number in [0, 1] per completion
            What the probability of the question's target token should be; that of its other token
            the rest to 1.
        question : optional
            As `bonaware.selfeval.Question.of` takes it, such as a `Question`. Default: what the
            model was trained with, or `bonaware.selfeval.WORDS`.

        Returns
        -------
        dict
            "loss": mean over completions of
            ``- label * log P(target) - (1 - label) * log P(other)``, nats, with probabilities over
            the whole vocabulary; "excess": the same less the entropy of the labels, which no model
            is below; "brier": mean of (P(target) - label)²; "auroc" of P(target), see `auroc`;
            "kl" where there is a reference: mean over the completions' tokens of
            KL(model ‖ reference), nats; "trained_samples", "trained_tokens", "grad_norm", "lr",
            "step_seconds".

        Raises
        ------
        ValueError
            The model has a score head, labels do not fit, or there is no such question.

        Notes
        -----
        The gradient is that of the loss and of the trainer's `kl` times "kl", which is exact: a
        sum over the vocabulary at every token of the completions, not of the question. The model's
        `self_evaluation` is this question from then on.

        **Source:** Manvi, Singh, Ermon 2024, arXiv:2410.02725, section 4.1.
        """
        started = time.perf_counter()
        lm = self.lm
        asked = Question.of(lm, question)
        pairs = list(lm._pairs(prompts, completions))
        ids = [lm.encode(prompt) for prompt, _ in pairs]
        texts = [[lm._completion(text) for text in row] for _, row in pairs]
        targets: Any = [as_floats(row, "labels") for row in labels]
        _check_labels(targets, [len(row) for row in texts])
        with self._clean():
            metrics = self._update(self._learn_answers(ids, texts, targets, asked), started)
            lm.self_evaluation = asked.settings()
        return metrics

    def _learn_answers(self, prompts: Sequence[Ids], texts: Sequence[Sequence[Ids]],
                       targets: Sequence[Floats], question: Question) -> Metrics:
        """Add the gradient of the mean cross-entropy and of the divergence; what they were."""
        own = [[len(text) for text in row] for row in texts]
        asked = [[np.concatenate([text, question.behind(text)]) for text in row] for row in texts]
        target = np.concatenate(targets)
        both = np.stack([target, 1 - target], axis=1)
        weights = np.split(-both / len(target), np.cumsum([len(row) for row in targets])[:-1])
        tokens = sum(map(sum, own))
        compared = None if self.reference is None else own
        logp, kl = self._learner.accumulate_answers(
            prompts, asked, (question.target, question.other), weights, compared,
            self.kl / max(tokens, 1))
        logp = logp.astype(np.float64)
        score, loss = np.exp(logp[:, 0]), float(-(both * logp).sum(1).mean())
        divergence = {} if compared is None else {"kl": float(kl.sum(dtype=float) / max(tokens, 1))}
        return {
            "loss": loss, "excess": loss - _entropy(both),
            "brier": float(((score - target) ** 2).mean()), "auroc": auroc(score, target),
            **divergence, "trained_samples": len(target),
            "trained_tokens": sum(map(len, prompts)) + sum(len(text) for row in asked
                                                           for text in row),
        }  # fmt: skip

    def _loss_now(self) -> Loss:
        """The loss of this step: with its k, where that is annealed."""
        if self.loss is None:
            raise ValueError("step needs a loss, but this trainer has none: a score head is "
                             "trained by step_scores, answers behind samples by step_answers")
        if self._k is None or self._last is None:
            return self.loss
        return replace(self.loss, k=annealed(*self._k, self.steps, self._last))

    def _drawn(self, prompts: Sequence[Prompt], samples: Any, rewards: Floats,
               temperature: float | None) -> Drawn:
        if not isinstance(samples, Samples):
            if rewards.ndim != 2:
                raise ValueError(f"rewards must have the shape [P, n], got {rewards.shape}")
            return of_completions(self.lm, prompts, samples, rewards.shape[1],
                                  1.0 if temperature is None else temperature)
        if temperature is not None:
            raise ValueError("temperature is for completions; Samples know theirs, got "
                             f"{temperature}")
        return of_samples(self.lm, prompts, samples)

    def _inputs(self, loss: Loss, drawn: Drawn, scores: ArrayLike,
                given: Mapping[str, Any]) -> dict[str, Any]:
        """What the loss takes of what is known without being given."""
        wanted = [name for name in loss.inputs if name not in given]
        found: dict[str, Any] = {} if drawn.mask.all() else {"mask": drawn.mask}
        if "scores" in wanted:
            found["scores"] = scores
        if "lengths" in wanted:
            found["lengths"] = drawn.lengths
        if "logp" in wanted:
            needed = "logp" in loss.required or "old_logp" in given
            logp = drawn.logp_under(self.lm) if drawn.logp is None and needed else drawn.logp
            found |= {} if logp is None else {"logp": logp}
        if "ref_logp" in wanted and self.reference is not None:
            found["ref_logp"] = drawn.logp_under(self.reference)
        return found

    def _kl(self, drawn: Drawn, given: Mapping[str, Any], own: NDArray[np.bool_]) -> Metrics:
        """Mean over prompts of logp - ref_logp of their own samples."""
        if self.reference is None or not own.any():
            return {}
        logp, ref = given.get("logp", drawn.logp), given.get("ref_logp")
        logp = drawn.logp_under(self.lm) if logp is None else logp
        ref = drawn.logp_under(self.reference) if ref is None else ref
        rows = own.any(1)
        gap = np.where(own, np.subtract(logp, ref), 0.0)[rows].sum(1) / own[rows].sum(1)
        return {"kl": float(gap.mean())}

    def _accumulate(self, drawn: Drawn, weights: Floats, learned: NDArray[np.bool_]) -> Floats:
        """Add the gradient of the mean over prompts; logp [P, n] of the samples that count."""
        if not learned.any():
            return np.full(learned.shape, np.nan)
        share = [row[some] / len(weights) for row, some in zip(weights, learned, strict=True)
                 if some.any()]
        per_token = self._learner.accumulate(*drawn.pick(learned), share, drawn.temperature)
        return sums(per_token, learned, missing=np.nan)

    def _update(self, metrics: Metrics, started: float) -> Metrics:
        self._found = metrics
        lr = self.optimizer.lr_at(self.steps, self._last)
        metrics |= self._learner.step(self.optimizer, lr)
        metrics["step_seconds"] = time.perf_counter() - started
        return metrics

    @contextmanager
    def _clean(self) -> Iterator[None]:
        """Forgets the gradient of a step that is not made, or hardly was."""
        try:
            yield
        except BaseException:
            self._learner.zero()
            self.lm.weights_changed()  # Ctrl-C may come between the update and this call
            raise

    # -- many steps ----------------------------------------------------------

    def fit(self, source: Any, steps: int, *, k: tuple[int, int] | None = None,
            out: str | PathLike[str] | None = None, save_every: int = 0, keep: int = 2,
            evaluation: Callable[[LM], Metrics] | None = None, eval_every: int = 0,
            progress: bool | Callable[[Metrics], None] | None = None,
            config: str | None = None) -> list[Metrics]:
        """Train until `steps` steps are made.

        Parameters
        ----------
        source : task, name of a task, or callable
            A task: `bonaware.training.Rollouts` of it, with its defaults. A callable is given
            the trainer, makes one step of it, and returns the metrics, as `Rollouts`, `Texts`
            and `Labels` of `bonaware.training` do. What a source draws should depend on
            `trainer.steps` only; then a resumed run is the run that was not interrupted.
        steps : int
            Of the whole run, with those made before; what the learning rate falls to 0 over.
        k : two ints, optional
            The k of the loss at the first and at the last step; it goes from one to the other
            in equal ratios.
        out : path, optional
            Folder of the run: metrics.jsonl, and checkpoints step-NNNNNN, each a folder that
            `LM.load`, transformers and `resume` open. None: nothing is written.
        save_every : int
            A checkpoint after every so many steps; 0: only at the end.
        keep : int
            How many of the newest checkpoints are kept, >= 1.
        evaluation : callable, optional
            Given the model, returns figures, such as `bonaware.training.Evaluation`.
        eval_every : int
            It runs before the first step, after every so many steps and at the end; 0: never.
        progress : bool or callable, optional
            True or False shows or hides a bar that counts steps; None shows it in terminals and
            notebooks. A callable gets every record.
        config : str, optional
            What out/config.toml is to hold: the settings of the run as TOML.

        Returns
        -------
        list of dict
            The records of this call, as metrics.jsonl holds them: one per step, with "step"
            from 1, and one per evaluation, with names that begin with "eval/". After Ctrl-C:
            those so far.

        Raises
        ------
        FileExistsError
            out holds a run that this trainer was not resumed from.
        RuntimeError
            Another process trains in this folder.
        ValueError
            A number is out of its range, or the source gives fewer samples than the loss needs.

        Notes
        -----
        After Ctrl-C, and after any error, the last completed step is saved, so that a run can be
        resumed from it; an error before the first leaves no run behind.
        """
        source = _as_source(source)
        count("steps", steps)
        count("keep", keep)
        count("save_every", save_every, least=0)
        count("eval_every", eval_every, least=0)
        _check_samples(_of_run(self.loss, k), getattr(source, "width", None))
        with (
            RunFolder(out, self.steps, self._folder, keep, config) as folder,
            StepBar(self.steps, steps, progress) as bar,
        ):
            loop = Loop(self, source, steps, folder, bar, save_every, evaluation, eval_every)
            self._folder, self._last, self._k = folder.path, steps, k
            try:
                loop.run()
            except KeyboardInterrupt:
                loop.stop(self._found)
            except BaseException:
                loop.keep(self._found)
                raise
            finally:
                self._last = self._k = None
                self.complete = loop.complete
        return loop.records

    # -- files ---------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model, and what it takes to go on training it.

        Parameters
        ----------
        path : str or path
            A folder that does not exist yet, or is empty. It appears whole or not at all, and
            opens with `LM.load` and transformers; the float32 masters and the moments of AdamW
            are in one more file.

        Raises
        ------
        FileExistsError
            The folder holds files.
        OSError
            A file cannot be written.
        ValueError
            A weight is not finite any more: what was saved before is better.
        """
        about = {"steps": self.steps, "loss": repr(self.loss), "optimizer": repr(self.optimizer),
                 **self._identity()}
        with _export.new_folder(path) as folder:
            self.lm.save(folder)
            self._learner.save(folder / STATE)
            _export.write_json(folder / ABOUT, about)

    def save_adapter(self, path: str | PathLike[str]) -> None:
        """Write the low-rank adapters as a folder of PEFT; see `bonaware.lora`.

        Raises
        ------
        FileExistsError
            The folder holds files.
        ValueError
            All weights are trained: there are no adapters.
        """
        write(path, self._learner.adapter(), self.lm)

    def resume(self, path: str | PathLike[str]) -> None:
        """Go on where a trainer was saved: the next step is bit for bit what it would have been.

        Parameters
        ----------
        path : str or path
            What `save` wrote; or the folder of a run, whose newest checkpoint is taken (without
            one the run begins again) and which `fit` may then write to.

        Raises
        ------
        OSError
            There is neither.
        ValueError
            It was another model, had other adapters, or was trained against another reference;
            or the files are not those of a trainer. Nothing is changed.
        """
        path = Path(path)
        found = path if (path / ABOUT).is_file() else newest(path)
        if found is not None:
            about = read_json(found / ABOUT)
            for name, now in self._identity().items():
                if name not in about:
                    raise ValueError(f"{found / ABOUT}: must be what Trainer.save wrote, but it "
                                     f"has no {name!r}")
                if about[name] != now:
                    said = OTHERS.get(name) or (
                        f"was trained with {name} {show(about[name])}, not {show(now)}")
                    raise ValueError(f"{found} {said}: make the trainer as it was when the run "
                                     "began, then resume")
            self._learner.load(found / STATE)
        self._folder = path.resolve()

    def _identity(self) -> dict[str, Any]:
        """What must be the same in the trainer that goes on, as JSON has it."""
        lora = self.lora and asdict(self.lora) | {"targets": sorted(self.lora.targets)}
        arch = {one.name: getattr(self.lm.arch, one.name) for one in fields(self.lm.arch)}
        arch["rope_freq"] = [table.tolist() for table in self.lm.arch.rope_freq]
        reference = None if self.reference is None else self.reference.fingerprint
        return json.loads(json.dumps({**arch, "dtype": self.lm.dtype, "lora": lora,
                                      "reference": reference, "base": self._base}))


def _frozen(lm: LM) -> LM:
    """A model with the same weights, which stays as it is."""
    return LM(Copy(lm), dtype=lm.dtype, threads=lm.threads, memory=lm.memory)


def _as_source(source: Any) -> Callable[["Trainer"], Metrics]:
    from bonaware.tasks import Task
    from bonaware.training.sources import Rollouts

    if isinstance(source, str | Task):
        return Rollouts(source)
    if not callable(source):
        raise TypeError("source must be a task, its name, or a callable that makes a step of the "
                        f"trainer, got {type(source).__name__}")
    return source


# -- checks ----------------------------------------------------------------------


def _checked_loss(lm: LM, loss: Loss | None) -> Loss | None:
    if lm.labels and loss is not None:
        raise ValueError(f"{lm.name} has a score head, which learns by cross-entropy: need "
                         f"loss=None, got {loss!r}")
    if loss is not None and not isinstance(loss, Loss):
        raise TypeError("loss must be None or one of bonaware.losses, such as "
                        f"losses.get('bon')(k=16), got {loss!r}")
    return loss


def _with_kl(lm: LM, loss: Any, kl: float) -> Loss | None:
    if not kl:
        return loss
    if loss is None and not lm.labels:
        if not (kl > 0 and math.isfinite(kl)):
            raise ValueError(f"kl must be finite and >= 0, got {kl}")
        return None
    if loss is None or "kl" not in inspect.signature(type(loss)).parameters:
        raise TypeError(f"kl={kl} needs a loss with an option kl, but {loss!r} has none")
    return replace(loss, kl=kl)


def _of_run(loss: Any, k: tuple[int, int] | None) -> list[Loss]:
    """The loss at the ends of a run."""
    if k is None:
        return [] if loss is None else [loss]
    if not hasattr(loss, "k"):
        raise TypeError(f"k={k} needs a loss with an option k, but {loss!r} has none")
    if len(k) != 2:
        raise ValueError(f"k must be two ints, at the first and the last step, got {k}")
    return [replace(loss, k=one) for one in k]


def _check_samples(losses: Sequence[Loss], width: int | None) -> None:
    """Refuse a source of too few samples of every prompt, where it says how many it gives."""
    for loss in losses:
        if width is not None and loss.needed > width:
            raise ValueError(f"{loss!r} needs at least {loss.needed} samples of every prompt, but "
                             f"there are {width}")


def _check_labels(labels: Sequence[Floats], counts: Sequence[int]) -> None:
    if [row.shape for row in labels] != [(count,) for count in counts]:
        raise ValueError(f"labels must have one number per completion, {list(counts)} for these "
                         f"prompts, got the shapes {[row.shape for row in labels]}")
    if not sum(counts):
        raise ValueError("need at least one completion, got none")
    for p, row in enumerate(labels):
        if not (outside := ~((row >= 0) & (row <= 1))).any():
            continue
        raise ValueError(f"labels must be in [0, 1], but {place(outside)} of prompt {p} is "
                         f"{row[outside][0]}")


# -- arithmetic ------------------------------------------------------------------


def annealed(start: int, end: int, step: int, steps: int) -> int:
    """k of step 0 <= step < steps, from start to end in equal ratios.

    Examples
    --------
    >>> [annealed(1, 16, step, 5) for step in range(5)]
    [1, 2, 4, 8, 16]
    """
    return round(start * (end / start) ** (step / max(steps - 1, 1)))


def auroc(scores: ArrayLike, right: ArrayLike) -> float | None:
    """Chance that a right sample scores above a wrong one, ties as half.

    Parameters
    ----------
    scores : float, shape [N]
    right : bool, or float in [0, 1], shape [N]
        Where it is a probability, samples are right or wrong independently of one another.

    Returns
    -------
    float in [0, 1], or None where no two samples can be right and wrong

    Notes
    -----
    The weighted share of ordered pairs (i, j), i ≠ j, with weights ``right[i] * (1 - right[j])``.
    O(N log N). **Source:** Mann and Whitney 1947, Ann. Math. Stat. 18:50, the U statistic.

    Examples
    --------
    >>> auroc([0.1, 0.4, 0.4, 0.8], [False, False, True, True])
    0.875
    >>> auroc([0.1, 0.8], [0.5, 1.0])
    1.0
    """
    right = np.asarray(right, np.float64)
    _, group = np.unique(np.asarray(scores), return_inverse=True)
    ones, zeros = np.bincount(group, right), np.bincount(group, 1 - right)
    itself = float((right * (1 - right)).sum())  # a sample is no pair with itself
    pairs = float(ones.sum() * zeros.sum()) - itself
    if pairs <= 0:
        return None
    below = np.cumsum(zeros) - zeros / 2
    return (float((ones * below).sum()) - itself / 2) / pairs


def _entropy(probabilities: Floats) -> float:
    """Mean over rows of the entropy of rows that add up to 1, nats."""
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    return float(-(probabilities * logs).sum(1).mean())


def _unpadded(lm: LM, completion: Any) -> Ids:
    """Ids without padding at their end, as `LM.scores` reads them."""
    ids = lm._completion(completion)
    return ids[: 1 + np.flatnonzero(ids != pad_token_id(lm.config)).max(initial=-1)]
