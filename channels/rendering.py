"""Templates: Jinja2 in a sandbox with a budget, strict about missing names, HTML escaped in `html` alone.

Fields of a content are rendered each by itself. A fault names the field, the line and what is wrong, never a value.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, TypeVar

from jinja2 import Template, UndefinedError
from jinja2.exceptions import SecurityError
from pydantic_core import from_json

from channels.compiling import Linked, compiled, link_faults, needs, shortened
from channels.limits import check_lengths
from channels.mail_fields import copies, without_copies
from channels.sandbox import MAX_TEXT, Budget, Sandbox, TooCostly
from channels.segments import MAX_SEGMENTS, excess
from domain.locales import LOCALES, NOTHING_SHARED, SHARED, Shared, localised, translated
from domain.notification import templates
from domain.ports import MessageTooLarge, TemplateError
from domain.text import Fault
from domain.vocabulary import Channel

CACHE_SOURCE: Final = 8 * 1024 * 1024
"""Characters of source whose compiled templates are kept, the least recently used dropped first."""
ESCAPED: Final = "html"
ONE_LINE: Final = frozenset({"subject", "title"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
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


_Key = tuple[str | None, bool, tuple[tuple[str, str], ...]]
T = TypeVar("T", Compiled, Linked)


class TemplateRenderer:
    """Implements `domain.ports.Renderer`. Keeps compiled templates; for one thread.

    `strict` is for what is not in force yet: an argument of a filter that can never be right, or a field of `recipient`
    that never exists, is then a fault of the template. Else it is one of the rendering that comes to it, so that what
    is in force already goes on as it did.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._plain = Sandbox(autoescape=False, strict=strict)
        self._html = Sandbox(autoescape=True, strict=strict)
        self._cache: OrderedDict[_Key, Compiled | Linked] = OrderedDict()
        self._cached = 0

    def check(self, channel: Channel, content: Mapping[str, Any]) -> Sequence[Fault]:
        """What is wrong with the templates themselves, in every locale: syntax, filters, what is not available."""
        partials = _shared(content).partials
        return [
            Fault(f"{channel}.{place}", fault)
            for place, field, source in _every_template(content)
            for fault in self._compiled(field, source, partials).faults
        ]

    def missing(
        self,
        channel: Channel,  # noqa: ARG002
        content: Mapping[str, Any],
        data: Mapping[str, Any],
        locale: str | None = None,
    ) -> Sequence[str]:
        """The names that the words for a recipient of this locale use on every way through them, and that `data` lacks.

        In order. A name that is used under a condition only, with `default`, or in a loop is not among them; nor is one
        that only the words for other locales use.
        """
        partials = _shared(content).partials
        needed: set[str] = set()
        for field, source in templates(localised(content, locale)[0]):
            needed |= self._compiled(field, source, partials).needs
        return sorted(needed - data.keys())

    def references(self, source: str) -> Sequence[tuple[int, str]]:
        """The line and the name of every file that a template uses; none if it cannot be read: `check` says why."""
        return compiled(self._plain, source).references

    def render(self, channel: Channel, content: Mapping[str, Any], context: Mapping[str, Any]) -> Mapping[str, str]:
        """Render every field, in the words for the recipient's locale.

        `context` holds the event's data by name, and `recipient`, `event` and `data`. A webhook's `payload` is
        JSON, written compactly; without one it is the event's type, time and data. A mail that has `html` alone is
        given the `text` that can be read in it; none, where that would take too long.

        Raises:
            TemplateError: a name is missing, the template costs more than allowed, or what came out cannot stand
                in this field.
            MessageTooLarge: what came out is longer than the channel takes.
        """
        spoken = _OWN_WORDS
        if LOCALES in content or SHARED in content:
            content, spoken = _spoken(content, context, _shared(content))
        partials = spoken.partials
        rendered = {
            field: self._field(field, source, context, partials, spoken.tongue(field))
            for field, source in templates(content)
        }
        if channel is Channel.WEBHOOK and "payload" not in rendered:
            rendered["payload"] = _default_payload(context)
        elif channel is Channel.EMAIL and "text" not in rendered and "html" in rendered:
            from channels.plain_text import plain_text  # its parser is 4 MiB in every process that needs none

            if (text := plain_text(rendered["html"])) is not None:
                rendered["text"] = text
        elif channel is Channel.SMS and "text" in rendered:
            rendered["text"] = _short(rendered["text"], content.get("max_segments"))
        check_lengths(channel, rendered)
        return rendered

    def copies(self, content: Mapping[str, str]) -> Sequence[str]:
        """The addresses in a rendered mail's `cc` and `bcc`."""
        return copies(content)

    def without_copies(self, content: Mapping[str, str], addresses: Collection[str]) -> Mapping[str, str]:
        """A rendered mail with none of these among its copies."""
        return without_copies(content, addresses)

    def _field(
        self,
        field: str,
        source: str,
        context: Mapping[str, Any],
        partials: tuple[tuple[str, str], ...],
        tongue: str | None,
    ) -> str:
        compiled = self._compiled(field, source, partials)
        if compiled.template is None:
            raise TemplateError(f"{field}: {'; '.join(compiled.faults)}")
        text = _rendered(field, compiled.template, context, tongue)
        if field in ONE_LINE:
            return _one_line(field, text)
        return _compact_json(field, text) if field == "payload" else text

    def _compiled(self, field: str, source: str, partials: tuple[tuple[str, str], ...]) -> Compiled:
        key = (source, field == ESCAPED, partials)
        found = self._cache.get(key)
        if found is None:
            found = self._remember(key, self._compile(source, key[1], partials))
        else:
            self._cache.move_to_end(key)
        assert isinstance(found, Compiled)  # noqa: S101  # as its key has a source
        return found

    def _compile(self, source: str, escaped: bool, partials: tuple[tuple[str, str], ...]) -> Compiled:
        environment = self._html if escaped else self._plain
        part = compiled(environment, source)
        linked = None if part.alone else self._linked(environment, escaped, partials)
        find = linked.part if linked else _nothing
        if faults := (*part.faults, *link_faults(part, find)):
            return Compiled(None, faults, size=part.size)
        environment = linked.environment if linked else environment
        assert part.code is not None  # noqa: S101  # without faults
        template = environment.template_class.from_code(environment, part.code, environment.globals)
        return Compiled(template, needs=needs(part, find), size=part.size)

    def _linked(self, environment: Sandbox, escaped: bool, partials: tuple[tuple[str, str], ...]) -> Linked:
        """The files that a notification's templates share, compiled once for all of them."""
        key = (None, escaped, partials)
        found = self._cache.get(key) or self._remember(key, Linked(environment, partials))
        assert isinstance(found, Linked)  # noqa: S101  # as its key has no source
        return found

    def _remember(self, key: _Key, item: T) -> T:
        self._cache[key] = item
        self._cached += item.size
        while self._cached > CACHE_SOURCE and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].size
        return item


def _shared(content: Mapping[str, Any]) -> Shared:
    found = content.get(SHARED)
    return found if isinstance(found, Shared) else NOTHING_SHARED


@dataclass(frozen=True, slots=True)
class _Spoken:
    """In which locale the words of each field are.

    Attributes:
        own: of the channel's own words; None: nobody knows.
        locale: of those in `translated`.
    """

    own: str | None = None
    locale: str | None = None
    translated: frozenset[str] = frozenset()
    partials: tuple[tuple[str, str], ...] = ()

    def tongue(self, field: str) -> str | None:
        """So that no English sentence has a German number in it: a locale may have some of the fields only."""
        return self.locale if field.partition(".")[0] in self.translated else self.own


_OWN_WORDS: Final = _Spoken()


def _spoken(
    content: Mapping[str, Any], context: Mapping[str, Any], shared: Shared
) -> tuple[Mapping[str, Any], _Spoken]:
    """The words for the recipient, and their locales."""
    recipient = context.get("recipient")
    tag = recipient.get("locale") if isinstance(recipient, Mapping) else None
    tag = tag if isinstance(tag, str) else None
    words, locale = localised(content, tag)
    fields = translated(content, tag) if locale else frozenset()
    return words, _Spoken(shared.default_locale, locale, fields, shared.partials)


def _every_template(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The place, the field and the source of each template, in the channel's own words and in those of each locale."""
    for field, source in templates(content):
        yield field, field, source
    for tag, words in (content.get(LOCALES) or {}).items():
        for field, source in templates(words):
            yield f"{LOCALES}.{tag}.{field}", field, source


def _nothing(_name: str) -> None:
    """No file at all."""


# ---------------------------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------------------------


def _rendered(field: str, template: Template, context: Mapping[str, Any], tongue: str | None) -> str:
    """The text, counted while it is made: it stops as soon as it is too long.

    Raises:
        TemplateError: any error whatever that comes out of the template.
    """
    try:
        budget = _budget(template, context)
        if tongue is not None:
            budget.tongue = tongue
        text = _joined(template, budget)
        if not text.isascii():
            text.encode()  # a lone surrogate, written as an escape, cannot be sent
    except Exception as error:  # noqa: BLE001  # a template can raise anything; nothing of it may stop the consumer
        where = _line(template, error.__traceback__)
        raise TemplateError(f"{field}: {where}{_explained(error)}") from None
    return text


def _budget(template: Template, context: Mapping[str, Any]) -> Budget:
    """A context as `Template.new_context` makes it, without what costs time and is not used."""
    environment = template.environment
    data = {**environment.globals, **context}
    budget = environment.context_class(environment, data, template.name, template.blocks, environment.globals)
    assert isinstance(budget, Budget)  # noqa: S101  # the environment's context_class
    return budget


def _joined(template: Template, context: Budget) -> str:
    chunks, length = [], 0
    for chunk in template.root_render_func(context):
        length += len(chunk)
        if length > MAX_TEXT:
            raise TooCostly(f"makes a text of more than {MAX_TEXT} characters")
        chunks.append(chunk)
    return "".join(chunks)


def _line(template: Template, traceback: TracebackType | None) -> str:
    """The line that an error came from, with the file's name if it is a partial: a macro's rather than its caller's."""
    place = ""
    while traceback is not None:
        found = traceback.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(found, Template) and found.environment is template.environment:
            name = f"{found.name} " if found.name else ""
            place = f"{name}line {found.get_corresponding_lineno(traceback.tb_lineno)}: "
        traceback = traceback.tb_next
    return place


def _explained(error: Exception) -> str:
    """What went wrong, in words that hold names and types only: a value may be private."""
    if isinstance(error, UndefinedError):
        return shortened(str(error.message))
    if isinstance(error, _OWN_ERRORS):
        return shortened(str(error))
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


def _short(text: str, most: int | None) -> str:
    """The text of an SMS. Spaces that do not break, which CLDR has in numbers, would cost it its 7-bit alphabet."""
    plain = text.replace("\u00a0", " ").replace("\u202f", " ")
    # A character takes two units at most, and a part has room for 66 at least: most texts need not be counted.
    if 2 * len(plain) > 66 * (MAX_SEGMENTS if most is None else most) and (fault := excess(plain, most)):
        raise MessageTooLarge(f"text: {fault}")
    return plain


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
