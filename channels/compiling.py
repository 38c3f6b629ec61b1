"""From a template's source to code that can be rendered, file by file, and what is known of it before.

Every file goes through the sandbox's checks and rewriting by itself. What a template needs of an event's data is found
along its way through the files that it extends, includes and imports.
"""

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Final

from jinja2 import BaseLoader, Environment, Template, TemplateNotFound, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables

from channels.given import GIVEN, METHODS, field_faults
from channels.literals import literal_faults
from channels.sandbox import Sandbox, SharedBudget, forbidden, metered, references
from domain.notification import check_partial_name

MAX_SOURCE: Final = 128 * 1024
"""Characters of one template. Mail clients clip a message of more than about 100 KB."""
MAX_CODE: Final = 32 * 1024
"""Characters between `{{ }}` and `{% %}` of one template: reading them takes some 5 µs each."""
MAX_TAGS: Final = 3000
"""`{{` and `{%` of one template: compiling takes some 50 µs and 10 KB each."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_TAG = re.compile(r"\{[{%].*?(?:[%}]\}|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Outline:
    """What a file, or a block of one, evaluates whatever the data is.

    Attributes:
        names: that it reads.
        fields: the `x` of `data.x`.
        blocks: that stand in it.
        files: that it includes or imports.
        above: it calls `super()`.
    """

    names: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    blocks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    above: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One file, compiled, or why it cannot be.

    Attributes:
        faults: what is wrong with it, with the line; it has no code then.
        references: the line and the name of each file that it uses.
        extends: the file that it fills the blocks of.
        undeclared: the names that it reads and does not set.
        assigned: the names that it sets anywhere.
    """

    code: CodeType | None = None
    faults: tuple[str, ...] = ()
    size: int = 0
    references: tuple[tuple[int, str], ...] = ()
    extends: str | None = None
    root: Outline = Outline()
    blocks: Mapping[str, Outline] = field(default_factory=dict)
    undeclared: frozenset[str] = frozenset()
    assigned: frozenset[str] = frozenset()

    @property
    def alone(self) -> bool:
        """Whether it is rendered in one context, that of its own."""
        return not self.references and not self.blocks


def size_of(source: str) -> int:
    """What a template takes in memory, about: a tag becomes a line or two of Python."""
    return len(source) + 1000 * _tags(source) + 1000


def compiled(environment: Sandbox, source: str, name: str | None = None) -> Part:
    """Check and compile one file; `name` is that of one that others use."""
    try:
        return _parsed(environment, source, name)
    except TemplateSyntaxError as error:
        fault = f"line {error.lineno}: {shortened(error.message or 'cannot be read')}"
    except (RecursionError, MemoryError, SyntaxError):
        fault = "is nested too deeply"
    except (ValueError, OverflowError) as error:
        fault = f"cannot be read ({type(error).__name__})"
    return Part(faults=(fault,), size=size_of(source))


def _parsed(environment: Sandbox, source: str, name: str | None) -> Part:
    if len(source) > MAX_SOURCE or _tags(source) > MAX_TAGS or _code(source) > MAX_CODE:
        fault = f"is too large: {MAX_SOURCE} characters, {MAX_TAGS} tags and {MAX_CODE} characters in them are the most"
        return Part(faults=(fault,), size=len(source))
    tree = environment.parse(source)
    wrong = tuple(forbidden(tree, environment))
    if environment.strict:
        wrong = (*wrong, *literal_faults(tree), *field_faults(tree, set(_assigned(tree))))
    faults = tuple(f"line {line}: {fault}" for line, fault in wrong)
    if faults:
        return Part(faults=faults, size=size_of(source))
    known = _known(tree)
    code = environment.compile(metered(tree, part=name is not None), name)
    return Part(code, size=size_of(source), **known)


def _tags(source: str) -> int:
    return source.count("{{") + source.count("{%")


def _code(source: str) -> int:
    return sum(len(tag[0]) for tag in _TAG.finditer(source))


def shortened(message: str) -> str:
    """A message of Jinja2's in one line."""
    return _CONTROL.sub(" ", message)[:200]


# ---------------------------------------------------------------------------------------------------------------
# What a file evaluates whatever the data is
# ---------------------------------------------------------------------------------------------------------------


def _known(tree: nodes.Template) -> dict[str, Any]:
    return {
        "references": tuple(references(tree)),
        "extends": next((n.template.value for n in tree.body if isinstance(n, nodes.Extends)), None),  # type: ignore[attr-defined]
        "root": _outline(tree),
        "blocks": {block.name: _outline(block) for block in tree.find_all(nodes.Block)},
        "undeclared": frozenset(find_undeclared_variables(tree)),
        "assigned": frozenset(_assigned(tree)),
    }


def _outline(top: nodes.Node) -> Outline:
    found = [node for child in top.iter_child_nodes() for node in _evaluated(child)]
    names = {node.name for node in found if isinstance(node, nodes.Name) and node.ctx == "load"}
    files = [n.template.value for n in found if isinstance(n, nodes.Include | nodes.Import | nodes.FromImport)]  # type: ignore[attr-defined]
    return Outline(
        names=frozenset(names - {"super"}),
        fields=frozenset(_fields(found)),
        blocks=tuple(node.name for node in found if isinstance(node, nodes.Block)),
        files=tuple(files),
        above="super" in names,
    )


def _fields(found: Sequence[nodes.Node]) -> set[str]:
    """The `x` of every `data.x` and `data['x']`."""
    fields = set()
    for node in found:
        match node:
            case nodes.Getattr(node=nodes.Name(name="data"), attr=str(attribute)):
                fields.add(attribute)
            case nodes.Getitem(node=nodes.Name(name="data"), arg=nodes.Const(value=str(key))):
                fields.add(key)
            case _:
                pass
    return fields - METHODS


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
        case nodes.Macro() | nodes.CallBlock() | nodes.With() | nodes.FilterBlock() | nodes.Block():
            return iter(())
        case nodes.Test(name="defined" | "undefined") | nodes.Filter(name="default" | "d"):
            return iter(())
        case _:
            return node.iter_child_nodes()


def _assigned(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all((nodes.Name, nodes.Macro, nodes.Import, nodes.FromImport)):
        match node:
            case nodes.Name(ctx="store" | "param", name=name) | nodes.Macro(name=name) | nodes.Import(target=name):
                yield name
            case nodes.FromImport(names=names):
                yield from (each if isinstance(each, str) else each[1] for each in names)
            case _:
                pass


# ---------------------------------------------------------------------------------------------------------------
# Several files
# ---------------------------------------------------------------------------------------------------------------


class Linked(BaseLoader):
    """The files that the templates of one notification use, and the environment in which they find each other."""

    def __init__(self, environment: Sandbox, partials: Sequence[tuple[str, str]]) -> None:
        self._sources = dict(partials)
        self._parts: dict[str, Part] = {}
        self.size = sum(size_of(source) for source in self._sources.values())
        self._too_many = sum(map(_tags, self._sources.values())) > MAX_TAGS
        self.environment = environment.overlay(loader=self, cache_size=-1, auto_reload=False)
        self.environment.context_class = SharedBudget

    def part(self, name: str) -> Part | None:
        """One of the files, compiled when it is first asked for; None if there is none of this name."""
        if name not in self._parts and name in self._sources:
            self._parts[name] = self._compiled(name)
        return self._parts.get(name)

    def _compiled(self, name: str) -> Part:
        if self._too_many:  # all of them are compiled at once, by whoever needs the first
            return Part(faults=(f"is one of several files with more than {MAX_TAGS} tags together",))
        return compiled(self.environment, self._sources[name], name)

    def load(
        self,
        environment: Environment,
        name: str,
        globals: MutableMapping[str, Any] | None = None,  # noqa: ARG002  # the same for all
    ) -> Template:
        """What Jinja2 asks for when a template is rendered.

        Raises:
            TemplateNotFound: there is none, or it cannot be used; `link_faults` has told so before.
        """
        part = self.part(name)
        if part is None or part.code is None:
            raise TemplateNotFound(name)
        return environment.template_class.from_code(environment, part.code, environment.globals)


Find = Callable[[str], Part | None]


def link_faults(part: Part, find: Find) -> tuple[str, ...]:
    """What is wrong with the files that a file uses, and which is missing: each fault with the file and the line."""
    return tuple(_link_faults(part, find, (), set()))


def _link_faults(part: Part, find: Find, trail: tuple[str, ...], seen: set[str]) -> Iterator[str]:
    place = f"{trail[-1]} " if trail else ""
    for line, name in part.references:
        found = find(name)
        if name in trail:
            yield f"{place}line {line}: goes round in a circle: {' → '.join((*trail, name))}"
        elif found is None:
            yield f"{place}line {line}: there is no partial {name!r}{_why(name)}"
        elif name not in seen:
            seen.add(name)
            yield from (f"{name} {fault}" for fault in found.faults)
            yield from _link_faults(found, find, (*trail, name), seen)


def _why(name: str) -> str:
    try:
        check_partial_name(name)
    except ValueError as error:
        return f": it {error}"
    return ""


def needs(part: Part, find: Find) -> frozenset[str]:
    """The names of `data` that a template uses for certain, in its own file or in one that it uses."""
    names, fields, parts = set[str](), set[str](), [part]
    for outline, owner in _way(part, find, set()):
        names |= outline.names
        fields |= outline.fields
        parts.append(owner)
    undeclared = frozenset[str]().union(*(each.undeclared for each in parts))
    # What one file sets another may read; a name that is set nowhere must come from the event.
    assigned = frozenset[str]().union(*(each.assigned for each in parts)) if not part.alone else frozenset[str]()
    return frozenset((names & undeclared) - assigned - GIVEN | fields)


def _way(part: Part, find: Find, seen: set[object]) -> Iterator[tuple[Outline, Part]]:
    """The outlines on the way through a template: the outermost layout, with the innermost files' blocks in it.

    Each is gone through once, however often it is used: `seen` holds those that were.
    """
    line = [part]
    while (above := line[-1].extends) is not None and (found := find(above)) is not None:
        line.append(found)
    yield from ((Outline(), owner) for owner in line)
    yield from _through(line[-1].root, line, find, seen)


def _through(outline: Outline, line: Sequence[Part], find: Find, seen: set[object]) -> Iterator[tuple[Outline, Part]]:
    yield outline, line[-1]
    for name in outline.files:
        if name not in seen and (found := find(name)) is not None:
            seen.add(name)
            yield from _way(found, find, seen)
    for name in outline.blocks:
        yield from _block(name, line, find, seen)


def _block(name: str, line: Sequence[Part], find: Find, seen: set[object]) -> Iterator[tuple[Outline, Part]]:
    for owner in line:
        if (outline := owner.blocks.get(name)) is not None:
            if (id(owner), name) not in seen:
                seen.add((id(owner), name))
                yield from _through(outline, line, find, seen)
            if not outline.above:
                return
