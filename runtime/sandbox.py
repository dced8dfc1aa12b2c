"""The Jinja environment in which a stranger's chat template may run; knows nothing of messages.

Beyond Jinja's sandbox it bounds loops over ranges, products and powers, the plain ways to hang a process. A template
that sets out to waste memory still can: nothing here replaces a limit on the process.
"""

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_ITEMS = 1_000_000
_MAX_EXPONENT = 64


class LimitedRange:
    """`range` for one rendering: all its ranges together, nested ones too, may count this far."""

    def __init__(self) -> None:
        self._left = _MAX_ITEMS

    def __call__(self, *bounds: int) -> range:
        wanted = range(*bounds)
        # len() itself overflows beyond 2**63.
        if abs(wanted.stop - wanted.start) // abs(wanted.step) >= self._left:
            raise SecurityError(f"it counts further than {_MAX_ITEMS} steps")
        self._left -= len(wanted) + 1
        return wanted


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Repetitions and powers of a bounded size: `"a" * 10**9` is how a template would eat the memory."""
        sequence, times = (right, left) if hasattr(right, "__len__") else (left, right)
        if operator == "*" and hasattr(sequence, "__len__") and len(sequence) * times > _MAX_ITEMS:
            raise SecurityError(f"it repeats a value to more than {_MAX_ITEMS} items")
        if operator == "**" and right > _MAX_EXPONENT:
            raise SecurityError(f"it computes a power above {_MAX_EXPONENT}")
        return super().call_binop(context, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja would render such an attribute as nothing, which hides the attempt.
        raise SecurityError(f"it asks for the internal attribute {attribute} of a {type(obj).__name__}")


class _GuardedNamespace(Namespace):
    """A namespace in which no name can pass for one of Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it sets the underscored attribute {name}")
        super().__setitem__(name, value)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; to a runtime it is a plain block."""

    tags = {"generation"}  # noqa: RUF012, the base class's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def new_environment() -> ImmutableSandboxedEnvironment:
    """A sandbox with the syntax, names and white space that transformers gives to chat templates."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    names: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "namespace": _namespace,
        "dict": _dict,
    }
    environment.globals.update(names)
    del environment.globals["lipsum"]
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _namespace(*pairs: Any, **attributes: Any) -> _GuardedNamespace:
    space = _GuardedNamespace()
    for name, value in dict(*pairs, **attributes).items():
        space[name] = value
    return space


def _dict(*pairs: Any, **items: Any) -> dict[Any, Any]:
    # A function, where Jinja offers the class itself: a class leads to Python's internals.
    return dict(*pairs, **items)
