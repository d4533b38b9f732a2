"""bon_rl_v: REINFORCE on best-of-k as a verifier selects it."""

from dataclasses import dataclass

from bonaware._arguments import Floats
from bonaware.losses._base import Batch
from bonaware.losses._bon_law import BonRl

__all__ = ["LOSS", "BonRlV"]


@dataclass(frozen=True)
class BonRlV(BonRl):
    """Raises the expected reward of the sample that a verifier picks of k (BoN-RL-V).

    Parameters
    ----------
    k : int
        Samples that the selector will see, >= 1.
    variational : bool
        True: the law of best-of-k is ``pi(y) exp(lam Q(y))``, normalised, with ``lam`` from
        `bonaware.estimators.bon_lambda` and Q the probability to win against or tie with a
        fresh sample. With ties a constant lam is an approximation. False: the exact law,
        ``pi(y) (F**k - G**k) / (F - G)`` with F = Q and G the probability to win only.
    draws : "policy" or "bon"
        "policy": each of the n samples stands for the law with its share of the law's
        probability. "bon": the samples are cut into groups of k neighbours, and the winner
        of each group is one draw of the exact law; ties share; samples left over serve
        the estimates of Q. Takes ``n >= 2 k``.
    enumerated : bool
        True: the samples of a prompt are all its outcomes, once each, and ``exp(logp)`` their
        probabilities. Then nothing is estimated: the weights give the exact gradient.
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-E[R]`` over the law of best-of-k. Its gradient is that of ``-E[(R - b)
    (log pi(y) + lam Q(y))]`` with ``b = E[R]``; grad Q(y) is the expectation over fresh y' of
    ``(1{r(y) >= r(y')} - Q(y)) grad log pi(y')`` and falls on the other samples. With shares
    ``v_i`` of the law that add up to 1 and ``c_i = v_i (R_i - b) / (1 - sum v**2)``,

    ``weight_j = -c_j - lam / (n - 2) * sum over i != j of c_i (1{r_i >= r_j} - Q_i)``

    (n - 1 in place of n - 2 for a given ``win_rate``), and likewise with the derivatives of
    the exact law's tilt by F and by G. The value is -b.

    Consistent; biased for finite n, because the shares are normalised by the samples
    themselves: docs/design/losses.md tabulates by how much. `bon` has no such bias. ``k =
    1`` is unbiased REINFORCE. A prompt whose rewards are all equal has weights 0.

    ``win_rate`` [P, n] gives Q where it is known, and with it ``log_normaliser`` [P] the
    logarithm of ``Z = E[exp(lam Q)]`` (variational law, draws of the policy). With both, all
    is unbiased: with ``t_i = exp(lam Q_i) / Z``,

    ``c_i = mean over l != i of t_i t_l (R_i - R_l) / n``

    ``weight_j = -c_j - lam / (n - 2) * sum over i != j of (1{r_i >= r_j} - Q_i) * (c_i
    without its term l = j)``

    and the value is minus the mean of ``t_i R_i + (1 - t_i) * mean of the other R``. Without
    ties Z is ``(exp(lam) - 1) / lam``; with ties it depends on how large the levels are, and
    no estimate from Q alone is unbiased.

    O(n log n) per prompt, without the GIL.
    Source: Chow et al. 2024, arXiv:2412.15287, BoN-RL-V and the variational form of BoN;
    the divisor of c is that of an unbiased weighted covariance.

    Examples
    --------
    >>> loss = BonRlV(k=4)
    >>> value, weights = loss([[0.0, 1.0, 0.0, 1.0]], scores=[[0.1, 0.9, 0.2, 0.3]])
    >>> value.round(3), weights.round(3)
    (array([-0.964]), array([[ 0.152, -0.136,  0.076, -0.092]]))
    """

    ranks_by = ("scores",)

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        return self.weigh(batch, batch.scores)


LOSS = BonRlV
