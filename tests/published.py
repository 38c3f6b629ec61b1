"""What the providers publish of their requests: OpenAPI documents, service models, types, or clients of others.

`tests/schemas` has what reads it. CONTRIBUTING.md says which provider's requests are checked against what.
"""

import atexit
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jsonschema_rs
from botocore.session import get_session
from botocore.validate import ParamValidator

from tests.nodejs import NODE, installed

SOURCE = Path(__file__).parent / "schemas"
TWILIO = "@twilio/cli-core/src/services/twilio-api/twilio_api_v2010.json"
FORM = "application/x-www-form-urlencoded"


def faults(kind: str, body: Any) -> list[str]:
    """What is wrong with a request, by what is published for this kind; empty if nothing is.

    Args:
        kind: one of `READERS`, or one that `tests/schemas/check.mjs` knows. "<kind> answer" reads what a double of the
            provider answers: it may leave fields out.
        body: of the request, or as the kind's reader takes it.
    """
    own = READERS.get(kind)
    return own(body) if own else _read(kind, body)


def jwt_faults(token: str, key: bytes, algorithm: str, **more: Any) -> list[str]:
    """What is wrong with a token, by the library jose: its signature, and the claims that are asked for."""
    return faults("jwt", {"token": token, "key": key.decode(), "algorithm": algorithm} | more)


@cache
def _installed() -> Path:
    return installed(SOURCE)


def published_file(path: str) -> str:
    """One of those that `published.json` names."""
    return (_installed() / "node_modules" / path).read_text(encoding="utf-8")


@cache
def _reader() -> subprocess.Popen[str]:
    """One process for all the tests of this one; its end is that of its standard input."""
    script = [NODE, _installed() / "check.mjs"]
    process = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    atexit.register(process.communicate)
    return process


def _read(kind: str, body: Any) -> list[str]:
    process = _reader()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"kind": kind, "body": body}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, "the reader has ended"
    found: list[str] | dict[str, str] = json.loads(line)
    assert isinstance(found, list), found["error"]
    return found


# --- Twilio's OpenAPI document ------------------------------------------------------------------------------------


def _twilio(request: Mapping[str, str]) -> list[str]:
    """By `method`, `path` and `body`, a form."""
    document = _twilio_document()
    operations = [methods for path, methods in document["paths"].items() if _matches(path, request["path"])]
    if not operations or request["method"].lower() not in operations[0]:
        return [f"{request['method']} {request['path']}: there is no such operation"]
    schema = operations[0][request["method"].lower()]["requestBody"]["content"][FORM]["schema"]
    return _broken(schema, document, _form(request["body"], schema["properties"]))


def _twilio_answer(message: Mapping[str, Any]) -> list[str]:
    document = _twilio_document()
    return _broken(document["components"]["schemas"]["api.v2010.account.message"], document, message)


@cache
def _twilio_document() -> Any:
    return _nullable(json.loads(published_file(TWILIO)))


def _nullable(schema: Any) -> Any:
    """OpenAPI 3.0 says `nullable` where JSON Schema has another type."""
    if isinstance(schema, list):
        return [_nullable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    given = {name: _nullable(each) for name, each in schema.items()}
    return given | ({"type": [given["type"], "null"]} if given.get("nullable") is True and "type" in given else {})


def _broken(schema: Mapping[str, Any], document: Mapping[str, Any], value: Any) -> list[str]:
    """What the value breaks of the schema, with no other fields than it has."""
    closed = {**schema, "additionalProperties": False, "components": document["components"]}
    validator = jsonschema_rs.Draft7Validator(closed, validate_formats=True, ignore_unknown_formats=True)
    return [error.message for error in validator.iter_errors(value)]


def _matches(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)), path) is not None


TYPES: Mapping[str, Callable[[str], Any]] = {"number": float, "integer": int, "boolean": json.loads}


def _form(body: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """The form, with values as the schema's types have them."""
    found = {}
    for name, values in parse_qs(body, strict_parsing=True, keep_blank_values=True).items():
        kind = properties.get(name, {}).get("type")
        found[name] = values if kind == "array" or len(values) > 1 else TYPES.get(kind, str)(values[0])
    return found


# --- AWS's model of SES -------------------------------------------------------------------------------------------


def _ses(request: Mapping[str, Any]) -> list[str]:
    """By `method`, `path` and `document`."""
    model = get_session().get_service_model("sesv2")
    operations = [model.operation_model(name) for name in model.operation_names]
    asked = {"method": request["method"], "requestUri": request["path"]}
    operation = next((each for each in operations if each.http.items() >= asked.items()), None)
    if operation is None:
        return [f"{request['method']} {request['path']}: there is no such operation"]
    return _modelled(operation.input_shape, request["document"])


def _ses_answer(document: Mapping[str, Any]) -> list[str]:
    return _modelled(ses_operation().output_shape, document)


def ses_operation() -> Any:
    """AWS's model of SendEmail."""
    return get_session().get_service_model("sesv2").operation_model("SendEmail")


def _modelled(shape: Any, document: Mapping[str, Any]) -> list[str]:
    report = ParamValidator().validate(document, shape)
    return [report.generate_report()] if report.has_errors() else []


READERS: Mapping[str, Callable[[Any], list[str]]] = {
    "ses": _ses,
    "ses answer": _ses_answer,
    "twilio": _twilio,
    "twilio answer": _twilio_answer,
}
