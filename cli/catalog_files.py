"""Reading notification definitions from YAML files: everything is checked before anything is written.

A content field may be `{file: name}`: read from the definition's own folder or one below the PATH that was given. What
templates extend, include and import is read along (`cli/catalog_partials.py`), and a mail's HTML is made ready to be
sent (`cli/catalog_mail.py`): what is stored stands for itself.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from channels.mjml import MjmlError, html_of
from channels.rendering import TemplateRenderer
from channels.schema import check_schema
from cli.catalog_mail import Styled, every_content
from cli.catalog_partials import Partials, Unusable, used
from domain.locales import LOCALES, SHARED, Shared
from domain.notification import Definition, check_content, templates
from domain.text import faults_of
from domain.vocabulary import Channel

MAX_FILE = 1024 * 1024
"""Bytes of one file: a larger one is no definition and no template."""
MAX_VALUES = 100_000
"""Values of one document, aliases followed: a few lines of YAML can stand for billions."""
_SUFFIXES = frozenset({".yaml", ".yml"})


@dataclass(frozen=True, slots=True)
class Found:
    """Something worth telling about a place in a file."""

    place: str
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.field}: {self.text}" if self.field else f"{self.place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """The definitions of some files, where each stands, and what is wrong with or doubtful about them."""

    definitions: dict[str, Definition] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    faults: list[Found] = field(default_factory=list)
    warnings: list[Found] = field(default_factory=list)


def load_catalog(paths: Sequence[Path]) -> Catalog:
    """Read every `*.yaml` and `*.yml` of the paths, each a file or a folder with all below it.

    Hidden files and folders are left out. Reading goes on after a fault, so that all are told at once.
    """
    catalog, renderer = Catalog(), TemplateRenderer(strict=True)
    seen: set[Path] = set()
    for path in paths:
        files = list(_files(path, catalog))
        for file in files:
            if (real := file.resolve()) not in seen:
                seen.add(real)
                _load_file(file, path if path.is_dir() else path.parent, catalog, renderer)
    return catalog


def _files(path: Path, catalog: Catalog) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = [file for file in sorted(path.rglob("*")) if file.suffix in _SUFFIXES and not _hidden(file, path)]
    if not found:
        catalog.faults.append(Found(str(path), "", "the folder holds no *.yaml or *.yml file"))
    yield from found


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def _load_file(file: Path, root: Path, catalog: Catalog, renderer: TemplateRenderer) -> None:
    try:
        documents = list(_documents(file))
    except Unusable as error:
        catalog.faults.append(Found(str(file), "", str(error)))
        return
    except yaml.YAMLError as error:
        catalog.faults.append(_syntax(file, error))
        return
    if not documents:
        catalog.faults.append(Found(str(file), "", "holds no definition"))
    for document in documents:
        _Reading(file, root, catalog, renderer, document).read()


# ---------------------------------------------------------------------------------------------------------------
# YAML
# ---------------------------------------------------------------------------------------------------------------


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML with JSON's scalars: `on` is a word and not True, a date is a text. A key that stands twice is a fault."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are texts, each of them once."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, "a key should be a text: quote it", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands here twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


@dataclass(frozen=True, slots=True)
class _Document:
    value: Any
    node: Any

    def line(self, path: str) -> int:
        """The line of a field, or of the innermost part of its path that is there."""
        node, line = self.node, self.node.start_mark.line
        for name in path.split("."):
            entry = _entry(node, name)
            if entry is None:
                break
            line, node = entry
        return int(line) + 1


def _entry(node: Any, name: str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line, value) for key, value in node.value if key.value == name), None)
    if isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
        return node.value[int(name)].start_mark.line, node.value[int(name)]
    return None


def _documents(file: Path) -> Iterator[_Document]:
    loader = _Loader(_text(file))
    try:
        while loader.check_node():
            node = loader.get_node()
            value = loader.construct_document(node)
            if value is not None:
                _check_values(value)
                yield _Document(value, node)
    except RecursionError:
        raise Unusable("is nested too deeply") from None
    finally:
        loader.dispose()


def _check_values(value: Any) -> None:
    """Refuse what does not end, and numbers that JSON does not have."""
    left, level = MAX_VALUES, [value]
    while level:
        item = level.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise Unusable("has a number that is infinite or none")
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        left -= len(inner)
        if left < 0:
            raise Unusable(f"stands for more than {MAX_VALUES} values")
        level.extend(inner)


def _syntax(file: Path, error: yaml.YAMLError) -> Found:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    return Found(f"{file}:{mark.line + 1}" if mark else str(file), "", f"is not usable YAML: {problem}")


def _text(file: Path) -> str:
    try:
        if not file.is_file():
            raise Unusable("there is no such file" if not file.exists() else "is not a file")
        if (size := file.stat().st_size) > MAX_FILE:
            raise Unusable(f"is too large: {size} bytes; the limit is {MAX_FILE}")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Unusable(f"is not UTF-8: byte {error.start}") from None


# ---------------------------------------------------------------------------------------------------------------
# Definitions
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reading:
    """One document on its way to a definition.

    Attributes:
        compiled: the places of the HTML that comes from MJML.
        included: by place, the file that its text is in.
    """

    file: Path
    root: Path
    catalog: Catalog
    renderer: TemplateRenderer
    document: _Document
    compiled: set[str] = field(default_factory=set)
    included: dict[str, str] = field(default_factory=dict)

    def read(self) -> None:
        """Files → shape → templates and schema → styles → name.

        What follows from a fault is not told, all else at once.
        """
        before = len(self.catalog.faults)
        if not isinstance(self.document.value, dict):
            self._fault("", "should be a mapping with name, on and channels")
            return
        raw = self._with_partials(self._with_files(self.document.value))
        definition = self._shaped(raw)
        for name, fault in _faults_inside(self.renderer, raw):
            self._fault(name, fault)
        if definition is None:
            return
        self._doubt(definition)
        if len(self.catalog.faults) == before:
            self._keep(self._styled(definition, raw))

    def _with_files(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        channels = raw.get("channels")
        if not isinstance(channels, dict):
            return dict(raw)
        read = {name: self._content(name, item) if isinstance(item, dict) else item for name, item in channels.items()}
        return {**raw, "channels": read}

    def _content(self, channel: str, content: Mapping[str, Any]) -> dict[str, Any]:
        place, locales = f"channels.{channel}", content.get(LOCALES)
        read = self._words(place, {name: value for name, value in content.items() if name != LOCALES})
        if LOCALES not in content:
            return read
        if not isinstance(locales, dict):
            return {**read, LOCALES: locales}
        own = {
            tag: self._words(f"{place}.{LOCALES}.{tag}", words) if isinstance(words, dict) else words
            for tag, words in locales.items()
        }
        return {**read, LOCALES: own}

    def _words(self, place: str, content: Mapping[str, Any]) -> dict[str, Any]:
        read = {name: self._value(f"{place}.{name}", value) for name, value in content.items()}
        is_mail = place.split(".")[1] == Channel.EMAIL
        return self._from_mjml(place, read) if is_mail and isinstance(read.get("mjml"), str) else read

    def _from_mjml(self, place: str, words: dict[str, Any]) -> dict[str, Any]:
        """The words with `html` in the place of `mjml`."""
        source = words.pop("mjml")
        if words.get("html") is not None:
            self._fault(f"{place}.mjml", "stands beside html: give one of the two")
            return words
        self.compiled.add(f"{place}.html")
        try:
            return {**words, "html": html_of(source) if source else ""}  # empty: it could not be read
        except MjmlError as error:
            self._fault(f"{place}.mjml", str(error))
            return {**words, "html": ""}

    def _value(self, place: str, value: Any) -> Any:
        if not isinstance(value, dict) or place.endswith(".headers"):
            return value
        if value.keys() != {"file"} or not isinstance(value["file"], str):
            self._fault(place, "should be a text, or {file: name}")
            return ""
        self.included[place] = value["file"]
        try:
            return self._included(value["file"])
        except Unusable as error:
            self._fault(place, f"file {value['file']}: {error}")
            return ""

    def _included(self, name: str) -> str:
        """The text of a file inside the catalog folder; links are followed first, so that none leads outside."""
        try:
            path = (self.file.resolve().parent / name).resolve()
        except (OSError, ValueError, RuntimeError):
            raise Unusable("is not a file's name") from None
        if Path(name).is_absolute() or not path.is_relative_to(self.root.resolve()):
            raise Unusable(f"lies outside {self.root}: only files of the catalog folder are read")
        return _text(path)

    def _with_partials(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The definition with the files that its templates use; those that stand in it already stay."""
        given = raw.get("partials", {})
        if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
            return raw
        partials = Partials(self.file.resolve().parent, self.root, self.renderer, _text, dict(given))
        for name, text in given.items():
            self._tell(f"partials.{name}", partials.collect(text))
        for place, words in every_content(raw):
            for field_, source in templates(words):
                self._tell(f"{place}.{field_}", partials.collect(source))
        return {**raw, "partials": used(partials.sources)} if partials.sources else raw

    def _tell(self, path: str, faults: Iterable[str]) -> None:
        for fault in faults:
            self._fault(path, fault)

    def _styled(self, definition: Definition, raw: Mapping[str, Any]) -> Definition:
        """The definition with styles inlined; as it is, where that makes a template too large."""
        styled = Styled.of(raw, frozenset(self.compiled))
        for place, why in styled.left:
            self._warn(place, why)
        result = Definition.model_validate(styled.raw)
        if result == definition:
            return definition
        if faults := [f for c, content in result.contents.items() for f in self.renderer.check(c, content)]:
            self._warn("channels", f"styles are not inlined, for with them {faults[0]}")
            return definition
        return result

    def _shaped(self, raw: Mapping[str, Any]) -> Definition | None:
        try:
            return Definition.model_validate(raw)
        except ValidationError as error:
            for fault in faults_of(error):
                if fault.field or not fault.fault.startswith("channels."):  # those are told one by one
                    self._fault(fault.field, fault.fault)
            return None

    def _doubt(self, definition: Definition) -> None:
        for channel, content in definition.contents.items():
            known = dict.fromkeys(_guaranteed(definition))
            for name in self.renderer.missing(channel, content, known):
                self._warn(f"channels.{channel}", f"uses {name}, which is not required: {_CONSEQUENCE}")
                known[name] = None
            for tag in content.get(LOCALES) or ():
                for name in self.renderer.missing(channel, content, known, tag):
                    place = f"channels.{channel}.{LOCALES}.{tag}"
                    self._warn(place, f"uses {name}, which is not required: {_CONSEQUENCE_THERE}")

    def _keep(self, definition: Definition) -> None:
        name = definition.name
        if name in self.catalog.definitions:
            self._fault("name", f"{name} is defined in {self.catalog.places[name]} already")
            return
        self.catalog.definitions[name] = definition
        self.catalog.places[name] = self._place("name")

    def _place(self, path: str) -> str:
        return f"{self.file}:{self.document.line(path)}"

    def _fault(self, path: str, text: str) -> None:
        if path in self.included and text.startswith("line "):  # of that file, and not of this one
            text = f"{self.included[path]} {text}"
        self.catalog.faults.append(Found(self._place(path), path, text))

    def _warn(self, path: str, text: str) -> None:
        self.catalog.warnings.append(Found(self._place(path), path, text))


_CONSEQUENCE = "an event without it is not delivered (template_error)"
_CONSEQUENCE_THERE = "an event without it is not delivered to recipients of this locale (template_error)"


def _guaranteed(definition: Definition) -> Iterable[str]:
    """The names that every event which gets as far as the templates has."""
    required = (definition.data_schema or {}).get("required", ())
    return (*definition.required, *(name for name in required if isinstance(name, str)))


def _faults_inside(renderer: TemplateRenderer, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and fault of each channel's content and of the schema, also where the definition has other faults.

    The templates of a channel are looked at only if it has the fields that it should have.
    """
    channels, partials = raw.get("channels"), raw.get("partials")
    shared = Shared(tuple(partials.items())) if isinstance(partials, dict) else Shared()
    for name, content in channels.items() if isinstance(channels, dict) else ():
        if name in set(Channel) and isinstance(content, dict):
            channel = Channel(name)
            for fault in check_content(channel, content) or renderer.check(channel, {**content, SHARED: shared}):
                yield f"channels.{fault.field}", fault.fault
    if isinstance(raw.get("schema"), dict):
        for fault in check_schema(raw["schema"]):
            yield fault.field, fault.fault
