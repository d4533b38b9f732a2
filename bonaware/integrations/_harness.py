"""What the adapters of evaluation harnesses share: their words for sampling, their way with text.

The aliases of the harnesses are accepted here only; the rest of bonaware has one word per idea.
It knows no harness and imports none.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bonaware.lm import LM
from bonaware.samples import Sample, Samples
from bonaware.tokenizer import Tokenizer

__all__ = ["end_strings", "finished", "likelihood", "likelihoods", "runs", "sampling", "text_of",
           "windows"]

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
# So cold that a token has more than half of the probability only if it is the likeliest.
COLD = 1e-4


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


def end_strings(lm: LM) -> tuple[str, ...]:
    """Stop strings: what the tokenizer calls the end, where the model's config does not say so."""
    tokenizer = lm._need_tokenizer("the harness")
    end = tokenizer.special_tokens.get("eos_token")
    if end is None or tokenizer.encode(end, add_special_tokens=False)[0] in lm.eos_token_ids:
        return ()
    return (end,)


def finished(samples: Samples) -> NDArray[np.bool_]:
    """Mask [P, n] of samples that were drawn to their end; after Ctrl-C some are not."""
    return samples.valid & (samples.finish_reason != "aborted")


# -- log-likelihoods -----------------------------------------------------------


def likelihoods(lm: LM, pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
                longest: int) -> Iterator[tuple[int, float, bool]]:
    """Log-likelihoods of texts behind their contexts; texts share the reading of a context.

    Parameters
    ----------
    pairs : sequence of (context, text)
        In token ids. A context is cut at its left where both are longer than `longest`.
    longest : int
        Tokens of context and text together.

    Yields
    ------
    int
        Position of the pair; those of one context follow each other.
    float
        Sum over the tokens of the text, nats.
    bool
        Whether greedy decoding gives the text.

    Raises
    ------
    ValueError
        A text leaves no room for a context.
    """
    for context, places in _by_context(pairs, longest).items():
        texts = [list(pairs[at][1]) for at in places]
        natural, cold = (lm.logp([list(context)], [texts], temperature)[0]
                         for temperature in (1.0, COLD))
        for at, logp, tempered in zip(places, natural, cold, strict=True):
            yield at, float(logp.sum(dtype=np.float64)), bool((tempered > math.log(0.5)).all())


def _by_context(pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
                longest: int) -> dict[tuple[int, ...], list[int]]:
    """Positions of pairs by their context as it is cut."""
    places = defaultdict(list)
    for at, (context, text) in enumerate(pairs):
        room = longest - len(text)
        if room < 1:
            raise ValueError(f"a continuation may have {longest - 1} tokens at most, got "
                             f"{len(text)}")
        places[tuple(context[-room:])].append(at)
    return places


def likelihood(lm: LM, tokens: Sequence[int], prefix: int, length: int) -> float:
    """Log-likelihood of a whole text, nats, in windows where it is longer than the context.

    Parameters
    ----------
    tokens, prefix, length
        As of `windows`.
    """
    return sum(float(lm.logp([context], [[text]])[0][0].sum(dtype=np.float64))
               for context, text in windows(tokens, prefix, length))


def windows(tokens: Sequence[int], prefix: int,
            length: int) -> Iterator[tuple[list[int], list[int]]]:
    """A text in parts that a model can read, as (context, part).

    Parameters
    ----------
    tokens : sequence of int
        The text; every token is in one part.
    prefix : int
        The token that the text stands behind.
    length : int
        Tokens that are read for a part. The last one's context is as long as this allows.

    Examples
    --------
    >>> list(windows([1, 2, 3, 4, 5], 0, 3))
    [([0], [1, 2, 3]), ([2, 3], [4, 5])]
    """
    tokens = [prefix, *tokens]
    for begin in range(1, len(tokens), length):
        end = min(begin + length, len(tokens))
        yield tokens[max(0, end - length - 1) : begin], tokens[begin:end]
