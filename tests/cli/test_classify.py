"""`notipy classify`: every code of every table, and those that are in none."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from channels.classify import Stage
from channels.explain import NoSuchCode, every, explain, providers
from channels.taxonomy import CONSEQUENCES, Meaning
from cli.main import app


def notipy(*args: str) -> Result:
    return CliRunner().invoke(app, ["classify", *args])


def records(*args: str) -> list[dict[str, Any]]:
    ended = notipy(*args, "--json")
    assert ended.exit_code == 0, ended.output
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_a_code_is_explained_with_its_source() -> None:
    (found,) = records("--provider", "twilio", "21610")
    assert found == {
        "provider": "twilio",
        "code": "21610",
        "known": True,
        "meaning": "recipient",
        "reason": "recipient_rejected",
        "does": CONSEQUENCES[Meaning.RECIPIENT],
        "words": "the recipient has unsubscribed (STOP)",
        "version": "2026-11-23",
        "source": "Twilio, Error and Warning Dictionary",
    }
    shown = notipy("--provider", "twilio", "30003").stdout
    for words in ("out of reach", "transient", "mailbox_unavailable", "the provider is not at fault", "Dictionary"):
        assert words in shown


@pytest.mark.parametrize(
    ("code", "stage", "meaning", "reason"),
    [
        (["550", "5.1.1"], "rcpt", "recipient", "recipient_rejected"),
        (["550 5.1.1"], "rcpt", "recipient", "recipient_rejected"),
        (["5.1.1"], "rcpt", "recipient", "recipient_rejected"),
        (["4.2.2"], "rcpt", "transient", "mailbox_unavailable"),
        (["535"], "auth", "configuration", "authentication"),
        (["552"], "rcpt", "message", "message_too_large"),
        (["550"], "mail", "configuration", "sender_rejected"),
        (["554"], "connect", "transient", "provider_unavailable"),
        (["4.7.28"], "rcpt", "rate_limited", "rate_limited"),
    ],
)
def test_a_reply_of_smtp_means_what_the_provider_would_make_of_it(
    code: list[str], stage: str, meaning: str, reason: str
) -> None:
    (found,) = records("--provider", "smtp", "--stage", stage, *code)
    assert (found["meaning"], found["reason"]) == (meaning, reason)


@pytest.mark.parametrize(
    ("code", "meaning", "reason"),
    [
        ("410", "recipient", "endpoint_gone"),
        ("HTTP 429", "rate_limited", "rate_limited"),
        ("503", "transient", "provider_unavailable"),
        ("504", "unknown", "outcome_unknown"),
        ("418", "message", "endpoint_rejected"),
    ],
)
def test_a_receivers_status_is_explained(code: str, meaning: str, reason: str) -> None:
    (found,) = records("--provider", "webhook", code)
    assert (found["meaning"], found["reason"]) == (meaning, reason)


def test_a_code_that_is_in_no_table_is_told_as_what_it_is_treated_as() -> None:
    (found,) = records("--provider", "twilio", "99999")
    assert (found["known"], found["meaning"]) == (False, "message")
    assert "not in the table" in found["words"]
    (status,) = records("--provider", "twilio", "599")
    assert (status["code"], status["meaning"]) == ("HTTP 5xx", "transient")
    (gateway,) = records("--provider", "twilio", "502")
    assert (gateway["code"], gateway["meaning"]) == ("HTTP 502", "unknown")


def test_without_a_code_the_table_is_shown() -> None:
    assert len(records("--provider", "vonage")) > 19
    shown = notipy("--provider", "vonage").stdout
    assert "the number is no longer in use" in shown


@pytest.mark.parametrize("provider", providers())
def test_every_code_of_every_table_is_found_again(provider: str) -> None:
    for row in every(provider):
        again = explain(provider, row.code)
        assert (again.meaning, again.reason, again.does) == (row.meaning, row.reason, row.does)
        assert row.words
        assert row.source


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--provider", "pigeon", "1"], "twilio, vonage, webhook"),
        (["--provider", "smtp", "no"], "550 5.1.1"),
        (["--provider", "smtp", "250"], "is no error"),
        (["--provider", "webhook", "204"], "is no error"),
        (["--provider", "smtp", "550", "--stage", "tea"], "connect, auth, mail"),
        (["30003"], "--provider"),
    ],
)
def test_wrong_usage_is_told(args: list[str], told: str) -> None:
    ended = notipy(*args)
    assert ended.exit_code == 2
    assert told in ended.output


@pytest.mark.parametrize("code", ["", " ", "5.1", "600", "1.1.1", "x" * 50])
def test_what_is_no_reply_is_none(code: str) -> None:
    with pytest.raises(NoSuchCode):
        explain("smtp", code, Stage.RCPT)
