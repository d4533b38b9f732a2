"""Rotary embedding: the frequencies of a configuration, as transformers computes them.

Frequency i of head_dim/2 is theta^(-2i/head_dim) radians per token, in float32. Scaling types
change it: `linear` divides all by a factor; `llama3` divides the slow ones, keeps the fast ones
and blends between.

Source: Su et al., RoFormer, arXiv 2104.09864, section 3.2.2; Llama 3.1's scaling after
transformers 5.23 `modeling_rope_utils.py`.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ._fields import Fields, show

__all__ = ["MAX_POSITIONS", "Table", "parameters", "table", "with_theta"]

Table = tuple[NDArray[np.float32], float]

MAX_POSITIONS = 2**31 - 1  # positions are int32


def parameters(fields: Fields, theta: float = 10000.0) -> Fields:
    """The rope fields of a config in either spelling, as one dict with `rope_theta`.

    transformers 4: `rope_theta` beside `rope_scaling` (null or a dict); 5: all in
    `rope_parameters`.
    """
    old, new = fields.part("rope_scaling"), fields.part("rope_parameters")
    if old is not None and new is not None:
        raise fields.refuse("rope_scaling", "absent where there are rope_parameters")
    part = old or new or Fields({}, fields.where)
    outside = fields.number("rope_theta", theta)
    inside = part.values.get("rope_theta", outside)
    if "rope_theta" in fields.values and inside != outside:
        raise fields.refuse("rope_theta", f"the same as in {part.where} ({show(inside)})")
    return with_theta(part, outside)


def with_theta(part: Fields, theta: float) -> Fields:
    """The part, with theta where it has none. Inside it no unknown name is harmless."""
    return Fields({"rope_theta": theta, **part.values}, part.where, harmless=frozenset())


def table(fields: Fields, head_dim: int, max_positions: int) -> Table:
    """Frequencies float32 [head_dim/2] and the factor of cos and sin, for one dict of fields."""
    old = fields.word("type", "default", list(_KINDS))
    kind = fields.word("rope_type", old, list(_KINDS))
    if "type" in fields.values and kind != old:
        raise fields.refuse("type", f"the same as rope_type ({kind})")
    theta = fields.number("rope_theta")
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with np.errstate(all="ignore"):
        # The power is rounded once, from float64; torch's may be off by its last place.
        power = (np.float64(np.float32(theta)) ** exponent.astype(np.float64)).astype(np.float32)
        freq = _KINDS[kind](fields, np.float32(1) / power, max_positions)
    fields.finish()
    if not np.isfinite(freq).all():
        raise ValueError(f"{fields.where}: rope_theta and the factors must give finite frequencies")
    freq.flags.writeable = False
    return freq, 1.0


def _default(fields: Fields, freq: NDArray[np.float32], _: int) -> NDArray[np.float32]:
    return freq


def _linear(fields: Fields, freq: NDArray[np.float32], _: int) -> NDArray[np.float32]:
    return freq / np.float32(fields.number("factor"))


def _llama3(fields: Fields, freq: NDArray[np.float32], max_positions: int) -> NDArray[np.float32]:
    factor = fields.number("factor")
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    context = fields.size("original_max_position_embeddings", max_positions, limit=MAX_POSITIONS)
    if low >= high:
        raise fields.refuse("high_freq_factor", f"above low_freq_factor ({low})")
    # torch divides a number by an array as reciprocal times number, and blending cancels digits.
    wavelength = np.float32(2 * math.pi) * (1 / freq)
    blend = (np.float32(context) * (1 / wavelength) - np.float32(low)) / np.float32(high - low)
    slow = freq / np.float32(factor)
    blended = (1 - blend) * freq / np.float32(factor) + blend * freq
    result = np.where(wavelength > np.float32(context / low), slow, blended)
    return np.where(wavelength < np.float32(context / high), freq, result)


_KINDS: dict[str, Callable[[Fields, NDArray[np.float32], int], NDArray[np.float32]]] = {
    "default": _default, "linear": _linear, "llama3": _llama3,
}
