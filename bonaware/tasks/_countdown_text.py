"""Read a solution of a Countdown problem: steps or one expression, in exact arithmetic.

A solution is one equation or more, `25 - 3 = 22, 22 * 4 = 88`, between commas, semicolons or
new lines. The left side is an expression of + - * / and brackets over the numbers that are
left: those given and the results of earlier equations, each used once. The last equation may
lack its right side, so `(25 - 3) * 4` is a solution too. Remarks on what is left, as in
`25 - 3 = 22 (left: 4 22)` or `25 - 3 = 22 left 4 22`, are passed over, true or not.

The reader takes any text and never recurses: its work is bounded by `LONGEST` characters.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

__all__ = ["Reading", "read"]

LONGEST = 4096  # characters; a solution with ten numbers has fewer than 300
DIGITS = r"\d{1,15}(?:\.\d{1,15})?"
# An operand may have a sign, "-22 * 4", where an earlier equation has the result -22.
NUMBER = re.compile(rf"\s*(\(|-?{DIGITS})\s*", re.ASCII)
SIGN = re.compile(r"\s*([-+*/)])\s*", re.ASCII)
RESULT = re.compile(rf"\s*(-?{DIGITS})\s*", re.ASCII)
SIGNS = str.maketrans({"\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/",
                       "\N{MINUS SIGN}": "-", "\N{MIDDLE DOT}": "*"})
# Behind a result and to the end of its equation; in brackets anything, without them whole numbers.
REMARK = re.compile(
    rf"(=\s*-?{DIGITS})(?:[^\S\n]*\([^\S\n]*left\b[^()]*\)|[^\S\n]+left\b[\d: \t]*)"
    r"(?=[^\S\n]*(?:[,;\n]|\Z))", re.ASCII | re.IGNORECASE)
STRENGTH = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Reading:
    """What a text says.

    Attributes
    ----------
    value : Fraction or None
        Its last result, as the text states it; None for a division by zero.
    true : bool
        Whether every equation holds.
    form : str
        The whole as one expression, the same for all orders of terms and factors.
    """

    value: Fraction | None
    true: bool
    form: str


def read(text: str, numbers: Iterable[int]) -> Reading | None:
    """A text as one expression that uses each number once; None if it is none.

    Examples
    --------
    >>> read("25 - 3 = 22, 22 * 4 = 88", [3, 4, 25])
    Reading(value=Fraction(88, 1), true=True, form='(25-3)*4')
    >>> read("4 * (25 - 3)", [3, 4, 25]).form
    '(25-3)*4'
    >>> read("25 - 3 = 20, 4 * 20 = 88", [3, 4, 25])
    Reading(value=Fraction(88, 1), true=False, form='(25-3)*4')
    >>> read("25 * 4 = 100", [3, 4, 25]) is None, read("no idea", [3, 4, 25]) is None
    (True, True)
    >>> read("25 - 3 = 22 (left: 4, 22), 4 * 22 = 88", [3, 4, 25]).form
    '(25-3)*4'
    """
    if len(text) > LONGEST:
        return None
    text = REMARK.sub(r"\1", text.translate(SIGNS))
    left = [_Term(Fraction(number), (str(number),)) for number in numbers]
    true = True
    equations = [part for part in re.split("[,;\n]", text) if part.strip()]
    for number, equation in enumerate(equations, 1):
        expression, equals, result = equation.partition("=")
        term = _evaluate(expression, left)
        stated = RESULT.fullmatch(result)
        if term is None or (stated is None and (equals or number < len(equations))):
            return None
        if stated:
            value = Fraction(stated[1])
            true = true and term.value == value
            term = replace(term, value=value)
        left.append(term)
    if not equations or len(left) != 1:
        return None
    return Reading(left[0].value, true, left[0].text())


@dataclass(frozen=True)
class _Term:
    """A value and how it came about: a number, a sum or a product.

    A sum is all of `plus` less all of `minus`; a product is all of `plus` divided by all of
    `minus`. Both are sorted, so equal sums of the same parts have the same text.
    """

    value: Fraction | None
    plus: tuple[str, ...]
    minus: tuple[str, ...] = ()
    kind: str = ""

    def parts(self, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """`plus` and `minus` of this as a sum (kind "+") or as a product ("*")."""
        if self.kind == kind:
            return self.plus, self.minus
        bare = self.kind != "+"
        return (self.text() if bare else f"({self.text()})",), ()

    def text(self) -> str:
        between, before = ("*", "/") if self.kind == "*" else ("+", "-")
        return between.join(self.plus) + "".join(before + part for part in self.minus)


def _join(sign: str, one: _Term, other: _Term) -> _Term:
    kind = "+" if sign in "+-" else "*"
    (plus, minus), (more, less) = one.parts(kind), other.parts(kind)
    if sign in "-/":
        more, less = less, more
    value = _apply(sign, one.value, other.value)
    return _Term(value, tuple(sorted(plus + more)), tuple(sorted(minus + less)), kind)


def _apply(sign: str, one: Fraction | None, other: Fraction | None) -> Fraction | None:
    if one is None or other is None or (sign == "/" and other == 0):
        return None
    if sign == "/":
        return one / other
    return one + other if sign == "+" else one - other if sign == "-" else one * other


def _evaluate(expression: str, left: list[_Term]) -> _Term | None:
    """An expression by operator precedence; takes the numbers it uses out of `left`."""
    terms: list[_Term] = []
    signs: list[str] = []

    def join_while(strength: int) -> None:
        while signs and STRENGTH[signs[-1]] >= strength:
            other = terms.pop()
            terms.append(_join(signs.pop(), terms.pop(), other))

    position, wants_number = 0, True
    while position < len(expression):
        found = (NUMBER if wants_number else SIGN).match(expression, position)
        if found is None:
            return None
        position, word = found.end(), found[1]
        if word == "(":
            signs.append(word)
        elif wants_number:
            term = _take(Fraction(word), left)
            if term is None:
                return None
            terms.append(term)
            wants_number = False
        elif word == ")":
            join_while(1)
            if not signs:
                return None
            signs.pop()
        else:
            join_while(STRENGTH[word])
            signs.append(word)
            wants_number = True
    if wants_number:
        return None
    join_while(1)
    return None if signs else terms[0]


def _take(value: Fraction, left: list[_Term]) -> _Term | None:
    """Remove a term of that value; None if there is none."""
    for index, term in enumerate(left):
        if term.value == value:
            return left.pop(index)
    return None
