"""torch: every loss of `bonaware.losses` as a scalar that torch differentiates.

A loss gives one weight per sample on the gradient of its log-probability. Its arrays are read
from tensors on any device and of any dtype, value and weights are computed in float64 as
everywhere, and torch only multiplies: it never sees a loss's formula.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bonaware.losses import Loss

__all__ = ["objective", "weighted", "weights", "weights_of_enough"]


def weights(loss: Loss, rewards: Any, scores: Any = None, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Value and weights of a loss, as tensors.

    Parameters
    ----------
    loss : Loss
        One of `bonaware.losses`.
    rewards : tensor or array, shape [P, n]
    scores : tensor or array, shape [P, n], optional
    **inputs
        More that the loss takes, see `Loss.__call__`: tensors or arrays. Nothing is
        differentiated through them.

    Returns
    -------
    value : float64 tensor, shape [P]
    weights : float64 tensor, shape [P, n]
        Both on the device of rewards; on the CPU where that is no tensor.

    Raises
    ------
    TypeError, ValueError
        As the loss raises them.

    Notes
    -----
    The numbers are those of ``loss(...)`` on NumPy arrays, bit for bit.

    Examples
    --------
    >>> import bonaware as bon
    >>> value, weights_ = weights(bon.losses.get("bon")(k=2), torch.tensor([[0, 0, 1, 1]]))
    >>> weights_
    tensor([[ 0.0000,  0.0000, -0.3333, -0.3333]], dtype=torch.float64)
    """
    device = rewards.device if isinstance(rewards, Tensor) else torch.device("cpu")
    given = {name: _array(x) for name, x in {"scores": scores, **inputs}.items()}
    value, found = loss(_array(rewards), **given)
    return torch.from_numpy(value).to(device), torch.from_numpy(found).to(device)


def objective(loss: Loss, logp: Tensor, rewards: Any, scores: Any = None,
              **inputs: Any) -> Tensor:
    """The mean of a loss over prompts, with its gradient by logp.

    Parameters
    ----------
    loss : Loss
        One of `bonaware.losses`.
    logp : tensor, shape [P, n]
        Log-probability of each sample in nats, summed over its tokens, at the temperature it
        was drawn at. The loss gets it too, where it takes logp.
    rewards, scores, **inputs
        As for `weights`.

    Returns
    -------
    tensor, scalar
        float64, the mean of the loss's value. Its gradient by ``logp[p, i]`` is
        ``weights[p, i] / P``.

    Raises
    ------
    TypeError, ValueError
        As the loss raises them; or rewards have another shape than logp.

    Notes
    -----
    Not the derivative of the value: most losses of reinforcement learning have a value that
    does not depend on logp. What stands at masked places is not looked at.

    Examples
    --------
    >>> import bonaware as bon
    >>> logp = torch.tensor([[-1.0, -2.0, -3.0, -4.0]], requires_grad=True)
    >>> loss = objective(bon.losses.get("bon")(k=2), logp, rewards=[[0, 0, 1, 1]])
    >>> loss.backward()
    >>> round(loss.item(), 4), logp.grad
    (-0.8333, tensor([[ 0.0000,  0.0000, -0.3333, -0.3333]]))
    """
    if "logp" in loss.inputs:
        inputs["logp"] = logp
    value, found = weights(loss, rewards, scores, **inputs)
    if found.shape != logp.shape:
        raise ValueError(f"rewards must have the shape of logp, {list(logp.shape)}, got "
                         f"{list(found.shape)}")
    return weighted(logp, value, found)


def weighted(logp: Tensor, value: Tensor, weights: Tensor) -> Tensor:
    """The mean of value, whose gradient by logp is `weights` over the number of values.

    Parameters
    ----------
    logp : tensor, any shape
    value : tensor, shape [rows]
    weights : tensor, shape of logp

    Returns
    -------
    tensor, scalar
        Of the dtype of value, on the device of logp. It can be differentiated once.

    Examples
    --------
    >>> logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    >>> weighted(logp, torch.tensor([3.0, 5.0]), torch.tensor([0.5, -0.5])).backward()
    >>> logp.grad
    tensor([ 0.2500, -0.2500])
    """
    return _Weighted.apply(logp, value.to(logp.device), weights.to(logp.device))


class _Weighted(torch.autograd.Function):
    """A number that is given, and a gradient that is given."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, value: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights / len(value))
        return value.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (share,) = ctx.saved_tensors
        return upstream * share, None, None


# -- what the trainers share -----------------------------------------------------


def weights_of_enough(loss: Loss, mask: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Value and weights, 0 for prompts with fewer samples than the loss needs.

    Parameters
    ----------
    loss : Loss
    mask : bool tensor, shape [P, n]
        False where no sample is.
    **inputs
        Tensors of shape [P, n], rewards among them, as for `weights`.

    Examples
    --------
    >>> import bonaware as bon
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> weights_of_enough(bon.losses.get("reinforce")(), mask, rewards=torch.eye(2))[1]
    tensor([[-0.5000,  0.5000],
            [ 0.0000,  0.0000]], dtype=torch.float64)
    """
    enough = mask.sum(1) >= loss.needed
    value, found = mask.new_zeros(len(mask), dtype=torch.float64), torch.zeros_like(mask).double()
    if enough.any():
        value[enough], found[enough] = weights(
            loss, mask=mask[enough], **{name: x[enough] for name, x in inputs.items()})
    return value, found


def _array(x: Any) -> Any:
    """A tensor as NumPy has it: bools stay bools, all other numbers become float64."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach()
    return x.cpu().numpy() if x.dtype == torch.bool else x.to("cpu", torch.float64).numpy()
