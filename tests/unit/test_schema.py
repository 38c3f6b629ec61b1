"""JSON Schema of a notification's data."""

from typing import Any

import pytest

from channels.schema import JsonSchemaCheck, check_schema
from domain.notification import Definition

SCHEMA = {
    "type": "object",
    "required": ["order_id"],
    "properties": {"order_id": {"type": "integer"}, "code": {"type": "string", "pattern": "^[A-Z]+$"}},
}


def definition(schema: dict[str, Any] | None) -> Definition:
    return Definition.model_validate({"name": "n", "on": "a.b", "schema": schema, "channels": {"sms": {"text": "x"}}})


def faults(schema: dict[str, Any] | None, data: dict[str, Any]) -> list[str]:
    return [str(fault) for fault in JsonSchemaCheck().faults(definition(schema), data)]


def test_data_that_follows_the_schema() -> None:
    assert faults(SCHEMA, {"order_id": 1, "code": "AB"}) == []
    assert faults(None, {}) == []


def test_faults_name_the_place_and_not_the_value() -> None:
    told = faults(SCHEMA, {"order_id": "hunter2", "code": "hunter2"})
    assert sorted(told) == [
        'data.code: the value does not match "^[A-Z]+$"',
        'data.order_id: the value is not of type "integer"',
    ]
    assert "hunter2" not in str(told)
    assert faults(SCHEMA, {}) == ['data: "order_id" is a required property']


def test_a_pattern_cannot_try_for_ever() -> None:
    schema = {"properties": {"a": {"pattern": "^(?=(a+)+$)(a|aa)+$"}}}
    assert faults(schema, {"a": "a" * 5000 + "b"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nope"},
        {"properties": {"a": {"pattern": "("}}},
        {"$ref": "#/$defs/none"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"$ref": "file:///etc/passwd"},
        ["no", "schema"],
    ],
)
def test_a_wrong_schema_is_named(schema: Any) -> None:
    (found,) = check_schema(schema)
    assert found.field.startswith("schema")
    if isinstance(schema, dict):
        assert JsonSchemaCheck().faults(definition(schema), {})


def test_a_right_schema_has_no_faults() -> None:
    assert check_schema(SCHEMA) == ()
    assert check_schema({"$defs": {"x": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}) == ()


def test_compiled_schemas_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channels.schema.CACHE", 3)
    check = JsonSchemaCheck()
    for number in range(10):
        check.faults(definition({"minProperties": number}), {})
    assert len(check._compiled) == 3
