"""The answer in a solution's last \\boxed{...}, whatever braces it holds."""

import re

__all__ = ["last_boxed"]

BOXED = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*(?:\{|(?=\S))")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped one is text
PLAIN = re.compile(r"[^\s$.,]+")  # "\boxed 5": TeX takes what follows


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...}; None if there is none, or it is not closed.

    Examples
    --------
    >>> last_boxed(r"so \boxed{1} or \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> last_boxed(r"\boxed 5$."), last_boxed(r"\boxed{\frac{1}{2"), last_boxed("5")
    ('5', None, None)
    """
    marks = list(BOXED.finditer(text))
    if not marks:
        return None
    last = marks[-1]
    if not last[0].endswith("{"):
        plain = PLAIN.match(text, last.end())
        return plain[0] if plain else None
    depth = 1
    for brace in BRACE.finditer(text, last.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[last.end():brace.start()].strip()
    return None
