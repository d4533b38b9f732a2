"""verl: an advantage estimator from any loss of `bonaware.losses`.

verl gives every token of a sample its advantage; that of a sample is its weight times a constant,
so that verl's policy loss has the loss's gradient. Written for verl 0.9; it is imported only
where an estimator is registered.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bonaware.integrations import torch as bridge
from bonaware.losses import Loss

__all__ = ["estimator", "register"]

#: Inputs of losses that verl gives to an estimator.
KNOWN = ("scores", "lengths")


def estimator(loss: Loss) -> Callable[..., tuple[Tensor, Tensor]]:
    """What verl calls to make advantages of rewards.

    Parameters
    ----------
    loss : Loss
        One of `bonaware.losses` that reads rewards (they are the scores too) and lengths alone.

    Returns
    -------
    callable
        ``(token_level_rewards, response_mask, index, ...) -> advantages, returns``, both float
        ``[samples, tokens]`` and equal: ``-weight * samples / prompts`` on the tokens of a sample,
        0 elsewhere.

    Raises
    ------
    TypeError
        The loss needs what verl does not give, or has a KL term.

    Notes
    -----
    Averaged over the samples of a batch with ``loss_agg_mode="seq-mean-token-sum"``, the policy
    loss then has the gradient ``mean over prompts of sum_i weight_i * d logp_i``, while its ratio
    is 1: one update per batch, by the weights that drew it. A sample whose tokens are all masked
    counts as not drawn; a prompt with fewer samples than the loss needs moves nothing.

    Examples
    --------
    >>> import bonaware as bon
    >>> estimate = estimator(bon.losses.get("bon")(k=2))
    >>> rewards = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    >>> advantages, _ = estimate(rewards, torch.ones(4, 1), np.array(["a", "a", "a", "a"]))
    >>> advantages[2:, 0]
    tensor([1.3333, 1.3333])
    """
    if missing := sorted(set(loss.required).difference(KNOWN)):
        raise TypeError(f"{loss} needs {missing[0]}, which verl does not give to an advantage "
                        "estimator")

    def estimate(token_level_rewards: Tensor, response_mask: Tensor, index: Any,
                 config: Any = None, **_: Any) -> tuple[Tensor, Tensor]:
        own = response_mask.bool()
        groups, prompt = np.unique(np.asarray(index), return_inverse=True)
        place = (torch.from_numpy(prompt), torch.from_numpy(_order_within(prompt)))
        shape = (len(groups), int(place[1].max()) + 1)
        if shape[1] < loss.needed:
            raise ValueError(f"{loss} needs at least {loss.needed} samples of every prompt, but "
                             f"the largest group has {shape[1]}")

        def table(x: Tensor) -> Tensor:
            """What each sample has, in its place of [P, n]."""
            return torch.zeros(shape, dtype=x.dtype).index_put(place, x.cpu())

        lengths, rewards = table(own.sum(1)), table(token_level_rewards.sum(1))
        given = {"rewards": rewards, "scores": rewards, "lengths": lengths}
        _, weights = bridge.weights_of_enough(
            loss, lengths > 0, **{name: x for name, x in given.items() if name in loss.inputs})
        drawn_per_prompt = (lengths > 0).sum() / len(groups)
        each = (-weights * drawn_per_prompt)[place].to(token_level_rewards)
        advantages = each[:, None] * own
        return advantages, advantages

    return estimate


def register(name: str, loss: Loss) -> None:
    """Make `estimator(loss)` known to verl, for ``algorithm.adv_estimator=name``.

    Parameters
    ----------
    name : str
    loss : Loss

    Raises
    ------
    ImportError
        verl is not installed.
    TypeError, ValueError
        As `estimator`; or verl knows another estimator of that name.
    """
    from verl.trainer.ppo.core_algos import register_adv_est

    register_adv_est(name)(estimator(loss))


def _order_within(group: np.ndarray) -> np.ndarray:
    """How many of the same group stand before each.

    >>> _order_within(np.array([0, 1, 0, 0, 1])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(group, kind="stable")
    ranked = group[order]
    first = np.searchsorted(ranked, ranked)
    within = np.empty(len(group), np.int64)
    within[order] = np.arange(len(group)) - first
    return within
