"""Reading notification definitions from YAML files: everything is checked before anything is written.

A content field may be `{file: name}`: read from the definition's own folder or one below the PATH that was given.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from channels.rendering import TemplateRenderer
from channels.schema import check_schema
from domain.notification import Definition, check_content
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


class _Unusable(Exception):
    """A file or a field that cannot be read; the message says why."""


def load_catalog(paths: Sequence[Path]) -> Catalog:
    """Read every `*.yaml` and `*.yml` of the paths, each a file or a folder with all below it.

    Hidden files and folders are left out. Reading goes on after a fault, so that all are told at once.
    """
    catalog, renderer = Catalog(), TemplateRenderer()
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
    except _Unusable as error:
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
        raise _Unusable("is nested too deeply") from None
    finally:
        loader.dispose()


def _check_values(value: Any) -> None:
    """Refuse what does not end, and numbers that JSON does not have."""
    left, level = MAX_VALUES, [value]
    while level:
        item = level.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise _Unusable("has a number that is infinite or none")
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        left -= len(inner)
        if left < 0:
            raise _Unusable(f"stands for more than {MAX_VALUES} values")
        level.extend(inner)


def _syntax(file: Path, error: yaml.YAMLError) -> Found:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    return Found(f"{file}:{mark.line + 1}" if mark else str(file), "", f"is not usable YAML: {problem}")


def _text(file: Path) -> str:
    try:
        if not file.is_file():
            raise _Unusable("there is no such file" if not file.exists() else "is not a file")
        if (size := file.stat().st_size) > MAX_FILE:
            raise _Unusable(f"is too large: {size} bytes; the limit is {MAX_FILE}")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _Unusable(f"is not UTF-8: byte {error.start}") from None


# ---------------------------------------------------------------------------------------------------------------
# Definitions
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reading:
    """One document on its way to a definition."""

    file: Path
    root: Path
    catalog: Catalog
    renderer: TemplateRenderer
    document: _Document

    def read(self) -> None:
        """Files → shape → templates and schema → name; what follows from a fault is not told, all else at once."""
        before = len(self.catalog.faults)
        if not isinstance(self.document.value, dict):
            self._fault("", "should be a mapping with name, on and channels")
            return
        raw = self._with_files(self.document.value)
        definition = self._shaped(raw)
        for name, fault in _faults_inside(self.renderer, raw):
            self._fault(name, fault)
        if definition is None:
            return
        self._doubt(definition)
        if len(self.catalog.faults) == before:
            self._keep(definition)

    def _with_files(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        channels = raw.get("channels")
        if not isinstance(channels, dict):
            return dict(raw)
        read = {name: self._content(name, item) if isinstance(item, dict) else item for name, item in channels.items()}
        return {**raw, "channels": read}

    def _content(self, channel: str, content: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._value(f"channels.{channel}.{name}", value) for name, value in content.items()}

    def _value(self, place: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.keys() != {"file"} or not isinstance(value["file"], str):
            self._fault(place, "should be a text, or {file: name}")
            return ""
        try:
            return self._included(value["file"])
        except _Unusable as error:
            self._fault(place, f"file {value['file']}: {error}")
            return ""

    def _included(self, name: str) -> str:
        """The text of a file inside the catalog folder; links are followed first, so that none leads outside."""
        try:
            path = (self.file.resolve().parent / name).resolve()
        except (OSError, ValueError, RuntimeError):
            raise _Unusable("is not a file's name") from None
        if Path(name).is_absolute() or not path.is_relative_to(self.root.resolve()):
            raise _Unusable(f"lies outside {self.root}: only files of the catalog folder are read")
        return _text(path)

    def _shaped(self, raw: Mapping[str, Any]) -> Definition | None:
        try:
            return Definition.model_validate(raw)
        except ValidationError as error:
            for fault in faults_of(error):
                if fault.field or not fault.fault.startswith("channels."):  # those are told one by one
                    self._fault(fault.field, fault.fault)
            return None

    def _doubt(self, definition: Definition) -> None:
        for channel, content in definition.channels.items():
            for name in self.renderer.missing(channel, content, dict.fromkeys(_guaranteed(definition))):
                self._warn(f"channels.{channel}", f"uses {name}, which is not required: {_CONSEQUENCE}")

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
        self.catalog.faults.append(Found(self._place(path), path, text))

    def _warn(self, path: str, text: str) -> None:
        self.catalog.warnings.append(Found(self._place(path), path, text))


_CONSEQUENCE = "an event without it is not delivered (template_error)"


def _guaranteed(definition: Definition) -> Iterable[str]:
    """The names that every event which gets as far as the templates has."""
    required = (definition.data_schema or {}).get("required", ())
    return (*definition.required, *(name for name in required if isinstance(name, str)))


def _faults_inside(renderer: TemplateRenderer, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and fault of each channel's content and of the schema, also where the definition has other faults.

    The templates of a channel are looked at only if it has the fields that it should have.
    """
    channels = raw.get("channels")
    for name, content in channels.items() if isinstance(channels, dict) else ():
        if name in set(Channel) and isinstance(content, dict):
            channel = Channel(name)
            for fault in check_content(channel, content) or renderer.check(channel, content):
                yield f"channels.{fault.field}", fault.fault
    if isinstance(raw.get("schema"), dict):
        for fault in check_schema(raw["schema"]):
            yield fault.field, fault.fault
