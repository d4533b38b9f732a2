"""What the adapters of evaluation harnesses share: their words for sampling, their way with text.

The aliases of the harnesses are accepted here only; the rest of bonaware has one word per idea.
It knows no harness and imports none.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import Sample, Samples
from bonaware.tokenizer import Tokenizer

__all__ = ["finished", "runs", "sampling", "text_of"]

Item = TypeVar("Item")

# Of several names for one setting the first that is given counts, as in lm-eval.
NAMES = {
    "max_new_tokens": ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"),
    "stop_strings": ("until", "stop_strings", "stop", "stop_sequences", "stop_seqs"),
    "temperature": ("temperature",),
    "do_sample": ("do_sample",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "seed": ("seed",),
}
# Accepted where they ask for what is done anyway; no setting is ignored in silence.
FIXED = {"num_return_sequences": 1, "n": 1, "num_beams": 1, "repetition_penalty": 1,
         "use_cache": True}
NO_TOP_K = (0, -1)  # how other libraries write: of the whole vocabulary


def sampling(given: Mapping[str, Any], *, temperature: float,
             max_new_tokens: int) -> dict[str, Any]:
    """A harness's generation settings as arguments of `LM.generate`.

    Parameters
    ----------
    given : mapping
        Under any of their names; one that is None is as if it were not given.
    temperature : float
        Where none is given and `do_sample` does not say that there is one.
    max_new_tokens : int
        Where none is given.

    Returns
    -------
    dict
        temperature, max_new_tokens, stop_strings (a tuple); top_k, top_p, min_p and rng where
        they are given. Values are hashable.

    Raises
    ------
    ValueError
        A setting is unknown, or asks for what bonaware does not do.

    Examples
    --------
    >>> sampling({"until": ["Q:"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.7},
    ...          temperature=0.0, max_new_tokens=256)
    {'temperature': 0.0, 'max_new_tokens': 9, 'stop_strings': ('Q:',)}
    """
    given = {name: value for name, value in given.items() if value is not None}
    _check_names(given)
    found = {ours: next(given[name] for name in names if name in given)
             for ours, names in NAMES.items() if not given.keys().isdisjoint(names)}
    settings = {
        "temperature": _temperature(found, temperature),
        "max_new_tokens": int(found.get("max_new_tokens", max_new_tokens)),
        "stop_strings": _strings(found.get("stop_strings", ())),
    }
    if found.get("top_k", 0) not in NO_TOP_K:
        settings["top_k"] = int(found["top_k"])
    settings |= {name: float(found[name]) for name in ("top_p", "min_p") if name in found}
    if "seed" in found:
        settings["rng"] = int(found["seed"])
    return settings


def _check_names(given: Mapping[str, Any]) -> None:
    known = {*itertools.chain.from_iterable(NAMES.values()), *FIXED}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"there is no generation setting {name!r} in bonaware; there are: "
                             f"{', '.join(sorted(known))}")
        if name in FIXED and value != FIXED[name]:
            raise ValueError(f"need {name}={FIXED[name]}, which is what bonaware does here, got "
                             f"{value!r}: several samples of a prompt are repeats, epochs or "
                             "choices of the harness")


def _temperature(found: Mapping[str, Any], default: float) -> float:
    """do_sample says whether; where it says nothing, the temperature does."""
    do_sample = found.get("do_sample")
    if do_sample is False:
        return 0.0
    temperature = float(found.get("temperature", 1.0 if do_sample else default))
    if do_sample and temperature == 0:
        raise ValueError("do_sample=True needs a temperature above 0, got 0")
    return temperature


def _strings(value: Any) -> tuple[str, ...]:
    """Stop strings; the empty one means none."""
    return tuple(filter(None, [value] if isinstance(value, str) else value))


def runs(items: Iterable[Item]) -> list[tuple[Item, list[int]]]:
    """Repeats of one object in a row, as (object, positions).

    Harnesses repeat the object; objects that are merely equal are different requests.

    Examples
    --------
    >>> one, other = ["a"], ["a"]
    >>> runs([one, one, other])
    [(['a'], [0, 1]), (['a'], [2])]
    """
    grouped = itertools.groupby(enumerate(items), key=lambda pair: id(pair[1]))
    pairs = [list(group) for _, group in grouped]
    return [(group[0][1], [at for at, _ in group]) for group in pairs]


def text_of(sample: Sample, tokenizer: Tokenizer) -> str:
    """Text of a sample as the harnesses' own models give it.

    They decode a completion without its prompt, and decoders of the SentencePiece kind then drop
    the blank at its start. Results are to be comparable, so it is dropped here too.
    """
    text = sample.text or ""
    if text.startswith(" ") and not tokenizer.decode(sample.tokens).startswith(" "):
        return text[1:]
    return text


def finished(samples: Samples) -> NDArray[np.bool_]:
    """Mask [P, n] of samples that were drawn to their end; after Ctrl-C some are not."""
    return samples.valid & (samples.finish_reason != "aborted")
