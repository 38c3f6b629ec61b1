"""A Jinja2 environment in which a template can neither leave its data nor use more than its budget.

Jinja2's own sandbox stops a template from reaching Python's insides; it does not stop one from filling memory
or running for ever. Here every operation whose cost grows with its input is paid for *before* it is done, from
a budget per rendering: no threads, no timers, the same outcome on every machine.

How: the syntax tree is rewritten before it is compiled, so that loop bodies, macros, captured text, slices,
comparisons and `~` pay; arithmetic and calls are intercepted by the sandbox; filters and tests are wrapped.
What cannot be bounded usefully (`lipsum`, `str.format`, …) is not there.

A template may extend, include and import others by their names, written out: all files of a rendering pay from one
budget (`SharedBudget`), and go through the same checks and the same rewriting.
"""

import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from datetime import date, datetime, time, timedelta
from functools import wraps
from itertools import chain
from types import GeneratorType
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes
from jinja2.environment import TemplateModule
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Macro, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace, htmlsafe_json_dumps, pass_context
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from channels.filters import FILTERS as LOCALISED
from channels.filters import PER_CHARACTER

BUDGET: Final = 1_000_000
"""Units of one rendering; about a quarter of a second at worst. A table row of five columns takes some 200."""
CHARS_PER_UNIT: Final = 8
MAX_TEXT: Final = 1024 * 1024
"""Characters of any text that a template makes, its output included."""
MAX_ITEMS: Final = 100_000
"""Items of any list that a template makes or hands to a filter, inner ones counted."""
MAX_BITS: Final = 4096
"""Of an integer; Python itself refuses to print more than 4,300 digits."""
MAX_CALLS: Final = 64
"""Nested macro calls and recursive loops."""
MAX_WIDTH: Final = 1000
"""Of `center`, `wordwrap`, `truncate`, `batch` and the like."""
SLOW_TEXT: Final = 64 * 1024
"""Characters for filters whose time grows faster than their input."""

_STEP: Final = 10
_CALL: Final = 50
_CONTEXT: Final = 100
"""Units of another file's context, the looking up of its template included."""
_SCALARS: Final = float | None | date | time | timedelta | Undefined
_VIEWS: Final = KeysView | ValuesView | ItemsView


class TooCostly(Exception):
    """The template needs more than it may use."""


class Budget(Context):
    """The context of one rendering, and what is left of its budget.

    Attributes:
        tongue: the locale of the words that are rendered, if it is known.
    """

    tongue: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left = BUDGET
        self.depth = 0

    def spend(self, units: int) -> None:
        """Pay.

        Raises:
            TooCostly: the budget does not hold so much.
        """
        self.left -= units
        if self.left < 0:
            raise TooCostly("takes too many steps: too much looping, or text and lists that grow too large")


class _Purse:
    """What the files of one rendering have in common."""

    __slots__ = ("depth", "left", "tongue")

    def __init__(self) -> None:
        self.left, self.depth, self.tongue = BUDGET, 0, None


_PURSE: Final = " purse"
"""Where a context's data, which Jinja2 hands on to the files that it includes, has the purse."""


def _of_purse(name: str) -> property:
    return property(
        lambda self: getattr(self.purse, name),
        lambda self, value: setattr(self.purse, name, value),
    )


class SharedBudget(Budget):
    """The context of one of several files: they pay from one purse. Making a context is paid for as well."""

    left = _of_purse("left")
    depth = _of_purse("depth")
    tongue = _of_purse("tongue")

    def __init__(self, environment: Any, parent: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        Context.__init__(self, environment, parent, *args, **kwargs)
        found = parent.get(_PURSE)  # an event may have data of any name, but none of this type
        if not isinstance(found, _Purse):
            found = parent[_PURSE] = _Purse()
        self.purse = found
        self.spend(_CONTEXT + len(parent) // CHARS_PER_UNIT)


def weigh(value: object) -> int:
    """What it costs to walk through a value, everything in it included. Stops at the limits, however it is nested.

    Raises:
        TooCostly: a text, number or list in it is larger than allowed.
        TypeError: there is something in it that is not data.
    """
    if isinstance(value, str):
        return _text_units(value)
    if isinstance(value, int):
        return _int_units(value)
    if isinstance(value, _SCALARS):
        return 1
    return _weigh_nested(value)


def _text_units(value: str) -> int:
    if len(value) > MAX_TEXT:
        raise TooCostly(f"makes a text of more than {MAX_TEXT} characters")
    return 1 + len(value) // CHARS_PER_UNIT


def _int_units(value: int) -> int:
    if value.bit_length() > MAX_BITS:
        raise TooCostly(f"makes an integer of more than {MAX_BITS} bits")
    return 1


def _weigh_nested(value: object) -> int:
    units, items, pending = 0, 1, [iter((value,))]
    while pending:
        for item in pending[-1]:
            inner = _children(item)
            if inner is None:
                if isinstance(item, Undefined):
                    str(item)  # raises: a name that is missing is no data, in a list neither
                units += weigh(item)
                continue
            items += _length(item)
            if items > MAX_ITEMS:
                raise TooCostly(f"makes a list of more than {MAX_ITEMS} items, inner ones counted")
            pending.append(inner)
            break
        else:
            pending.pop()
    return units + items


def _children(item: object) -> Iterator[object] | None:
    if isinstance(item, str | int | _SCALARS):
        return None
    if isinstance(item, list | tuple):
        return iter(item)
    if isinstance(item, range):
        return iter(())
    if isinstance(item, Mapping):
        return chain(item.keys(), item.values())
    raise TypeError(f"{_kind(item)} cannot be used here: only texts, numbers, lists and mappings can")


def _length(value: Any) -> int:
    return 2 * len(value) if isinstance(value, Mapping) else len(value)


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _weigh_shallow(value: object) -> int:
    """The cost of passing over a value's items once, without looking into them."""
    if isinstance(value, str):
        return _text_units(value) + (len(value) if len(value) <= MAX_ITEMS else _refuse_items())
    if isinstance(value, list | tuple | Mapping | range | _VIEWS):
        return 1 + len(value) if len(value) <= MAX_ITEMS else _refuse_items()
    return 1


def _free(_value: object) -> int:
    return 1


def _refuse_items() -> int:
    raise TooCostly(f"makes a list of more than {MAX_ITEMS} items")


def _weigh_opaque(value: object) -> int:
    """The cost of data in full; of a macro, a generator, a namespace: of passing it on."""
    if isinstance(value, Macro | Namespace | LoopContext | GeneratorType | range) or callable(value):
        return 1
    if isinstance(value, _VIEWS):
        return 1 + len(value)
    return weigh(value)


def _paying(context: Budget, items: Iterator[Any]) -> Iterator[Any]:
    """A lazy filter's items, each paid for when it is taken."""
    for item in items:
        context.spend(_STEP)
        yield item


# ---------------------------------------------------------------------------------------------------------------
# Limits of single filters, checked before anything is allocated
# ---------------------------------------------------------------------------------------------------------------


def _bounded(value: object, most: int, what: str) -> None:
    if isinstance(value, int) and abs(value) > most:
        raise TooCostly(f"{what} should be at most {most}")


def _total(characters: int) -> None:
    if characters > MAX_TEXT:
        raise TooCostly(f"makes a text of more than {MAX_TEXT} characters")


def _len(value: object) -> int:
    return len(value) if isinstance(value, str) else len(str(value))


def _limit_numbers(name: str, most: int) -> Callable[..., None]:
    def limit(_value: object, *args: object, **kwargs: object) -> None:
        for argument in (*args, *kwargs.values()):
            _bounded(argument, most, f"each number given to the filter {name}")

    return limit


def _limit_slow(name: str, most: int = SLOW_TEXT) -> Callable[..., None]:
    numbers = _limit_numbers(name, MAX_WIDTH)

    def limit(value: object, *args: object, **kwargs: object) -> None:
        if isinstance(value, str) and len(value) > most:
            raise TooCostly(f"the filter {name} takes at most {most} characters")
        numbers(value, *args, **kwargs)

    return limit


def _limit_replace(value: object, old: object, new: object, count: int | None = None) -> None:
    text, found = str(value), str(old)
    times = text.count(found) if count is None or count < 0 else min(count, text.count(found))
    # Escaping, where it applies, makes each character at most six times as long.
    _total(len(text) + times * _len(new) * (6 if isinstance(value, Markup) else 1))


def _limit_indent(value: object, width: object = 4, *_flags: object, **_named: object) -> None:
    _bounded(width, 100, "the width of the filter indent")
    unit = len(width) if isinstance(width, str) else 100
    text = str(value)
    _total(len(text) + (len(text.splitlines()) + 1) * unit)


def _limit_wordwrap(value: object, *args: object, **kwargs: object) -> None:
    _limit_slow("wordwrap")(value, *args, **kwargs)
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, str) and len(argument) > 16:
            raise TooCostly("the filter wordwrap joins lines with at most 16 characters")


def _limit_join(value: Any, d: object = "", *_attribute: object, **_named: object) -> None:
    _total(len(value) * _len(d) * 6)


_DIRECTIVE = re.compile(r"%(?:\([^)]*\))?[#0 +-]*(\*|\d*)(?:\.(\*|\d*))?")


def _limit_format(value: object, *_args: object, **_kwargs: object) -> None:
    for match in _DIRECTIVE.finditer(str(value)):
        if any(part and (part == "*" or len(part) > 2) for part in match.groups()):
            raise TooCostly("the filter format takes widths of at most 99, written out")


def _limit_sum(_value: object, *args: object, **kwargs: object) -> None:
    if any(isinstance(start, list | tuple) for start in (*args, *kwargs.values())):
        raise TypeError("the filter sum adds numbers only")


_LIMITS: Final[Mapping[str, Callable[..., None]]] = {
    "batch": _limit_numbers("batch", MAX_WIDTH),
    "slice": _limit_numbers("slice", MAX_WIDTH),
    "center": _limit_numbers("center", MAX_WIDTH),
    "format": _limit_format,
    "indent": _limit_indent,
    "int": _limit_numbers("int", MAX_WIDTH),
    "join": _limit_join,
    "replace": _limit_replace,
    "round": _limit_numbers("round", 100),
    "striptags": _limit_slow("striptags"),
    "sum": _limit_sum,
    "title": _limit_slow("title"),
    "truncate": _limit_numbers("truncate", MAX_TEXT),
    "urlencode": _limit_slow("urlencode"),
    "urlize": _limit_slow("urlize"),
    "wordcount": _limit_slow("wordcount"),
    "wordwrap": _limit_wordwrap,
    "xmlattr": _limit_slow("xmlattr"),
}
_FREE: Final = frozenset({"count", "length", "default", "d", "first", "last", "attr"})
"""Filters that look at no item, or at one."""
_SHALLOW: Final = frozenset({"batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select"}) | {
    "selectattr",
    "slice",
}
_ABSENT: Final = frozenset({"pprint", "random"})
"""`random`: an attempt renders like the one before. `pprint`: shows Python's view of the data."""
_COSTLY_TESTS: Final = frozenset(
    {"!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt", "ne"}
    | {"lower", "upper"}
)


def _wrap_filter(name: str, function: Callable[..., Any], fee: int = _STEP) -> Callable[..., Any]:
    passed = getattr(function, "jinja_pass_arg", None)
    limit = _LIMITS.get(name)
    lazy = name in _FREE | _SHALLOW
    per_character = PER_CHARACTER.get(name, 0)
    weigher = _free if name in _FREE else _weigh_shallow if lazy else weigh

    @wraps(function)
    def paying(context: Budget, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not lazy and isinstance(value, Iterator | _VIEWS):
            value = list(value)
        context.spend(fee + weigher(value))
        for argument in (*args, *kwargs.values()):
            context.spend(_weigh_opaque(argument))
            context.spend(per_character * len(argument) if isinstance(argument, str) else 0)
        if limit is not None and not isinstance(value, Undefined):
            limit(value, *args, **kwargs)
        return _checked(context, function(*_first(passed, context), value, *args, **kwargs))

    return pass_context(paying)


def _first(passed: Any, context: Context) -> tuple[Any, ...]:
    """What Jinja2 hands to a function that asks for it, before its own arguments."""
    match getattr(passed, "name", None):
        case "context":
            return (context,)
        case "eval_context":
            return (context.eval_ctx,)
        case "environment":
            return (context.environment,)
        case _:
            return ()


def _checked(context: Budget, result: Any) -> Any:
    """A result, paid for; a lazy one is paid for item by item."""
    if isinstance(result, Iterator):
        return _paying(context, result)
    if isinstance(result, str):
        context.spend(_text_units(result))
    elif isinstance(result, int):
        context.spend(_int_units(result))
    elif isinstance(result, list | tuple | dict):
        context.spend(1 + len(result))
    return result


def _wrap_test(function: Any) -> Callable[..., Any]:
    passed = getattr(function, "jinja_pass_arg", None)

    @wraps(function)
    def paying(context: Budget, *args: Any) -> Any:
        for argument in args:
            context.spend(weigh(argument))
        return function(*_first(passed, context), *args)

    return pass_context(paying)


def _tojson(value: Any, indent: int | None = None) -> Markup:
    if indent is not None and (indent > 8 or weigh(value) > MAX_WIDTH):
        raise TooCostly("the filter tojson indents small values only, by at most 8")
    return htmlsafe_json_dumps(value, default=_json_default, indent=indent, ensure_ascii=False, allow_nan=False)


def _json_default(value: Any) -> Any:
    if isinstance(value, date | time):
        return value.isoformat()
    raise TypeError(f"{_kind(value)} cannot be written as JSON")


# ---------------------------------------------------------------------------------------------------------------
# What the rewritten tree calls. The names have a space: no template can write them; `map` could, to no use.
# ---------------------------------------------------------------------------------------------------------------


@pass_context
def _tick(context: Budget, units: int) -> bool:
    context.spend(max(int(units), _STEP))
    return True


@pass_context
def _weighed(context: Budget, value: Any) -> Any:
    context.spend(_weigh_opaque(value))
    return value


@pass_context
def _concat(context: Budget, parts: Sequence[Any]) -> str:
    texts = [_printable(context, part) for part in parts]
    # Joined with markup, plain text is escaped, to at most six times its length.
    markup = context.eval_ctx.autoescape or any(isinstance(part, Markup) for part in texts)
    _total(sum(_len(text) for text in texts) * (6 if markup and len(texts) > 1 else 1))
    joined = markup_join(texts) if markup else str_join(texts)
    context.spend(_text_units(joined))
    return joined


@pass_context
def _printable(context: Budget, value: Any) -> Any:
    """A value that is about to become text: paid for, and data only (not `<generator object …>`)."""
    if type(value) is str:
        context.left -= len(value) // CHARS_PER_UNIT + 1
        if context.left >= 0 and len(value) <= MAX_TEXT:
            return value
    context.spend(weigh(value))
    return value


class StrictData(StrictUndefined):
    """A missing name is an error as soon as it is used for anything but `is defined` and `default`."""

    __slots__ = ()


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TEXT_METHODS: Final = _names("""
    capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace
    istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex rpartition rsplit rstrip split
    splitlines startswith strip swapcase title upper
""")
_DATE_FIELDS: Final = _names("year month day date isoformat weekday isoweekday strftime")
_TIME_FIELDS: Final = _names("hour minute second microsecond time timestamp tzname utcoffset")
_LOOP_FIELDS: Final = _names("""
    index index0 revindex revindex0 first last length depth depth0 previtem nextitem cycle changed
""")
_ATTRIBUTES: Final[Mapping[type, frozenset[str]]] = {
    str: _TEXT_METHODS,
    Markup: _TEXT_METHODS,
    dict: _names("get items keys values"),
    date: _DATE_FIELDS,
    datetime: _DATE_FIELDS | _TIME_FIELDS,
    LoopContext: _LOOP_FIELDS,
}
_SPLITS: Final = frozenset({"split", "rsplit", "splitlines"})


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment; one for templates that escape HTML and one for those that do not.

    Attributes:
        strict: what a template can never do without failing is a fault of the template itself.
    """

    context_class = Budget
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, *, autoescape: bool, strict: bool = False) -> None:
        # Templates are cached by the renderer, so not here as well; constants are not folded at compile time,
        # where there is no budget.
        super().__init__(autoescape=autoescape, undefined=StrictData, finalize=_printable, cache_size=0)
        self.optimized = False
        self.strict = strict
        self.globals = {"range": safe_range, "namespace": Namespace}
        self.filters["tojson"] = _tojson
        self.filters = {
            name: _wrap_filter(name, function) for name, function in self.filters.items() if name not in _ABSENT
        } | {" tick": _tick, " weighed": _weighed, " concat": _concat}
        self.filters |= {name: _wrap_filter(name, function, fee) for name, (function, fee) in LOCALISED.items()}
        self.tests = self.tests | {name: _wrap_test(self.tests[name]) for name in _COSTLY_TESTS}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field of data before a method of the same name: `order.items` is what the event says."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        if attribute in _ATTRIBUTES.get(type(obj), ()):
            return getattr(obj, attribute)
        if isinstance(obj, Undefined):
            str(obj)  # raises what is wrong with it
        if isinstance(obj, Namespace | TemplateModule) and not attribute.startswith("_"):
            return self._of_namespace(obj, attribute)
        if hasattr(type(obj), attribute):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def _of_namespace(self, obj: Namespace | TemplateModule, attribute: str) -> Any:
        try:
            return getattr(obj, attribute)
        except AttributeError:
            return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, by a text or a number: to hash anything else can take for ever."""
        if not isinstance(argument, str | int):
            raise TypeError(f"{_kind(argument)} cannot be a key")
        if isinstance(obj, Undefined):
            return obj[argument]
        if not isinstance(obj, Mapping | list | tuple | str | range):
            raise TypeError(f"{_kind(obj)} has no items")
        try:
            return obj[argument]  # type: ignore[index]
        except (LookupError, TypeError):
            return self.undefined(f"{_kind(obj)} has no such item")

    def call(__self, __context: Budget, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: N805
        """Call a macro or an allowed method, its arguments paid for.

        Its own names are mangled as in Jinja2, so that a macro may have parameters of any name.
        """
        if not callable(__obj):
            return __context.call(__obj, *args, **kwargs)
        __self._pay_for_call(__context, __obj, args, kwargs)
        __context.depth += 1
        try:
            return _checked(__context, __context.call(__obj, *args, **kwargs))
        finally:
            __context.depth -= 1

    def _pay_for_call(self, context: Budget, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if context.depth >= MAX_CALLS:
            raise TooCostly(f"nests more than {MAX_CALLS} calls")
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        context.spend(_CALL + (_text_units(owner) if isinstance(owner, str) else 1))
        for argument in (*args, *kwargs.values()):
            context.spend(_weigh_opaque(argument))
        if name in _SPLITS and isinstance(owner, str):
            _weigh_shallow(owner)
        if name == "strftime" and len(str(args[:1])) > 100:
            raise TooCostly("strftime takes a short format")

    def call_binop(self, context: Budget, operator: str, left: Any, right: Any) -> Any:  # type: ignore[override]
        """An arithmetic operation, refused where its result would be too large."""
        context.spend(_weigh_opaque(left) + _weigh_opaque(right))
        check = _BINOPS.get(operator)
        if check is not None:
            check(left, right)
        result = self.binop_table[operator](left, right)
        return _checked(context, result)


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_add(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _total(6 * (_size(left) + _size(right)) if isinstance(left, Markup) else _size(left) + _size(right))
    elif _size(left) + _size(right) > MAX_ITEMS:
        _refuse_items()


def _check_multiply(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
        return
    sequence, times = (left, right) if isinstance(right, int) else (right, left)
    if isinstance(times, int):
        grown = _size(sequence) * max(times, 0)
        _total(grown)
        if not isinstance(sequence, str) and grown > MAX_ITEMS:
            _refuse_items()


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TooCostly(f"makes an integer of more than {MAX_BITS} bits")


def _check_modulo(left: Any, _right: Any) -> None:
    if isinstance(left, str):
        raise SecurityError("% on a text is not available: use ~ or the filter format")


_BINOPS: Final[Mapping[str, Callable[[Any, Any], None]]] = {
    "+": _check_add,
    "*": _check_multiply,
    "**": _check_power,
    "%": _check_modulo,
}


# ---------------------------------------------------------------------------------------------------------------
# The tree
# ---------------------------------------------------------------------------------------------------------------

MAX_NODES: Final = 10_000
"""Nodes of a template's syntax tree; compiling takes some 30 µs for each."""
Reference = nodes.Extends | nodes.Include | nodes.Import | nodes.FromImport
_WORDS: Final[Mapping[type[nodes.Node], str]] = {
    nodes.Extends: "extends",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from … import",
}


def forbidden(tree: nodes.Template, environment: Sandbox) -> Iterator[tuple[int, str]]:
    """The line and the fault of every construct that is not available."""
    for node in _walk(tree):
        if isinstance(node, Reference):
            yield from _wrong_reference(node, tree)
        elif isinstance(node, nodes.Filter) and node.name not in environment.filters:
            yield node.lineno, f"there is no filter {node.name!r}"
        elif isinstance(node, nodes.Test) and node.name not in environment.tests:
            yield node.lineno, f"there is no test {node.name!r}"


def _wrong_reference(node: Reference, tree: nodes.Template) -> Iterator[tuple[int, str]]:
    """What another file is used for must be known beforehand: which, and that it is there."""
    word = _WORDS[type(node)]
    if not (isinstance(node.template, nodes.Const) and isinstance(node.template.value, str)):
        yield node.lineno, f"{word} takes the name of a file in quotes"
    if isinstance(node, nodes.Include) and node.ignore_missing:
        yield node.lineno, "include … ignore missing is not available: the file has to be there"
    first = next((n for n in tree.body if isinstance(n, nodes.Extends)), None)
    if isinstance(node, nodes.Extends) and node is not first:
        yield node.lineno, "extends should stand once, outside of everything else"


def references(tree: nodes.Template) -> list[tuple[int, str]]:
    """The line and the name of every file that a template extends, includes or imports."""
    found = (node for node in _walk(tree) if isinstance(node, Reference))
    names = [(node.lineno, node.template.value) for node in found if isinstance(node.template, nodes.Const)]
    return sorted(names)


def metered(tree: nodes.Template, *, part: bool = False) -> nodes.Template:
    """The tree, rewritten so that it pays for what it does.

    Args:
        tree: of one file.
        part: it is one that others use, and they may do so often.

    Raises:
        TemplateSyntaxError: it is larger than `MAX_NODES`.
    """
    if sum(1 for _ in _walk(tree)) > MAX_NODES:
        raise TemplateSyntaxError(f"has more than {MAX_NODES} parts", 1)
    if part:
        tree.body.insert(0, _ticking(tree.body, 1))
    result = _Meter().visit(tree)
    assert isinstance(result, nodes.Template)  # noqa: S101  # the transformer keeps the root
    result.set_environment(tree.environment)  # type: ignore[arg-type]
    return result


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    pending = [node]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(current.iter_child_nodes())


def _cost(body: Sequence[nodes.Node]) -> int:
    """Units of one pass through a body: its parts, and the text that stands in it."""
    inner = [node for statement in body for node in _walk(statement)]
    text = sum(len(node.data) for node in inner if isinstance(node, nodes.TemplateData))
    return max(_STEP, len(inner) + text // CHARS_PER_UNIT)


def _call(value: nodes.Expr, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=line)


def _ticking(body: Sequence[nodes.Node], line: int) -> nodes.ExprStmt:
    cost = nodes.Const(_cost(body), lineno=line)
    return nodes.ExprStmt(_call(cost, " tick", line), lineno=line)


class _Meter(NodeTransformer):
    """Puts the payments into a tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        node.body.insert(0, _ticking(node.body, node.lineno))
        if node.test is not None:
            # Items that the condition filters out are paid for too.
            tick = _call(nodes.Const(_cost([node.test]), lineno=node.lineno), " tick", node.lineno)
            node.test = nodes.And(tick, node.test, lineno=node.lineno)
        return self.generic_visit(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        node.body.insert(0, _ticking(node.body, node.lineno))
        return self.generic_visit(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:  # noqa: N802
        node.body.insert(0, _ticking(node.body, node.lineno))
        return self.generic_visit(node)

    def visit_Include(self, node: nodes.Include) -> nodes.Node:  # noqa: N802
        return self._with_context(node)

    def visit_Import(self, node: nodes.Import) -> nodes.Node:  # noqa: N802
        return self._with_context(node)

    def visit_FromImport(self, node: nodes.FromImport) -> nodes.Node:  # noqa: N802
        return self._with_context(node)

    def _with_context(self, node: nodes.Include | nodes.Import | nodes.FromImport) -> nodes.Node:
        """Without its user's context a file would be run once for all renderings, with a budget of its own."""
        node.with_context = True
        return self.generic_visit(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        node.body.insert(0, _ticking(node.body, node.lineno))
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call(nodes.Tuple(node.nodes, "load", lineno=node.lineno), " concat", node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        contains = any(operand.op in {"in", "notin"} for operand in node.ops)
        if contains or not any(isinstance(operand, nodes.Const) for operand in operands):
            node.expr = self._weighed(node.expr)
            for operand in node.ops:
                operand.expr = self._weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _call(node, " weighed", node.lineno)
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) and node.ctx == "load":
            # The same lookup, and a message that may name the key: it stands in the template, not in the data.
            return nodes.Getattr(node.node, node.arg.value, "load", lineno=node.lineno)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = self._weighed(node.key)
        return node

    @staticmethod
    def _weighed(node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else _call(node, " weighed", node.lineno)
