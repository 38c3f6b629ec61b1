"""JSON Schema of a notification's data, compiled once and checked in microseconds."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import jsonschema_rs

from domain.notification import Definition
from domain.text import MAX_FAULTS, Fault

CACHE: Final = 1000
"""Compiled schemas that are kept."""

_PATTERNS: Final = jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000)
"""A pattern that would try for ever on some text fails on it instead."""


class JsonSchemaCheck:
    """Implements `domain.ports.SchemaCheck`. Nothing is fetched: a `$ref` to elsewhere is a fault of the schema."""

    def __init__(self) -> None:
        # Definitions are immutable, and held here so that their identity stays theirs.
        self._compiled: OrderedDict[int, tuple[Mapping[str, Any], Any]] = OrderedDict()

    def faults(self, definition: Definition, data: Mapping[str, Any]) -> Sequence[Fault]:
        """Where the data does not follow the definition's schema; the first `MAX_FAULTS`, and never a value."""
        schema = definition.data_schema
        if schema is None:
            return ()
        try:
            validator = self._validator(schema)
        except jsonschema_rs.ValidationError as error:
            return (_schema_fault(error),)
        if validator.is_valid(data):
            return ()
        return tuple(_data_fault(error) for error in islice(validator.iter_errors(data), MAX_FAULTS))

    def _validator(self, schema: dict[str, Any]) -> Any:
        key = id(schema)
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = (schema, _compile(schema))
            if len(self._compiled) > CACHE:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return found[1]


def check_schema(schema: Any) -> Sequence[Fault]:
    """What is wrong with the schema itself; nothing if data can be checked against it."""
    if not isinstance(schema, dict):
        return (Fault("schema", "should be a JSON Schema, an object"),)
    try:
        _compile(schema)
    except jsonschema_rs.ValidationError as error:
        return (_schema_fault(error),)
    return ()


def _compile(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.validator_for(schema, offline=True, mask="the value", pattern_options=_PATTERNS)


def _schema_fault(error: jsonschema_rs.ValidationError) -> Fault:
    return Fault(".".join(["schema", *map(str, error.instance_path)]), error.message[:300])


def _data_fault(error: jsonschema_rs.ValidationError) -> Fault:
    return Fault(".".join(["data", *map(str, error.instance_path)]), error.message[:300])
