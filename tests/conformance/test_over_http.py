"""What every provider with an HTTP API promises beside the rest (`test_conformance.py`)."""

import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from channels.taxonomy import Meaning
from domain.failures import TransientFailure, UnknownOutcome
from tests.conformance.conftest import Make
from tests.conformance.over_http import BreaksOff, HttpSubject, Response
from tests.conformance.promises import SUBJECTS, failure_of, pauses, those
from tests.conformance.subject import Ground

RETRY_AFTER = "Retry-After"
OVER_HTTP = [each for each in SUBJECTS if isinstance(each, HttpSubject)]


def asking_for_time() -> list[Any]:
    return [
        pytest.param(each, response, id=f"{each.kind}-{name}")
        for each in OVER_HTTP
        for name, (response, _) in each.failures.items()
        if RETRY_AFTER in response.headers
    ]


@pytest.mark.parametrize(("subject", "response"), asking_for_time())
async def test_a_provider_is_left_alone_for_as_long_as_it_asks(
    subject: HttpSubject, response: Response, make: Make, ground: Ground
) -> None:
    async with subject.peer(response, ground) as peer:
        failure = await failure_of(make(subject, peer), subject, peer)
    assert failure.retry_after == timedelta(seconds=int(response.headers[RETRY_AFTER]))


def limits() -> list[Any]:
    found = [(each, *answer) for each in OVER_HTTP for answer in each.failures.values()]
    limited = {each.kind: (each, response) for each, response, meaning in found if meaning is Meaning.RATE_LIMITED}
    return [pytest.param(*each, id=kind) for kind, each in limited.items()]


@pytest.mark.parametrize(("subject", "response"), limits())
async def test_a_limit_that_says_no_time_pauses_too(
    subject: HttpSubject, response: Response, make: Make, ground: Ground
) -> None:
    headers = {name: value for name, value in response.headers.items() if name != RETRY_AFTER}
    async with subject.peer(replace(response, headers=headers), ground) as peer:
        assert pauses(await failure_of(make(subject, peer), subject, peer))


def has_a_body(subject: HttpSubject) -> bool:
    return bool(subject.success.status != 204)


@those(lambda subject: has_a_body(subject) and not subject.body_tells, HttpSubject)
async def test_an_answer_that_breaks_off_after_its_status_is_that_status(
    subject: HttpSubject, make: Make, ground: Ground
) -> None:
    async with subject.peer(BreaksOff(subject.success), ground) as peer:
        answer = await make(subject, peer).send(subject.message_over(peer.url))
    assert str(subject.success.status) in answer


@those(lambda subject: has_a_body(subject) and subject.body_tells, HttpSubject)
async def test_an_answer_that_breaks_off_before_it_tells_is_an_unknown_outcome(
    subject: HttpSubject, make: Make, ground: Ground
) -> None:
    async with subject.peer(BreaksOff(subject.success), ground) as peer:
        assert type(await failure_of(make(subject, peer), subject, peer)) is UnknownOutcome


@those(lambda _: True, HttpSubject)
async def test_a_server_that_repeats_secrets_is_not_quoted(
    subject: HttpSubject, make: Make, ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with subject.peer(Response(500, text=" ".join((*subject.secrets, subject.address))), ground) as peer:
        failure = await failure_of(make(subject, peer), subject, peer)
    assert isinstance(failure, TransientFailure | UnknownOutcome)
    for private in (*subject.secrets, subject.address):
        assert private not in caplog.text
