"""Chat templates: programs from strangers, run in a sandbox with bounds.

The template language is jinja2 as transformers sets it up: ImmutableSandboxedEnvironment,
trim_blocks, lstrip_blocks, loop controls, `tojson` without HTML escapes,
`raise_exception`, `strftime_now` and the `{% generation %}` block. The sandbox hides
Python's internals; the bounds below stop a template that only wants to burn time or memory.
"""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["render"]

# Far above what any real chat needs: the longest template in use renders a long chat in
# milliseconds, and no model reads ten million characters.
SECONDS = 5.0
CHARACTERS = 10_000_000
WIDE_FIELD = re.compile(r"\d{6,}|\*")  # in a format: a field of 100,000 characters or more


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """Render a chat.

    Parameters
    ----------
    template : str
        Jinja source.
    messages : sequence of dict
        Chat messages of str, numbers, bool, None, lists and dicts. A key whose value is
        None counts as missing.
    **variables
        What else the template may read: add_generation_prompt, bos_token, tools, ...

    Raises
    ------
    TypeError
        A message is not a dict, or holds something that is not plain data.
    ValueError
        The template is broken, refuses the messages, or breaks a bound of the sandbox.

    Notes
    -----
    At most SECONDS of time (checked at loops, calls and operators) and CHARACTERS per
    string or list that an operator, a loop or a call makes.

    Examples
    --------
    >>> render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ...        [{"role": "user", "content": "Hi"}])
    '<user>Hi'
    """
    chat = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if not chat:
        raise ValueError("need at least one chat message, got none")
    plain = {name: _plain(value, name) for name, value in variables.items()}
    values = {"tools": None, "documents": None, "messages": chat, **plain}
    try:
        return _compile(template).render(values)
    except TemplateError as error:
        raise ValueError(f"chat template: {error.message or type(error).__name__}") from error
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError,
            ValueError, AttributeError) as error:  # what an expression in it may raise
        raise ValueError(f"chat template: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters.update(tojson=_tojson)
    environment.filters = {name: _careful(f) for name, f in environment.filters.items()}
    environment.filters.update(bounded=_bounded, steps=environment.steps)
    del environment.globals["lipsum"]  # its loops are its own, nothing could stop them
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        namespace=_Namespace,
        dict=lambda *args, **kwargs: dict(*args, **kwargs),  # a class would show its internals
    )
    return environment.from_string(source)


class _Bounds(CodeGenerator):
    """Passes every loop through the filter `steps` and every `~` through `bounded`."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        for loop in list(node.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "steps", [], [], None, None)
        for concat in list(node.find_all(nodes.Concat)):
            joined = nodes.Concat(concat.nodes)
            concat.nodes = [nodes.Filter(joined, "bounded", [], [], None, None)]
        super().visit_Template(node, frame)


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Bounds
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    deadline = 0.0

    class template_class(jinja2.Template):
        environment: "_Sandbox"

        def render(self, *args: Any, **kwargs: Any) -> str:
            self.environment.deadline = time.monotonic() + SECONDS
            return super().render(*args, **kwargs)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise SecurityError(f"ran longer than {SECONDS:g} s")

    def steps(self, iterable):
        for item in iterable:
            self.check_time()
            yield item

    def call(self, context, function, /, *args, **kwargs):
        self.check_time()
        _check_numbers(*args, *kwargs.values())
        return _bounded(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value):
        if getattr(value, "__name__", "") in ("format", "format_map"):
            _check_format(getattr(value, "__self__", None))
        return super().wrap_str_format(value)

    def call_binop(self, context, operator, left, right):
        self.check_time()
        if operator == "**" or (operator == "*" and _size(left) * _size(right) > CHARACTERS):
            raise SecurityError(f"refused: {type(left).__name__} {operator} "
                                f"{type(right).__name__} of this size")
        if operator == "%":
            _check_format(left)
        return _bounded(super().call_binop(context, operator, left, right))


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's part; only its body
    matters for rendering."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - jinja2 declares it like this

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace cannot have an attribute {name!r}")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _size(value: Any) -> int:
    """Length of a str or list; the value of a number."""
    if isinstance(value, (str, list, tuple)):
        return len(value)
    return abs(value) if isinstance(value, int) else 1


def _careful(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at its numbers before it works, and at its result after."""

    @wraps(function)  # keeps the marks that tell jinja2 to pass the context
    def careful(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(*args, *kwargs.values())
        if function is FILTERS["format"]:
            _check_format(args[0])
        return _bounded(function(*args, **kwargs))

    return careful


def _check_numbers(*values: Any) -> None:
    # Widths, counts, depths of indentation: numbers in calls decide sizes.
    for value in values:
        if isinstance(value, int) and abs(value) > CHARACTERS:
            raise SecurityError("refused: a number this large as an argument")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and WIDE_FIELD.search(text):
        raise SecurityError("refused: a format with a field this wide")


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > CHARACTERS:
        raise SecurityError(f"made a {type(value).__name__} longer than {CHARACTERS}")
    return value


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TypeError(f"{where} must be a dict with role and content, "
                        f"got {type(message).__name__}")
    plain = _plain(message, where)
    return {key: value for key, value in plain.items() if value is not None}


def _plain(value: Any, where: str) -> Any:
    """A copy made of plain data alone: objects have methods the sandbox does not know."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where} must be str, number, bool, None, list or dict, got {type(value).__name__}"
    )
