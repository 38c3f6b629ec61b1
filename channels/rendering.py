"""Templates: Jinja2 in a sandbox with a budget, strict about missing names, HTML escaped in `html` alone.

Fields of a content are rendered each by itself. A fault names the field, the line and what is wrong, never a value.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final

from jinja2 import Template, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from pydantic_core import from_json

from channels.sandbox import MAX_TEXT, Budget, Sandbox, TooCostly, forbidden, metered
from domain.ports import TemplateError
from domain.text import Fault
from domain.vocabulary import Channel

MAX_SOURCE: Final = 128 * 1024
"""Characters of one template. Mail clients clip a message of more than about 100 KB."""
MAX_CODE: Final = 32 * 1024
"""Characters between `{{ }}` and `{% %}` of one template: reading them takes some 5 µs each."""
MAX_TAGS: Final = 3000
"""`{{` and `{%` of one template: compiling takes some 50 µs and 10 KB each."""
CACHE_SOURCE: Final = 8 * 1024 * 1024
"""Characters of source whose compiled templates are kept, the least recently used dropped first."""
ESCAPED: Final = "html"
ONE_LINE: Final = frozenset({"subject", "title"})
GIVEN: Final = frozenset({"recipient", "event", "data"})
"""Names that every template has, whatever the event brings."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_TAG = re.compile(r"\{[{%].*?(?:[%}]\}|\Z)", re.DOTALL)
_OWN_ERRORS: Final = (TooCostly, SecurityError, TypeError)
_ERRORS: Final[Mapping[type[Exception], str]] = {
    ZeroDivisionError: "divides by zero",
    OverflowError: "has a number that is too large",
    RecursionError: "is nested too deeply",
    MemoryError: "needs too much memory",
    UnicodeError: "has a character that cannot be sent",
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A template ready to be rendered, or why it cannot be.

    Attributes:
        faults: what is wrong with it, with the line; it is then not rendered.
        needs: the names of `data` that it uses for certain.
    """

    template: Template | None
    faults: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    size: int = 0


class TemplateRenderer:
    """Implements `domain.ports.Renderer`. Keeps compiled templates; for one thread."""

    def __init__(self) -> None:
        self._plain = Sandbox(autoescape=False)
        self._html = Sandbox(autoescape=True)
        self._cache: OrderedDict[tuple[str, bool], Compiled] = OrderedDict()
        self._cached = 0

    def check(self, channel: Channel, content: Mapping[str, Any]) -> Sequence[Fault]:
        """What is wrong with the templates themselves: syntax, unknown filters, what is not available."""
        return [
            Fault(f"{channel}.{field}", fault)
            for field, source in _templates(content)
            for fault in self._compiled(field, source).faults
        ]

    def missing(self, channel: Channel, content: Mapping[str, Any], data: Mapping[str, Any]) -> Sequence[str]:  # noqa: ARG002
        """The names that the templates use on every way through them, and that `data` lacks, in order.

        A name that is used under a condition only, with `default`, or in a loop is not among them.
        """
        needs: set[str] = set()
        for field, source in _templates(content):
            needs |= self._compiled(field, source).needs
        return sorted(needs - data.keys())

    def render(self, channel: Channel, content: Mapping[str, Any], context: Mapping[str, Any]) -> Mapping[str, str]:
        """Render every field.

        `context` holds the event's data by name, and `recipient`, `event` and `data`. A webhook's `payload` is
        JSON, written compactly; without one it is the event's type, time and data.

        Raises:
            TemplateError: a name is missing, the template costs more than allowed, or what came out cannot stand
                in this field.
        """
        rendered = {field: self._field(field, source, context) for field, source in _templates(content)}
        if channel is Channel.WEBHOOK and "payload" not in rendered:
            rendered["payload"] = _default_payload(context)
        return rendered

    def _field(self, field: str, source: str, context: Mapping[str, Any]) -> str:
        compiled = self._compiled(field, source)
        if compiled.template is None:
            raise TemplateError(f"{field}: {'; '.join(compiled.faults)}")
        text = _rendered(field, compiled.template, context)
        if field in ONE_LINE:
            return _one_line(field, text)
        return _compact_json(field, text) if field == "payload" else text

    def _compiled(self, field: str, source: str) -> Compiled:
        key = (source, field == ESCAPED)
        found = self._cache.get(key)
        if found is None:
            return self._remember(key, _compile(self._html if key[1] else self._plain, source))
        self._cache.move_to_end(key)
        return found

    def _remember(self, key: tuple[str, bool], compiled: Compiled) -> Compiled:
        self._cache[key] = compiled
        self._cached += compiled.size
        while self._cached > CACHE_SOURCE and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].size
        return compiled


def _templates(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((field, source) for field, source in content.items() if isinstance(source, str))


# ---------------------------------------------------------------------------------------------------------------
# Compiling
# ---------------------------------------------------------------------------------------------------------------


def _compile(environment: Sandbox, source: str) -> Compiled:
    # What it takes in memory, about: a tag becomes a line or two of Python.
    size = len(source) + 1000 * _tags(source) + 1000
    try:
        return _parsed(environment, source, size)
    except TemplateSyntaxError as error:
        fault = f"line {error.lineno}: {_shortened(error.message or 'cannot be read')}"
    except (RecursionError, MemoryError, SyntaxError):
        fault = "is nested too deeply"
    except (ValueError, OverflowError) as error:
        fault = f"cannot be read ({type(error).__name__})"
    return Compiled(None, (fault,), size=size)


def _parsed(environment: Sandbox, source: str, size: int) -> Compiled:
    if len(source) > MAX_SOURCE or _tags(source) > MAX_TAGS or _code(source) > MAX_CODE:
        fault = f"is too large: {MAX_SOURCE} characters, {MAX_TAGS} tags and {MAX_CODE} characters in them are the most"
        return Compiled(None, (fault,), size=len(source))
    tree = environment.parse(source)
    faults = tuple(f"line {line}: {fault}" for line, fault in forbidden(tree, environment))
    if faults:
        return Compiled(None, faults, size=size)
    needs = _certain(tree) & find_undeclared_variables(tree) - GIVEN | _certain_fields(tree)
    code = environment.compile(metered(tree))
    template = environment.template_class.from_code(environment, code, environment.globals)
    return Compiled(template, needs=frozenset(needs), size=size)


def _tags(source: str) -> int:
    return source.count("{{") + source.count("{%")


def _code(source: str) -> int:
    return sum(len(tag[0]) for tag in _TAG.finditer(source))


def _shortened(message: str) -> str:
    return _CONTROL.sub(" ", message)[:200]


def _certain(tree: nodes.Template) -> set[str]:
    """The names that every rendering of the template evaluates."""
    return {node.name for node in _evaluated(tree) if isinstance(node, nodes.Name) and node.ctx == "load"}


def _certain_fields(tree: nodes.Template) -> set[str]:
    """The `x` of every `data.x` and `data['x']` that every rendering evaluates."""
    found = set()
    for node in _evaluated(tree):
        match node:
            case nodes.Getattr(node=nodes.Name(name="data"), attr=str(attribute)):
                found.add(attribute)
            case nodes.Getitem(node=nodes.Name(name="data"), arg=nodes.Const(value=str(key))):
                found.add(key)
            case _:
                pass
    return found - {"get", "items", "keys", "values"}


def _evaluated(node: nodes.Node) -> Iterator[nodes.Node]:
    """The nodes below that are evaluated whatever the data is, and that fail if their name is missing."""
    yield node
    for child in _unconditional(node):
        yield from _evaluated(child)


def _unconditional(node: nodes.Node) -> Iterator[nodes.Node]:
    match node:
        case nodes.If() | nodes.CondExpr():
            return iter((node.test,))
        case nodes.For():
            return iter((node.iter,))
        case nodes.And() | nodes.Or():
            return iter((node.left,))
        case nodes.Macro() | nodes.CallBlock() | nodes.With() | nodes.FilterBlock():
            return iter(())
        case nodes.Test(name="defined" | "undefined") | nodes.Filter(name="default" | "d"):
            return iter(())
        case _:
            return node.iter_child_nodes()


# ---------------------------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------------------------


def _rendered(field: str, template: Template, context: Mapping[str, Any]) -> str:
    """The text, counted while it is made: it stops as soon as it is too long.

    Raises:
        TemplateError: any error whatever that comes out of the template.
    """
    try:
        text = _joined(template, template.new_context(dict(context)))
        if not text.isascii():
            text.encode()  # a lone surrogate, written as an escape, cannot be sent
    except Exception as error:  # noqa: BLE001  # a template can raise anything; nothing of it may stop the consumer
        where = _line(template, error.__traceback__)
        raise TemplateError(f"{field}: {where}{_explained(error)}") from None
    return text


def _joined(template: Template, context: Any) -> str:
    assert isinstance(context, Budget)  # noqa: S101  # the environment's context_class
    chunks, length = [], 0
    for chunk in template.root_render_func(context):
        length += len(chunk)
        if length > MAX_TEXT:
            raise TooCostly(f"makes a text of more than {MAX_TEXT} characters")
        chunks.append(chunk)
    return "".join(chunks)


def _line(template: Template, traceback: TracebackType | None) -> str:
    """The template's line that an error came from: the innermost, a macro's rather than its caller's."""
    line = 0
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__jinja_template__") is template:
            line = template.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return f"line {line}: " if line else ""


def _explained(error: Exception) -> str:
    """What went wrong, in words that hold names and types only: a value may be private."""
    if isinstance(error, UndefinedError):
        return _shortened(str(error.message))
    if isinstance(error, _OWN_ERRORS):
        return _shortened(str(error))
    for kind, words in _ERRORS.items():
        if isinstance(error, kind):
            return words
    return f"fails with a {type(error).__name__}"


def _one_line(field: str, text: str) -> str:
    line = text.strip()
    if _CONTROL.search(line):
        raise TemplateError(f"{field}: contains a line break or another control character")
    return line


def _compact_json(field: str, text: str) -> str:
    try:
        value = from_json(text, allow_inf_nan=False)
        return _dumped(value)
    except (ValueError, RecursionError) as error:
        where = re.search(r"at line \d+ column \d+", str(error))
        raise TemplateError(f"{field}: does not render to JSON{' ' + where[0] if where else ''}") from None


def _default_payload(context: Mapping[str, Any]) -> str:
    """The body that Standard Webhooks suggests."""
    event = context["event"]
    time = event["time"]
    stamp = time.isoformat() if isinstance(time, datetime) else str(time)
    try:
        return _dumped({"type": event["type"], "timestamp": stamp, "data": context["data"]})
    except (ValueError, TypeError, RecursionError):
        raise TemplateError("payload: the event's data cannot be written as JSON") from None


def _dumped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with suppress(UnicodeEncodeError):
        text.encode()
        return text
    raise ValueError("a character that cannot be sent")
