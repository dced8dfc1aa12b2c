"""Limits on one rendering of a chat template: CPU time of its thread, and the size of the values it creates.

Independent of Jinja's syntax: runtime/sandbox.py reports every loop, call, filter and operator.
Containers are immutable inside the sandbox, so each is measured once, when it is created. One that contains another
twice counts twice, however little memory it takes, since printing or comparing it costs that much.
"""

import re
import time
from collections.abc import Callable, ItemsView, KeysView, Sized, ValuesView
from typing import Any, NoReturn, TypeVar

from jinja2.exceptions import SecurityError

Value = TypeVar("Value")

# Seconds of CPU time. A real template takes milliseconds.
SECONDS = 2.0
# Weights: a character weighs 1, every value 16 more. Both grow with the messages, which may be long.
LARGEST, LARGEST_PER_MESSAGES = 1 << 20, 4
TOTAL, TOTAL_PER_MESSAGES = 1 << 25, 64
RANGE_STEPS = 100_000
INTEGER_BITS = 1 << 14
MAX_EXPONENT = 64
_VALUE = 16
_WIDE = re.compile(r"\d{6}")
_NESTED = re.compile(r"\{[^{}]*\{")


class Limits:
    """The budget of one rendering; every method raises SecurityError if a limit is exceeded."""

    def __init__(self, messages: object) -> None:
        self._measured: dict[int, tuple[object, int]] = {}
        self._deadline = time.thread_time() + SECONDS
        self._steps = RANGE_STEPS
        weight = self.weight(messages)
        self.largest = LARGEST + LARGEST_PER_MESSAGES * weight
        self._left = TOTAL + TOTAL_PER_MESSAGES * weight

    def tick(self, weight: int = 0) -> None:
        """Count one step of work, and text of this weight."""
        self._left -= weight
        if self._left < 0:
            refuse("it creates too much text")
        if time.thread_time() > self._deadline:
            refuse(f"it takes more than {SECONDS:g} s")

    def made(self, value: Value) -> Value:
        """Count `value`, which the template has just created or prints, and return it."""
        weight = self.weight(value)
        self.expect(weight)
        self.tick(weight)
        return value

    def expect(self, weight: float) -> None:
        """Check the weight of a value before it is created."""
        if weight > self.largest:
            refuse("it creates a value that is too large")

    def weight(self, value: object) -> int:
        """Characters of `value` and of everything in it, plus 16 per value."""
        if isinstance(value, str | bytes):
            return _VALUE + len(value)
        if isinstance(value, int):
            return _VALUE + value.bit_length() // 8
        if isinstance(value, dict):
            return self._container(value, [*value.keys(), *value.values()])
        if isinstance(value, list | tuple | set | frozenset):
            return self._container(value, value)
        if isinstance(value, KeysView | ValuesView | ItemsView):
            return _VALUE + sum(map(self.weight, value))
        return _VALUE

    def _container(self, value: object, held: Any) -> int:
        known = self._measured.get(id(value))
        if known is None:
            # The value is kept too, so that its id is not reused.
            known = self._measured[id(value)] = value, _VALUE + sum(map(self.weight, held))
        return known[1]

    def range(self, *bounds: int) -> range:
        """Python's range; all ranges of a rendering together have at most RANGE_STEPS items."""
        wanted = range(*bounds)
        # len() itself overflows beyond 2**63.
        if abs(wanted.stop - wanted.start) // abs(wanted.step) >= self._steps:
            refuse(f"its ranges have more than {RANGE_STEPS} items")
        self._steps -= len(wanted) + 1
        return wanted

    def before_operator(self, operator: str, left: Any, right: Any) -> None:
        """Reject products, powers and formatted text that would be too large."""
        if operator == "%" and isinstance(left, str | bytes):
            self.before_format(left, right)
        elif operator == "*":
            sequence, times = (right, left) if isinstance(right, Sized) else (left, right)
            if isinstance(sequence, Sized):
                self.expect(self.weight(sequence) * times)
            elif isinstance(left, int) and isinstance(right, int):
                _expect_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and right > MAX_EXPONENT:
            refuse(f"it computes a power above {MAX_EXPONENT}")
        elif operator == "**" and isinstance(left, int):
            _expect_bits(left.bit_length() * right)

    def before_format(self, form: str | bytes, *values: Any) -> None:
        """Reject widths and repetitions that would make the text too large."""
        text = form if isinstance(form, str) else form.decode("latin-1")
        if _WIDE.search(text) or _NESTED.search(text) or "*" in text:
            refuse("it formats text to a width that is too large or computed")
        self.expect(len(text) + (text.count("%") + text.count("{")) * self.weight(values))

    def before_call(self, function: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Reject a call if its arguments are, or its method's result would be, too large."""
        self.tick()
        self.expect(self.weight(args) + sum(map(self.weight, kwargs.values())) if args or kwargs else 0)
        method = getattr(function, "__wrapped__", function)  # Jinja wraps format and format_map
        receiver, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(receiver, str | bytes | int) and name in _METHODS:
            self.expect(_METHODS[name](self, receiver, *args, **kwargs))

    def before_filter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The same for a filter; args: starts with the filtered value."""
        self.tick()
        self.expect(self.weight(args[1:]) + sum(map(self.weight, kwargs.values())) if kwargs or args[1:] else 0)
        if name in _FILTERS:
            self.expect(_FILTERS[name](self, *args, **kwargs))


def refuse(reason: str) -> NoReturn:
    raise SecurityError(reason)


def _expect_bits(bits: int) -> None:
    if bits > INTEGER_BITS:
        refuse(f"it computes an integer of more than {INTEGER_BITS} bits")


# The size of the result of each method and filter, from its arguments.


def _width(limits: Limits, text: Any, width: int = 80, *rest: Any, **named: Any) -> int:
    return abs(width)


def _expandtabs(limits: Limits, text: Any, tabsize: int = 8) -> int:
    return abs(tabsize) * (1 + _text(text).count("\t"))


def _replace(limits: Limits, text: Any, old: Any, new: Any, count: Any = None) -> int:
    whole, part = _text(text), _text(old)
    return len(whole) + whole.count(part) * len(_text(new))


def _join_method(limits: Limits, separator: Any, values: Any) -> int:
    return _join(limits, values, separator)


def _join(limits: Limits, values: Any, d: Any = "", attribute: Any = None) -> int:
    if not isinstance(values, Sized):
        return len(_text(d)) * RANGE_STEPS
    return limits.weight(values) + len(_text(d)) * len(values)


def _translate(limits: Limits, text: Any, table: Any, *rest: Any, **named: Any) -> int:
    return len(text) * limits.weight(table)


def _format(limits: Limits, form: Any, *values: Any, **named: Any) -> int:
    limits.before_format(_text(form), *values, *named.values())
    return 0


def _indent(limits: Limits, text: Any, width: Any = 4, *rest: Any, **named: Any) -> int:
    return len(_text(text)) + len(_text(text).splitlines()) * (width if isinstance(width, int) else len(width))


def _rows(limits: Limits, values: Any, count: int, fill_with: Any = None) -> int:
    return _VALUE * abs(count)


def _round(limits: Limits, value: Any, precision: int = 0, *rest: Any, **named: Any) -> int:
    return abs(precision) * 1024


def _sum(limits: Limits, values: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        refuse("it sums values that are not numbers")
    return 0


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


_METHODS: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "to_bytes"), _width),
    "expandtabs": _expandtabs,
    "replace": _replace,
    "join": _join_method,
    "translate": _translate,
    "format": _format,
    "format_map": _format,
}
_FILTERS: dict[str, Callable[..., float]] = {
    "center": _width,
    "replace": _replace,
    "join": _join,
    "format": _format,
    "indent": _indent,
    "batch": _rows,
    "slice": _rows,
    "round": _round,
    "sum": _sum,
}
