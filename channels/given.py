"""The names that every template has, and what these hold: a field that they never have is found before it is missed.

`{{ recipient.nmae }}` fails for everybody, and `{{ recipient.nmae | default("you") }}` greets everybody as a stranger.
"""

from collections.abc import Container, Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from jinja2 import nodes

from domain.event import Recipient

FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "recipient": frozenset(Recipient.model_fields),
    "event": frozenset({"id", "source", "type", "time"}),
}
"""Of those whose fields are known; `data` is what the event brings."""
GIVEN: Final = frozenset({*FIELDS, "data"})
"""Names that every template has, whatever the event brings."""
METHODS: Final = frozenset({"get", "items", "keys", "values"})
"""Of a mapping, which read like fields."""


def field_faults(tree: nodes.Template, own: Container[str]) -> Iterator[tuple[int, str]]:
    """The line and the fault of every use of a field that its name never has; `own`: the names that the file sets."""
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        match node:
            case nodes.Getattr(node=nodes.Name(name=str(name)), attr=str(field)):
                pass
            case nodes.Getitem(node=nodes.Name(name=str(name)), arg=nodes.Const(value=str(field))):
                pass
            case _:
                continue
        if name not in own and name in FIELDS and field not in FIELDS[name] | METHODS:
            yield node.lineno, f"{name}.{field} never exists{_meant(name, field)}"


def _meant(name: str, field: str) -> str:
    close = get_close_matches(field, FIELDS[name], n=1, cutoff=0.7)
    if close:
        return f": do you mean {name}.{close[0]}?"
    return f": {name} has {', '.join(sorted(FIELDS[name]))}; what else an event says is in data"
