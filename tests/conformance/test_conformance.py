"""The same promises for every provider. `subjects/` says how the other side of each talks."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from channels.registry import KINDS as OWN
from channels.registry import kinds
from channels.taxonomy import CONSEQUENCES, Meaning
from config.logging import QUIET
from domain.failures import (
    DeliveryFailure,
    PermanentFailure,
    TransientFailure,
    UnknownOutcome,
    unsent_by_provider,
    was_unsent,
)
from domain.vocabulary import Reason
from tests.conformance.conftest import Make
from tests.conformance.promises import SUBJECTS, failure_of, pauses, those
from tests.conformance.subject import TEXT, Fault, Ground, Subject
from tests.waiting import eventually

KINDS = {
    Meaning.TRANSIENT: TransientFailure,
    Meaning.RATE_LIMITED: TransientFailure,
    Meaning.CONFIGURATION: TransientFailure,
    Meaning.RECIPIENT: PermanentFailure,
    Meaning.MESSAGE: PermanentFailure,
    Meaning.UNKNOWN: UnknownOutcome,
}
PAUSING = frozenset({Meaning.RATE_LIMITED, Meaning.CONFIGURATION})
OUR_FAULTS = frozenset({Reason.AUTHENTICATION, Reason.NOT_CONFIGURED, Reason.SENDER_REJECTED, Reason.TLS})
FAULTS = {
    Fault.ABSENT: (Meaning.TRANSIENT, Reason.CONNECTION_REFUSED),
    Fault.SILENT_BEFORE: (Meaning.TRANSIENT, Reason.TIMEOUT),
    Fault.LOST_BEFORE: (Meaning.TRANSIENT, Reason.CONNECTION_LOST),
    Fault.SILENT: (Meaning.UNKNOWN, Reason.TIMEOUT),
    Fault.LOST: (Meaning.UNKNOWN, Reason.CONNECTION_LOST),
}
"""Until the message is on its way nothing was sent; from then on nobody knows."""

every_subject = those(lambda _: True)


def test_every_kind_is_a_subject() -> None:
    assert OWN.keys() <= {subject.kind for subject in SUBJECTS}


@every_subject
async def test_a_message_is_taken_and_named(subject: Subject, make: Make, ground: Ground) -> None:
    async with subject.peer(ground=ground) as peer:
        answer = await make(subject, peer).send(subject.message_over(peer.url))
        assert answer.isprintable()
        assert answer.reference == subject.reference
        (taken,) = await peer.taken()
    subject.requested(taken)


@those(lambda subject: subject.idempotency)
async def test_the_idempotency_key_is_sent(subject: Subject, make: Make, ground: Ground) -> None:
    assert subject.idempotency is not None
    async with subject.peer(ground=ground) as peer:
        provider, message = make(subject, peer), subject.message_over(peer.url)
        for _ in range(2):
            await provider.send(message)
        same = {subject.idempotency(taken) for taken in await peer.taken()}
        await provider.send(replace(message, idempotency_key="d1/2"))
        keys = {subject.idempotency(taken) for taken in await peer.taken()}
    assert (len(same), len(keys)) == (1, 2)
    assert all(keys)


def failures() -> list[Any]:
    return [pytest.param(each, name, id=f"{each.kind}-{name}") for each in SUBJECTS for name in each.failures]


@pytest.mark.parametrize(("subject", "name"), failures())
async def test_a_refusal_is_classified(subject: Subject, name: str, make: Make, ground: Ground) -> None:
    answer, meaning = subject.failures[name]
    async with subject.peer(answer, ground) as peer:
        failure = await failure_of(make(subject, peer), subject, peer)
    assert type(failure) is KINDS[meaning]
    assert failure.suppress <= (meaning is Meaning.RECIPIENT)
    assert failure.provider_fault <= subject.shared
    asked_for_time = failure.provider_fault and failure.retry_after is not None
    assert pauses(failure) is (asked_for_time or (subject.shared and meaning in PAUSING))
    if meaning is Meaning.RATE_LIMITED:
        assert failure.reason is Reason.RATE_LIMITED
    if meaning is Meaning.CONFIGURATION:
        assert failure.reason in OUR_FAULTS


@every_subject
def test_every_class_of_failure_is_tried(subject: Subject) -> None:
    meanings = {meaning for _, meaning in subject.failures.values()} | {FAULTS[fault][0] for fault in subject.faults}
    tried = meanings | ({Meaning.MESSAGE} if Meaning.RECIPIENT in meanings else set())
    assert subject.classes
    assert subject.classes <= tried


def faults() -> list[Any]:
    return [pytest.param(each, fault, id=f"{each.kind}-{fault.name}") for each in SUBJECTS for fault in each.faults]


@pytest.mark.parametrize(("subject", "fault"), faults())
async def test_a_fault_on_the_way_is_what_it_is(subject: Subject, fault: Fault, make: Make, ground: Ground) -> None:
    patience = {"timeout": "300ms"} if fault in {Fault.SILENT_BEFORE, Fault.SILENT} else {}
    meaning, reason = FAULTS[fault]
    async with subject.peer(fault, ground) as peer:
        failure = await failure_of(make(subject, peer, **patience), subject, peer)
    assert (type(failure), failure.reason) == (KINDS[meaning], reason)
    assert failure.provider_fault is subject.shared


@those(lambda subject: Fault.SILENT_BEFORE in subject.faults and subject.tells_unsent)
async def test_nothing_was_sent_where_it_is_cut_off_before(subject: Subject, make: Make, ground: Ground) -> None:
    async with subject.peer(Fault.SILENT_BEFORE, ground) as peer:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.2):
                await make(subject, peer).send(subject.message_over(peer.url))
    assert was_unsent(caught.value)
    assert unsent_by_provider(caught.value) is subject.shared


@those(lambda subject: Fault.SILENT in subject.faults)
async def test_something_may_have_been_sent_where_it_is_cut_off_later(
    subject: Subject, make: Make, ground: Ground
) -> None:
    limit = asyncio.timeout(None)
    async with subject.peer(Fault.SILENT, ground) as peer:

        async def send() -> None:
            async with limit:
                await make(subject, peer).send(subject.message_over(peer.url))

        sending = asyncio.create_task(send())
        await eventually(peer.taken)
        limit.reschedule(0)
        with pytest.raises(TimeoutError) as caught:
            await sending
    assert not was_unsent(caught.value)


@those(lambda subject: subject.connections)
async def test_connections_are_kept_and_closed(subject: Subject, make: Make, ground: Ground) -> None:
    async with subject.peer(ground=ground) as peer:
        provider = make(subject, peer)
        for _ in range(3):
            await provider.send(subject.message_over(peer.url))
        assert 1 <= peer.opened <= subject.connections
        await provider.close()
        await eventually(lambda: peer.connections == 0)


@those(lambda subject: subject.connections)
async def test_a_cancelled_send_leaves_no_connection(subject: Subject, make: Make, ground: Ground) -> None:
    async with subject.peer(Fault.SILENT, ground) as peer:
        provider = make(subject, peer)
        sending = asyncio.create_task(provider.send(subject.message_over(peer.url)))
        await eventually(peer.taken)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        await provider.close()
        await eventually(lambda: peer.connections == 0)


@every_subject
async def test_secrets_are_nowhere(
    subject: Subject, make: Make, ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    for name in QUIET:  # as NotiPy has them
        caplog.set_level(logging.CRITICAL, name)
    caplog.set_level(logging.DEBUG)  # the last one's level is that of what is caught, too
    shown = inside = ""
    for answer in (None, next(iter(subject.failures.values()))[0]):
        async with subject.peer(answer, ground) as peer:
            provider = make(subject, peer)
            with suppress(DeliveryFailure):
                await provider.send(subject.message_over(peer.url))
            with suppress(DeliveryFailure):
                await provider.check()
            shown += f"{provider!r} {provider}"
            inside += str(vars(provider) if hasattr(provider, "__dict__") else "")
    assert "primary" in shown
    for private in (subject.address, TEXT):
        assert private not in shown + caplog.text
    for secret in subject.secrets:
        assert secret not in shown + inside + caplog.text


@every_subject
async def test_a_wrong_setting_is_named_and_not_shown(subject: Subject, make: Make, ground: Ground) -> None:
    async with subject.peer(ground=ground) as peer:
        with pytest.raises(ValueError, match="colour") as caught:
            make(subject, peer, colour="chartreuse")
    for word in (*subject.secrets, "chartreuse"):
        assert word not in str(caught.value)


@those(lambda subject: subject.too_long)
async def test_a_message_that_is_too_long_is_not_sent(subject: Subject, make: Make, ground: Ground) -> None:
    assert subject.too_long is not None
    async with subject.peer(ground=ground) as peer:
        with pytest.raises(PermanentFailure) as caught:
            await make(subject, peer).send(subject.too_long)
        assert list(await peer.taken()) == []
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


@every_subject
async def test_who_can_be_reached_is_told_by_the_address(subject: Subject, make: Make, ground: Ground) -> None:
    async with subject.peer(ground=ground) as peer:
        assert make(subject, peer).takes(subject.message_over(peer.url).recipient)


@those(lambda subject: subject.stranger)
async def test_a_stranger_is_left_to_others(subject: Subject, make: Make, ground: Ground) -> None:
    assert subject.stranger is not None
    async with subject.peer(ground=ground) as peer:
        assert not make(subject, peer).takes(subject.stranger)


@those(lambda subject: kinds()[subject.kind].errors)
def test_its_table_names_its_source(subject: Subject) -> None:
    table = kinds()[subject.kind].errors
    assert table is not None
    assert table.provider == subject.kind
    assert table.source
    codes = [rule.code for rule in table.rules]
    assert len(set(codes)) == len(codes)
    assert all(rule.words and rule.meaning in CONSEQUENCES for rule in table.rules)
