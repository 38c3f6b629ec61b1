"""Filters for money, numbers, dates, plurals and lists, as the reader's language writes them (Unicode CLDR, by Babel).

The locale is the recipient's, where the chosen words are in its language; else that of the words, else English. Times
are shown in the recipient's time zone, else in UTC. Every filter is bounded in what it takes, and its faults name types
and never values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from inspect import signature
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError, dates, lists, localedata, numbers
from jinja2 import Undefined
from jinja2.runtime import Context
from jinja2.utils import pass_context
from markupsafe import Markup, escape

from domain.locales import canonical, lookup

MAX_DIGITS: Final = 40
"""Of a number, before and after the point together; a longer one is not for people."""
MAX_PATTERN: Final = 100
"""Characters of a pattern for dates."""
MAX_LISTED: Final = 1000
"""Items of `format_list`: it takes time by their square."""
MAX_FORM: Final = 10_000
"""Characters of a text given to `plural`."""
FORMATS: Final = frozenset({"short", "medium", "long", "full"})
STYLES: Final = frozenset({"standard", "standard-short", "or", "or-short", "unit", "unit-short", "unit-narrow"})
CATEGORIES: Final = frozenset({"zero", "one", "two", "few", "many", "other"})
"""Of CLDR's plural rules."""

LOCALES_KEPT: Final = 64
"""Locales that a process holds: each takes some 200 KB, Babel knows a thousand, and recipients name theirs."""

_CURRENCY = re.compile(r"[A-Z]{3}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_ENGLISH = Locale("en")


def language(context: Context) -> Locale:
    """The locale of a rendering."""
    recipient = context.parent.get("recipient")
    own = recipient.get("locale") if isinstance(recipient, Mapping) else None
    return locale_of(own if isinstance(own, str) else None, getattr(context, "tongue", None))


@lru_cache(maxsize=LOCALES_KEPT)
def locale_of(recipient: str | None, words: str | None) -> Locale:
    """The recipient's locale, unless the words are known to be in another language.

    What CLDR does not know falls back to what is less specific, at last to English.
    """
    own, written = _known(recipient), _known(words)
    if own and (written is None or own.language == written.language):
        return own
    return written or _ENGLISH


def _known(tag: str | None) -> Locale | None:
    for candidate in lookup(tag or ""):
        try:
            return _kept(Locale.parse(canonical(candidate), sep="-"))
        except (UnknownLocaleError, ValueError):
            continue
    return None


def _kept(locale: Locale) -> Locale:
    """Babel never forgets what it has read; here it begins anew before that is too much."""
    if len(localedata._cache) > LOCALES_KEPT:  # its only name; reading a locale again takes some milliseconds
        localedata._cache.clear()
    return locale


# ---------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------


@pass_context
def money(context: Context, value: object, currency: object) -> str:
    """An amount in a currency by its ISO 4217 code: 1.234,50 €."""
    return numbers.format_currency(_number("money", value), _currency(currency), locale=language(context))


def _currency(code: object) -> str:
    if not isinstance(code, str) or not _CURRENCY.fullmatch(code):
        raise TypeError("the filter money takes a currency of three capital letters, such as EUR")
    return code


@pass_context
def number(context: Context, value: object, digits: int | None = None) -> str:
    """A number: `{{ km | number }}` is 1.234,568; with `number(1)` always so many digits after the point: 1.234,6."""
    locale = language(context)
    pattern = locale.decimal_formats[None].pattern
    return numbers.format_decimal(_number("number", value), _with_digits("number", pattern, digits), locale)


@pass_context
def percent(context: Context, value: object, digits: int | None = None) -> str:
    """A share: `{{ 0.25 | percent }}` is 25 %."""
    locale = language(context)
    pattern = locale.percent_formats[None].pattern
    return numbers.format_percent(_number("percent", value), _with_digits("percent", pattern, digits), locale)


def _number(name: str, value: object) -> Decimal:
    if isinstance(value, Undefined):
        str(value)  # raises what is missing
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise TypeError(f"the filter {name} takes a number, not a value of type {type(value).__name__}")
    if isinstance(value, int) and value.bit_length() > 4 * MAX_DIGITS:
        raise TypeError(f"the filter {name} takes a number of at most {MAX_DIGITS} digits")
    return _decimal(name, str(value))


def _decimal(name: str, text: str) -> Decimal:
    try:
        number = Decimal(text) if len(text) <= 2 * MAX_DIGITS else Decimal("nan")
    except InvalidOperation:
        raise TypeError(f"the filter {name} takes a number, and this text is none") from None
    if not number.is_finite() or len(number.as_tuple().digits) > MAX_DIGITS or abs(number.adjusted()) > MAX_DIGITS:
        raise TypeError(f"the filter {name} takes a number of at most {MAX_DIGITS} digits")
    return number


def _with_digits(name: str, pattern: str, digits: object) -> str:
    """The locale's pattern with a fixed number of digits after the point: `#,##0.###` → `#,##0.00`."""
    if digits is None:
        return pattern
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= 20:
        raise TypeError(f"the filter {name} takes from 0 to 20 digits after the point")
    return re.sub(r"0(?:\.[0#]+)?", f"0.{'0' * digits}" if digits else "0", pattern, count=1)


# ---------------------------------------------------------------------------------------------------------------
# Dates
# ---------------------------------------------------------------------------------------------------------------


@pass_context
def date_(context: Context, value: object, format: str = "medium", timezone: str | None = None) -> str:
    """A day: `{{ event.time | date("long") }}` is 22. November 2026. A date without a time is in no zone."""
    moment = _moment("date", value)
    if isinstance(moment, datetime):
        moment = moment.astimezone(_zone(context, timezone))
    return _dated("date", dates.format_date, moment, format, locale=language(context))


@pass_context
def time_(context: Context, value: object, format: str = "short", timezone: str | None = None) -> str:
    """The time of day: `{{ event.time | time }}` is 18:00."""
    moment, zone = _point("time", value), _zone(context, timezone)
    return _dated("time", dates.format_time, moment, format, tzinfo=zone, locale=language(context))


@pass_context
def datetime_(context: Context, value: object, format: str = "medium", timezone: str | None = None) -> str:
    """Both: `{{ event.time | datetime("short") }}` is 22.11.26, 18:00."""
    moment, zone = _point("datetime", value), _zone(context, timezone)
    return _dated("datetime", dates.format_datetime, moment, format, tzinfo=zone, locale=language(context))


@pass_context
def timedelta_(context: Context, value: object, format: str = "long") -> str:
    """How long, of seconds: `{{ 7200 | timedelta }}` is 2 Stunden."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(_number("timedelta", value))
    return _spoken("timedelta", seconds, format, language(context), directed=False)


@pass_context
def ago(context: Context, value: object, format: str = "long") -> str:
    """How far from the event's time: `{{ expires_at | ago }}` is in 2 Stunden, or vor 3 Tagen. Never by the clock."""
    event = context.parent.get("event")
    now = _point("ago", event.get("time") if isinstance(event, Mapping) else None)
    return _spoken("ago", (_point("ago", value) - now).total_seconds(), format, language(context), directed=True)


def _dated(name: str, function: Callable[..., str], moment: date, format: object, **more: Any) -> str:
    if not isinstance(format, str) or len(format) > MAX_PATTERN:
        raise TypeError(f"the filter {name} takes a format of at most {MAX_PATTERN} characters")
    try:
        return function(moment, format, **more)
    except (ValueError, AttributeError, NotImplementedError, KeyError, TypeError):
        told = ", ".join(sorted(FORMATS))
        raise TypeError(f"the filter {name} takes {told} or a pattern of CLDR such as 'd. MMMM y'") from None


def _spoken(name: str, seconds: float, format: object, locale: Locale, *, directed: bool) -> str:
    width = _width(name, format)
    if abs(seconds) > 1e11:
        raise TypeError(f"the filter {name} takes at most three thousand years")
    span = timedelta(seconds=seconds)
    return dates.format_timedelta(span, format=width, add_direction=directed, locale=locale)


def _width(name: str, format: object) -> Literal["narrow", "short", "long"]:
    if format not in {"narrow", "short", "long"}:
        raise TypeError(f"the filter {name} takes the formats narrow, short and long")
    return format


def _point(name: str, value: object) -> datetime:
    moment = _moment(name, value)
    if not isinstance(moment, datetime):
        raise TypeError(f"the filter {name} takes a date with a time")
    return moment


def _moment(name: str, value: object) -> date:
    """A date, or a point in time; one that names no zone is in UTC."""
    if isinstance(value, Undefined):
        str(value)  # raises what is missing
    moment = _parsed(value) if isinstance(value, str) else value
    if not isinstance(moment, date):
        raise TypeError(f"the filter {name} takes a date or time in ISO 8601, such as 2026-11-22T17:00:00Z")
    if isinstance(moment, datetime) and moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment


def _parsed(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if _DATE.fullmatch(text) else datetime.fromisoformat(text[:64])
    except ValueError:
        return None


def _zone(context: Context, given: object) -> tzinfo:
    if given is not None:
        return _named_zone(given if isinstance(given, str) else "")
    recipient = context.parent.get("recipient")
    own = recipient.get("timezone") if isinstance(recipient, Mapping) else None
    return _named_zone(own) if isinstance(own, str) and own else UTC


def _named_zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name[:64])
    except (KeyError, OSError, ValueError):
        raise TypeError("there is no such time zone: it should be one like Europe/Berlin") from None


# ---------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------


@pass_context
def plural(context: Context, value: object, **forms: object) -> str:
    """One of `one="{n} item", other="{n} items"`, by CLDR's plural rules; `{n}` is the number as `number` has it.

    `other` has to be there, and stands in for a form that is not. `zero` is also taken for 0 itself.
    """
    _check_forms(forms)
    amount, locale = _number("plural", value), language(context)
    if amount == amount.to_integral_value():
        amount = amount.to_integral_value()  # 1.0 is written as 1, and has its form
    category = "zero" if amount == 0 and "zero" in forms else locale.plural_form(amount)
    form = str(forms.get(category, forms["other"]))
    return form.replace("{n}", numbers.format_decimal(amount, locale=locale)) if "{n}" in form else form


def _check_forms(forms: Mapping[str, object]) -> None:
    if "other" not in forms or forms.keys() - CATEGORIES or not all(map(_is_form, forms.values())):
        raise TypeError("the filter plural takes the texts other=… and, if need be, zero, one, two, few, many")


def _is_form(form: object) -> bool:
    return isinstance(form, str) and len(form) <= MAX_FORM


@pass_context
def format_list(context: Context, value: object, style: str = "standard") -> str:
    """An enumeration: `{{ names | format_list }}` is Ana, Ben und Cem; with `format_list("or")` Ana, Ben oder Cem."""
    _check_style(style)
    items = _texts(value, autoescape=bool(context.eval_ctx.autoescape))
    text = lists.format_list(items, style=style, locale=language(context))  # type: ignore[arg-type]
    return Markup(text) if context.eval_ctx.autoescape else text  # noqa: S704  # every item is escaped, or was


def _check_style(style: object) -> None:
    if not isinstance(style, str) or style not in STYLES:
        raise TypeError(f"the filter format_list takes the styles {', '.join(sorted(STYLES))}")


def _texts(value: object, *, autoescape: bool) -> Sequence[str]:
    if isinstance(value, Undefined):
        str(value)  # raises what is missing
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise TypeError(f"the filter format_list takes a list, not a value of type {type(value).__name__}")
    if len(value) > MAX_LISTED:
        raise TypeError(f"the filter format_list takes at most {MAX_LISTED} items")
    return [str(escape(item)) if autoescape else str(item) for item in value]


PER_CHARACTER: Final[Mapping[str, int]] = {"date": 10, "time": 10, "datetime": 10}
"""What a call of these costs besides for each character of its arguments: the name of a zone, which one letter of a
pattern can stand for, takes some 6 µs."""
FILTERS: Final[Mapping[str, tuple[Callable[..., Any], int]]] = {
    "money": (money, 100),
    "number": (number, 100),
    "percent": (percent, 100),
    "date": (date_, 60),
    "time": (time_, 80),
    "datetime": (datetime_, 120),
    "timedelta": (timedelta_, 60),
    "ago": (ago, 60),
    "plural": (plural, 60),
    "format_list": (format_list, 60),
}
"""By name: the filter, and what a call costs of the budget besides its arguments; a unit is some 0.3 µs."""


# ---------------------------------------------------------------------------------------------------------------
# Arguments that stand in a template
# ---------------------------------------------------------------------------------------------------------------

UNKNOWN: Final = object()
"""Stands for an argument that only a rendering knows."""
_SOMETIME: Final = datetime(2026, 11, 22, 17, tzinfo=UTC)


def argument_fault(name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> str | None:
    """What is wrong with a call of a filter whatever is filtered, in the words that a rendering has for it."""
    try:
        given = signature(FILTERS[name][0]).bind(UNKNOWN, UNKNOWN, *args, **kwargs)
        given.apply_defaults()  # so that `plural` without any form is found as well
    except TypeError as error:  # of names and numbers of arguments alone
        return f"the filter {name}: {error}"
    try:
        for parameter, value in given.arguments.items():
            if value is not UNKNOWN and parameter in _CHECKS:
                _CHECKS[parameter](name, value)
    except TypeError as error:
        return str(error)
    return None


def _check_format(name: str, format: object) -> None:
    """By using it: of a moment that has all that a pattern may ask for, as the filter would."""
    if name in {"timedelta", "ago"}:
        _width(name, format)
    else:
        _dated(name, _FORMATTED[name], _SOMETIME, format, locale=_ENGLISH)


_FORMATTED: Final[Mapping[str, Callable[..., str]]] = {
    "date": dates.format_date,
    "time": dates.format_time,
    "datetime": dates.format_datetime,
}


def _check_timezone(_name: str, timezone: object) -> None:
    if timezone is not None:
        _named_zone(timezone if isinstance(timezone, str) else "")


def _check_known_forms(_name: str, forms: object) -> None:
    assert isinstance(forms, dict)  # noqa: S101  # as `**forms` is
    _check_forms({form: "" if text is UNKNOWN else text for form, text in forms.items()})


_CHECKS: Final[Mapping[str, Callable[[str, Any], object]]] = {
    "currency": lambda _, code: _currency(code),
    "digits": lambda name, digits: _with_digits(name, "0", digits),
    "format": _check_format,
    "timezone": _check_timezone,
    "style": lambda _, style: _check_style(style),
    "forms": _check_known_forms,
}
"""By the name of a filter's parameter."""
