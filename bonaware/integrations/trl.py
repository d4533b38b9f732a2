"""trl: a GRPOTrainer that learns by any loss of `bonaware.losses`, and rollouts by the engine.

TRL samples, scores and steps. From the rewards a loss makes one weight per sample, and the
gradient is the mean over prompts of ``sum_i weights[p, i] * d logp[p, i]``, with logp summed over
the sample's tokens at the training temperature: no clip, no division by lengths or spreads.
Written for TRL 1.16.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from bonaware.diagnostics import diagnose
from bonaware.integrations import torch as bridge
from bonaware.losses import Loss
from bonaware.models import family_of
from bonaware.samples import Request

if TYPE_CHECKING:
    from bonaware.lm import LM

__all__ = ["BoNGRPOTrainer", "EngineRollout", "set_weights"]

#: Inputs of losses that a rollout has.
KNOWN = ("scores", "logp", "ref_logp", "lengths")
#: Options of GRPOConfig that shape the loss of GRPO.
OF_GRPO = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level",
    "multi_objective_aggregation", "top_entropy_quantile", "entropy_coef", "entropy_coef_min",
    "entropy_coef_max", "entropy_coef_delta", "entropy_target", "use_adaptive_entropy",
    "off_policy_mask_threshold", "use_bias_correction_kl", "sapo_temperature_neg",
    "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg",
)  # fmt: skip
#: Options that make the samples those of another policy than the one that is trained.
OF_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs")


class BoNGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with the gradient of a loss of bonaware.

    Parameters
    ----------
    model, reward_funcs, args, **options
        As for GRPOTrainer. The reward of a sample is TRL's: the sum of the reward functions'
        numbers, by `reward_weights`.
    loss : Loss
        One of `bonaware.losses`, such as ``losses.get("bon")(k=4)``. With `beta` > 0 in args,
        `beta` becomes its `kl`.
    selector : str, optional
        Name of the reward function whose numbers are the scores that the loss ranks by (a
        verifier or a reward model); it is no part of the reward unless `reward_weights` says so.
        Default: the rewards are the scores.

    Raises
    ------
    TypeError
        The loss needs what a rollout does not have, or does not take scores or `kl`.
    ValueError
        An option of args would be without effect, or would make the samples those of another
        policy than the one that is trained; or the loss needs more samples of every prompt.

    Notes
    -----
    Samples are used once, by the weights that drew them: the weight of a sample depends on all
    samples of its prompt, so no ratio of its own makes older samples exact. Groups that are spread
    over processes are gathered.

    A sample whose reward or score is None, and with `mask_truncated_completions` one that was cut,
    counts as not drawn. A prompt with fewer samples left than the loss needs moves nothing;
    "bon/left_out" is their share. The logged loss is the loss's value, the logged advantage of a
    sample is ``-n`` times its weight, and the diagnostics of `bonaware.diagnostics` stand under
    "bon/".
    """

    def __init__(self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, *,
                 loss: Loss, selector: str | None = None, **options: Any) -> None:
        args = GRPOConfig() if args is None else copy.copy(args)
        _check_args(args)
        self.bon_loss = _with_kl(loss, args.beta)
        if self.bon_loss.needed > args.num_generations:
            raise ValueError(f"{self.bon_loss} needs at least {self.bon_loss.needed} samples of "
                             f"every prompt, but num_generations={args.num_generations}")
        if "ref_logp" in self.bon_loss.inputs:
            args.beta = args.beta or 1.0  # TRL then makes the reference model; we alone read beta
        super().__init__(model, reward_funcs, args, **options)
        if self.aux_loss_enabled:
            raise ValueError("the loss of the router would be left out: set router_aux_loss_coef=0")
        self._selector = self._column(selector)

    def _column(self, selector: str | None) -> int | None:
        """Number of the reward function that gives the scores."""
        if selector is None:
            return None
        if "scores" not in self.bon_loss.inputs:
            raise TypeError(f"{self.bon_loss} takes no scores, so selector={selector!r} would be "
                            "without effect")
        if selector not in self.reward_func_names:
            raise ValueError("selector must be the name of a reward function, one of "
                             f"{', '.join(self.reward_func_names)}, got {selector!r}")
        column = self.reward_func_names.index(selector)
        if self.args.reward_weights is None:
            self.reward_weights[column] = 0.0
        return column

    # -- weights -------------------------------------------------------------

    def _calculate_rewards(self, *args: Any) -> Tensor:
        """As TRL does, of all processes; kept for the weights."""
        self._scored = super()._calculate_rewards(*args)
        return self._scored

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL does; with advantages from the loss's weights, and its value, per sample."""
        output = super()._generate_and_score_completions(inputs)
        n = self.num_generations if self.model.training else self.num_generations_eval
        value, weights = self._weigh(output, n)
        advantages = -n * weights.flatten()
        logged = self._logs["advantages"]
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages.tolist())
        first = self.accelerator.process_index * len(inputs)
        mine = slice(first, first + len(inputs))
        return output | {"advantages": advantages[mine],
                         "values": value.repeat_interleave(n)[mine]}

    def _weigh(self, output: Mapping[str, Any], n: int) -> tuple[Tensor, Tensor]:
        """Value [P] and weights [P, n] of the samples of all processes."""
        given = {name: x.view(-1, n) for name, x in self._inputs(output).items()}
        value, weights = bridge.weights_of_enough(self.bon_loss, **given)
        mask = given["mask"]
        few = mask.sum(1) < self.bon_loss.needed
        mode = self._metrics["train" if self.model.training else "eval"]
        mode["bon/left_out"].append(few.double().mean().item())
        if mask.any():
            rewards = given["rewards"].nan_to_num(0.0)
            for name, number in diagnose(weights, rewards, mask).items():
                mode[f"bon/{name}"].append(number)
        device = self.accelerator.device
        return value.to(device), weights.to(device)

    def _inputs(self, output: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the loss gets of every sample of all processes, on the CPU; each [P * n]."""
        loss, scored = self.bon_loss, self._scored
        rewards = (scored * self.reward_weights.to(scored.device)).nansum(1)
        rewards[scored.isnan().all(1)] = torch.nan
        scores = rewards if self._selector is None else scored[:, self._selector]
        tokens = _own_tokens(output)
        there = self.accelerator.gather(tokens.any(1)) & ~rewards.isnan() & ~scores.isnan()
        found = {"rewards": rewards, "mask": there}
        wanted = loss.required
        if "scores" in loss.inputs:
            found["scores"] = scores
        if "lengths" in wanted:
            found["lengths"] = self.accelerator.gather(tokens.sum(1))
        if "logp" in wanted:
            with torch.no_grad():
                logp, _ = self._read(self.model, output, self.args.per_device_train_batch_size)
            found["logp"] = self.accelerator.gather(logp)
        if "ref_logp" in wanted:
            ref_logp = (output["ref_per_token_logps"] * tokens).sum(1)
            found["ref_logp"] = self.accelerator.gather(ref_logp)
        return {name: x.cpu() for name, x in found.items()}

    # -- gradient ------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The mean of the values of some samples, with the gradient of their weights."""
        logp, entropy = self._read(model, inputs)
        training = self.model.training
        self._metrics["train" if training else "eval"]["entropy"].append(
            self.accelerator.gather(entropy).nanmean().item())
        loss = bridge.weighted(logp, inputs["values"], -inputs["advantages"])
        return loss / (self.current_gradient_accumulation_steps if training else 1)

    def _read(self, model: Any, inputs: Mapping[str, Any],
              batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Log-probability of each sample [B] at the training temperature; entropy per token."""
        known = inspect.signature(self._get_per_token_logps_and_entropies).parameters
        images = {name: x for name, x in inputs.items() if name in known}
        per_token, entropies, _ = self._get_per_token_logps_and_entropies(
            model, torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            inputs["completion_ids"].size(1), batch_size, compute_entropy=True, **images)
        tokens = _own_tokens(inputs)
        logp = torch.where(tokens, per_token, 0.0).sum(1)
        return logp, (entropies.detach() * tokens).sum() / tokens.sum()


def _own_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Which tokens of the completions [B, T] the policy chose; none of a sample that is masked."""
    tokens = inputs["completion_mask"].bool()
    return tokens & inputs["tool_mask"].bool() if "tool_mask" in inputs else tokens


def _with_kl(loss: Loss, beta: float) -> Loss:
    """The loss with beta as the strength of its KL term."""
    if not isinstance(loss, Loss):
        raise TypeError("loss must be one of bonaware.losses, such as losses.get('bon')(k=4), got "
                        f"{loss!r}")
    if missing := sorted(set(loss.required).difference(KNOWN)):
        raise TypeError(f"{loss} needs {missing[0]}, which a rollout does not have")
    if not beta:
        return loss
    if "kl" not in inspect.signature(type(loss)).parameters:
        raise TypeError(f"beta={beta} needs a loss with an option kl, but {loss} has none")
    return replace(loss, kl=beta)  # type: ignore[type-var]


def _check_args(args: GRPOConfig) -> None:
    """Refuse what would be ignored, and what would make the gradient another one."""
    default = {field.name: field.default for field in fields(GRPOConfig)}
    for name in (*OF_GRPO, *OF_SAMPLING):
        if (found := getattr(args, name)) != default[name]:
            why = ("belongs to the loss of GRPO and would be without effect" if name in OF_GRPO
                   else "makes the samples those of another policy than the one that is trained")
            raise ValueError(f"{name}={found!r} {why}: leave it at {default[name]!r}")
    if args.scale_rewards == "batch":
        raise ValueError("scale_rewards='batch' would be without effect: the loss says how rewards "
                         "are scaled")
    if args.use_vllm and args.vllm_importance_sampling_correction:
        raise ValueError("vllm_importance_sampling_correction would be without effect: set it to "
                         "False; samples of vLLM then count as samples of the policy")
    steps = args.steps_per_generation * args.num_iterations
    if args.num_iterations > 1 or args.gradient_accumulation_steps % steps:
        raise ValueError(
            "samples must be used once, by the weights that drew them: need num_iterations=1 and "
            "steps_per_generation that divides gradient_accumulation_steps, got "
            f"{args.num_iterations}, {args.steps_per_generation} and "
            f"{args.gradient_accumulation_steps}")


# -- rollouts --------------------------------------------------------------------


class EngineRollout:
    """A `rollout_func` that draws on CPUs with bonaware's engine, a prompt once for its samples.

    Parameters
    ----------
    lm : LM
        The same model as the trainer's, such as ``LM.load`` of its folder; it gets the trainer's
        weights before every rollout.
    rng : int
        Seed of the samples.

    Notes
    -----
    For any GRPOTrainer. Temperature, truncation and lengths are the trainer's, a prompt's tokens
    are those that TRL makes of it.
    """

    def __init__(self, lm: LM, rng: int = 0) -> None:
        if lm.dtype == "int8":
            raise ValueError(f"{lm.name} is held in int8, which rounds the policy that is trained: "
                             "load it in float32 or bfloat16")
        self.lm, self.rng = lm, rng
        self._calls = 0

    def __call__(self, prompts: Sequence[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """Tokens and log-probabilities of one sample for every prompt, in their order."""
        if sorted(trainer.eos_token_ids) != sorted(self.lm.eos_token_ids):
            raise ValueError("model and engine must end samples with the same tokens, found "
                             f"{trainer.eos_token_ids} and {list(self.lm.eos_token_ids)}")
        if trainer.repetition_penalty != 1:
            raise ValueError("the engine has no repetition_penalty: need 1.0, got "
                             f"{trainer.repetition_penalty}")
        model = trainer.accelerator.unwrap_model(trainer.model)
        set_weights(self.lm, model.named_parameters())
        prompt_ids, images, _ = trainer._tokenize_prompts(prompts)
        if images is not None:
            raise ValueError("the engine reads text only, but the prompts have images")
        seed = (self.rng, trainer.accelerator.process_index, trainer.state.global_step, self._calls)
        self._calls += 1
        drawn = self.lm.stream(
            _requests(prompt_ids), temperature=trainer.temperature, top_k=trainer.top_k or None,
            top_p=trainer.top_p, min_p=trainer.min_p,
            max_new_tokens=trainer.max_completion_length, rng=np.random.SeedSequence(seed))
        samples = sorted(drawn, key=lambda sample: (sample.prompt, sample.index))
        return {"prompt_ids": prompt_ids,
                "completion_ids": [sample.tokens.tolist() for sample in samples],
                "logprobs": [sample.sampled_logp.tolist() for sample in samples]}


def _requests(prompt_ids: Iterable[Sequence[int]]) -> list[Request]:
    """One for each run of equal prompts: TRL repeats a prompt for every sample of it."""
    requests: list[Request] = []
    before: Counter[tuple[int, ...]] = Counter()
    for tokens, run in itertools.groupby(map(tuple, prompt_ids)):
        ids = np.array(tokens, np.int32)
        requests.append(Request(len(requests), ids, range(len(list(run))), before[tokens]))
        before[tokens] += 1
    return requests


def set_weights(lm: LM, named: Iterable[tuple[str, Tensor]]) -> None:
    """Give the engine the weights of a transformers model.

    Parameters
    ----------
    lm : LM
        A model of the same configuration.
    named : (name, tensor) pairs
        As `named_parameters()` gives them: of any dtype, on any device.

    Raises
    ------
    ValueError
        A weight is missing (such as where adapters wrap the model), or has another shape.
    """
    tensors, names = dict(named), family_of(lm.config).NAMES
    for slot, layer, words in lm.arch.slots():
        name, shape = names[slot].format(i=layer), lm.arch.shape(words)
        if name not in tensors or tuple(tensors[name].shape) != tuple(shape):
            found = list(tensors[name].shape) if name in tensors else "no such weight"
            raise ValueError(f"need {name} of shape {list(shape)}, as the engine's model has it, "
                             f"found {found}")
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        lm._model.set(slot, layer or 0, values)
    lm.weights_changed()
