"""Faults of the arguments that stand in a template as they are: found when it is put in force, not when it is rendered.

`{{ price | money("EUROS") }}` fails whatever the event brings; `{{ price | money(currency) }}` is for the rendering to
tell. Only the filters of `channels.filters` are looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from jinja2 import nodes

from channels.filters import FILTERS, UNKNOWN, argument_fault

_Arguments = tuple[Sequence[Any], Mapping[str, Any]]


def literal_faults(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    """The line and the fault of every call of a filter that cannot succeed."""
    for node in tree.find_all(nodes.Filter):
        if node.name in FILTERS and (given := _arguments(node)) is not None:
            fault = argument_fault(node.name, *given)
            if fault is not None:
                yield node.lineno, fault


def _arguments(call: nodes.Filter) -> _Arguments | None:
    """Those that stand in the template, the others `UNKNOWN`; None where even their number is not known."""
    if call.dyn_args is not None or call.dyn_kwargs is not None:
        return None
    named = cast("Sequence[nodes.Keyword]", call.kwargs)
    return [_literal(each) for each in call.args], {each.key: _literal(each.value) for each in named}


def _literal(argument: nodes.Expr) -> Any:
    return argument.value if isinstance(argument, nodes.Const) else UNKNOWN
