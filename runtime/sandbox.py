"""The Jinja environment for untrusted chat templates; independent of messages.

In addition to Jinja's sandbox it limits the time and size of a rendering (runtime/template_limits.py), in the calling
thread and without signals: the parsed template is rewritten so that each loop, comparison and literal reports to the
limits, and calls, filters and operators are intercepted. Between two reports one Python operation runs, on values of
limited size: a sort or a copy of a megabyte is the most by which a template can exceed the limits.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from megrez.runtime.template_limits import Limits

# The variable that holds a rendering's Limits, and our own filters: names that a template cannot write.
LIMITS = "(limits)"
_TICK, _MADE, _CONCAT = "(tick)", "(made)", "(concat)"
# Their time is more than linear in their input, and they are for web pages.
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        limits = _limits(context)
        limits.before_operator(operator, left, right)
        return limits.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        limits = _limits(context)
        args = _counted(getattr(function, "__name__", ""), args)
        limits.before_call(function, args, kwargs)
        return _bounded(limits, super().call(context, function, *args, **kwargs))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja would render such an attribute as empty text, which hides the attempt.
        raise SecurityError(f"it accesses the internal attribute {attribute} of a {type(obj).__name__}")

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        return super()._generate(_Reporting().visit(source), name, filename, defer_init)


class _Reporting(NodeTransformer):
    """Rewrites a template so that what is not a call, filter or operator reports to the limits too."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, _tick_statement(node))
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(1), _TICK), node.test).set_lineno(node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _tick_statement(node))
        return node

    visit_CallBlock = visit_Macro

    def visit_Block(self, node: nodes.Block) -> nodes.Block:
        self.generic_visit(node)
        node.body.insert(0, _tick_statement(node))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filter(node.expr, _TICK)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filter(node, _MADE)
        if not isinstance(node.arg, nodes.Const):
            node.arg = _filter(node.arg, _TICK)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.Tuple(node.nodes, "load"), _CONCAT)

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, _MADE)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, _MADE) if node.ctx == "load" else node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)  # type: ignore[return-value]


def _tick_statement(node: nodes.Node) -> nodes.Node:
    """Reports one execution of a body, which may print all of its plain text."""
    text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    return nodes.ExprStmt(_filter(nodes.Const(text), _TICK)).set_lineno(node.lineno)


def _limits(context: Context) -> Limits:
    found = context.parent[LIMITS]
    assert isinstance(found, Limits)
    return found


@pass_context
def _tick(context: Context, value: Any) -> Any:
    _limits(context).tick(value if type(value) is int and value > 0 else 0)
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _limits(context).made(value)


@pass_context
def _concat(context: Context, parts: tuple[Any, ...]) -> Any:
    limits = _limits(context)
    limits.expect(limits.weight(parts))
    return limits.made((markup_join if context.eval_ctx.autoescape else str_join)(parts))


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes <, > and & for HTML, which models are not trained on."""
    limits = _limits(context)
    limits.expect(limits.weight(separators) + (indent if isinstance(indent, int) else limits.weight(indent)))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    pieces = []
    for piece in encoder.iterencode(value):
        pieces.append(piece)
        limits.tick(len(piece))
    return limits.made("".join(pieces))


def _limited(name: str, function: Any) -> Callable[..., Any]:
    """The filter or test `function`, which may take Jinja's context, with limits on its arguments and result."""
    asks_for = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def limited(context: Context, /, *args: Any, **kwargs: Any) -> Any:
        limits = _limits(context)
        args = _counted(name, args)
        limits.before_filter(name, args, kwargs)
        own = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        leading = () if asks_for is None else (own[asks_for.name],)
        return _bounded(limits, function(*leading, *args, **kwargs))

    return limited


def _counted(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Iterators become lists for `join`, whose result's size depends on the number of items."""
    return (list(args[0]), *args[1:]) if name == "join" and args and isinstance(args[0], Iterator) else args


def _bounded(limits: Limits, value: Any) -> Any:
    return map(limits.made, value) if inspect.isgenerator(value) else limits.made(value)


class _GuardedNamespace(Namespace):
    """A namespace that rejects names of Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it sets the underscored attribute {name}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        # Its values may contain the namespace itself.
        return "<namespace>"


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is a plain block."""

    tags = {"generation"}  # noqa: RUF012, the base class's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def new_environment() -> ImmutableSandboxedEnvironment:
    """A sandbox with the syntax, names and white-space handling of transformers' chat templates."""
    # Without this, Jinja would evaluate constant expressions while it compiles the template, outside the limits.
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], optimized=False, finalize=_made
    )
    names: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "namespace": _namespace,
        "dict": _dict,
    }
    environment.globals.update(names)
    del environment.globals["lipsum"]
    for name in _LEFT_OUT:
        del environment.filters[name]
    for table in (environment.filters, environment.tests):
        table.update({name: _limited(name, function) for name, function in table.items()})
    environment.filters.update({_TICK: _tick, _MADE: _made, _CONCAT: _concat, "tojson": _tojson})
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _namespace(*pairs: Any, **attributes: Any) -> _GuardedNamespace:
    space = _GuardedNamespace()
    for name, value in dict(*pairs, **attributes).items():
        space[name] = value
    return space


def _dict(*pairs: Any, **items: Any) -> dict[Any, Any]:
    # A function in place of Jinja's class: a class gives access to Python's internals.
    return dict(*pairs, **items)
