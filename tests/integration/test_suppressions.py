"""The suppression list from the command line to the deliveries that it stops, against real servers."""

import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.failures import PermanentFailure
from domain.suppression import Suppression
from domain.vocabulary import Channel, Reason, State, SuppressionReason
from storage.suppressions import SuppressionFilter
from tests.fakes import ScriptedProvider
from tests.running import ORDER_SHIPPED, Stack, order, total
from tests.waiting import eventually

Notipy = Callable[..., Coroutine[Any, Any, Any]]
BOTH = {**ORDER_SHIPPED, "channels": {**ORDER_SHIPPED["channels"], "sms": {"text": "t"}}}


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


async def test_what_an_operator_adds_stops_running_consumers_within_seconds(
    settings: Settings, stack: Stack, smtp: SmtpSink, cli: Notipy
) -> None:
    await stack.apply(BOTH)
    async with running(settings) as application:
        assert (await cli("suppressions", "add", "email", "ANA@example.org"))[0] == 0
        await eventually(lambda: bool(application.core.suppressions._known), timeout=5)
        event = await stack.publish({"recipients": [{"email": "ana@example.org", "phone": "+4915112345678"}],
                                     "data": {"order_id": 1}})  # fmt: skip
        found = {each.channel: each for each in await stack.final(event, count=2)}
        assert found[Channel.SMS].state is State.SENT, "of another channel nothing is said"
        stopped = found[Channel.EMAIL]
        assert (stopped.state, stopped.reason) == (State.SUPPRESSED, Reason.SUPPRESSED_ADDRESS)
        assert "ana@" not in str(stopped.detail)
        assert (await cli("suppressions", "remove", "email", "ana@example.org"))[0] == 0
        again = await stack.publish(order())
        by_channel = {each.channel: each.state for each in await stack.final(again, count=2)}
        assert by_channel[Channel.EMAIL] is State.SENT
    assert len(smtp.mails) == 1


async def test_a_held_delivery_is_stopped_where_its_address_was_suppressed_since(
    settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings) as application:
        now = datetime.now(UTC)
        event = await stack.publish(order(send_at=(now + timedelta(hours=1)).isoformat()))
        held = await stack.reach(event, State.HELD)
        entry = Suppression(Channel.EMAIL, "ana@example.org", SuppressionReason.COMPLAINT, "operator", now)
        await application.core.suppressions.add(entry)
        await stack.core.deliveries.postpone(held, now)
        (delivery,) = await stack.final(event)
    assert (delivery.state, delivery.reason) == (State.SUPPRESSED, Reason.SUPPRESSED_ADDRESS)
    assert [change.state for change in delivery.history] == [State.HELD, State.QUEUED, State.SUPPRESSED]
    assert not smtp.mails


async def test_a_dead_address_is_suppressed_by_what_its_provider_says(settings: Settings, stack: Stack) -> None:
    await stack.apply({**ORDER_SHIPPED, "channels": {"sms": {"text": "t"}}})
    told = await stack.listen("failed.#")
    provider = ScriptedProvider([PermanentFailure(Reason.RECIPIENT_REJECTED, "30005", suppress=True)], name="twilio")
    body = {"recipients": [{"phone": "+4915112345678"}], "data": {"order_id": 1}}
    async with running(settings, providers={Channel.SMS: provider}):
        (failed,) = await stack.final(await stack.publish(body))
        (stopped,) = await stack.final(await stack.publish(body))
    assert failed.state is State.FAILED
    assert failed.history[-1].address_suppressed
    assert (stopped.state, stopped.reason) == (State.SUPPRESSED, Reason.SUPPRESSED_ADDRESS)
    assert not provider.sent
    status = await told.get()
    assert status is not None
    assert json.loads(status.body)["address_suppressed"] is True
    (entry,) = [each async for each in stack.core.suppressions.listed(SuppressionFilter())]
    assert (entry.reason, entry.source) == (SuppressionReason.REJECTED, "send:twilio")


async def test_a_mailbox_that_does_not_exist_is_suppressed_until_a_replay_reaches_it(
    settings: Settings, stack: Stack, smtp: SmtpSink, cli: Notipy
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order("reject-550-1@example.org"))
        (failed,) = await stack.final(event)
        assert (failed.state, failed.reason) == (State.FAILED, Reason.RECIPIENT_REJECTED)
        assert failed.history[-1].address_suppressed
        (listed,) = records((await cli("suppressions", "list", "--json"))[1])
        assert (listed["reason"], listed["source"], listed["delivery"]) == ("rejected", "send:sink", failed.id)
        table = (await cli("suppressions", "list"))[1].splitlines()
        assert [line.split()[-1] for line in table] == ["DELIVERY", failed.id]
        (stopped,) = await stack.final(await stack.publish(order("reject-550-1@example.org")))
        assert stopped.reason is Reason.SUPPRESSED_ADDRESS
        assert (await cli("dead", "list", "--id", failed.id, "--reason", "timeout", "--json"))[1] == ""
        code, out, _ = await cli("dead", "replay", "--id", failed.id)
        assert (code, out.splitlines()[:2]) == (
            0,
            [
                "1 delivery replayed.",
                "1 of them to an address that its own refusal has suppressed: used again once this is sent.",
            ],
        )
        replayed = await stack.reach(event, State.SENT)
        assert (replayed.epoch, replayed.last_change.detail) == (
            2, "250 2.0.0 Kept; its address is suppressed no more",
        )  # fmt: skip
        assert (await cli("suppressions", "list", "--json"))[1] == ""
        (sent,) = await stack.final(await stack.publish(order("reject-550-1@example.org")))
    assert sent.state is State.SENT
    assert len(smtp.mails) == 2


async def test_a_suppressed_copy_gets_no_mail(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    email = {"subject": "s", "text": "t", "cc": "Ben <ben@example.org>, cem@example.org", "bcc": "dan@example.org"}
    await stack.apply({**ORDER_SHIPPED, "channels": {"email": email}})
    async with running(settings) as application:
        for address in ("BEN@example.org", "dan@example.org"):
            entry = Suppression(Channel.EMAIL, address, SuppressionReason.COMPLAINT, "operator", datetime.now(UTC))
            await application.core.suppressions.add(entry)
        (delivery,) = await stack.final(await stack.publish(order()))
        await eventually(lambda: total(application, "notipy_suppressed_copies_total") == 2)
    assert (delivery.state, delivery.detail) == (State.SENT, "250 2.0.0 Kept; 2 copies left out: suppressed")
    (mail,) = smtp.mails
    assert (mail.recipients, mail.message["Cc"]) == (("ana@example.org", "cem@example.org"), "cem@example.org")


async def test_an_entry_that_was_damaged_by_hand_stops_its_own_address_alone(settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    bad, good = "ana@example.org", "ben@example.org"
    entry = Suppression(Channel.EMAIL, bad, SuppressionReason.COMPLAINT, "operator", datetime.now(UTC))
    await stack.core.suppressions.put([entry])
    await stack.core.database.collection("suppressions").update_one({"_id": entry.key}, {"$unset": {"since": ""}})
    async with running(settings):
        event = await stack.publish({"recipients": [{"email": bad}, {"email": good}], "data": {"order_id": 1}})
        states = {each.recipient["email"]: each.state for each in await stack.final(event, count=2)}
    assert states == {bad: State.SUPPRESSED, good: State.SENT}


async def test_the_list_of_the_command_line(cli: Notipy) -> None:
    added = await cli("suppressions", "add", "sms", "+49 151 12345678", "--reason", "unsubscribed", "--expires", "30d")
    assert (added[0], added[1]) == (0, "1 address suppressed, 1 of them new.\n")
    assert (await cli("suppressions", "add", "email", "ana@example.org", "ben@example.org"))[0] == 0
    dry = await cli("suppressions", "add", "email", "eve@example.org", "--dry-run", "--json")
    assert records(dry[1])[0]["dry_run"] is True
    everybody = records((await cli("suppressions", "list", "--json"))[1])
    assert {each["address"] for each in everybody} == {"+4915112345678", "ana@example.org", "ben@example.org"}
    (sms,) = records((await cli("suppressions", "list", "--channel", "sms", "--json"))[1])
    assert set(sms) == {"channel", "address", "reason", "source", "since", "expires_at", "delivery"}
    assert (sms["reason"], sms["source"]) == ("unsubscribed", "operator")
    assert "ana@example.org" in (await cli("suppressions", "list", "--reason", "manual", "--since", "1h"))[1]
    code, out, err = await cli("suppressions", "list", "--reason", "complaint")
    assert (code, out, err.strip()) == (0, "", "No suppressed addresses.")
    removed = await cli("suppressions", "remove", "email", "ANA@example.org", "nobody@example.org", "--json")
    assert removed[0] == 1
    assert [each["action"] for each in records(removed[1])] == ["removed", "not_found"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("add", "email", "ana at example.org"), "ana at example.org: "),
        (("add", "sms", "12"), "12: "),
        (("add", "webhook", "ftp://a.example"), "ftp://a.example: is not an http:// or https:// URL"),
        (("add", "email", "a@example.org", "--expires", "2020-01-01"), "expires: is past already"),
        (("add", "email", "a@example.org", "--expires", "soon"), "expires: should be a duration"),
        (("add", "fax", "1"), "'fax' is not one of"),
        (("import", "nowhere.csv"), "nowhere.csv: cannot be read"),
    ],
)
async def test_what_is_no_address_is_refused(cli: Notipy, args: tuple[str, ...], told: str) -> None:
    code, _, err = await cli("suppressions", *args)
    assert code == 2
    assert told in " ".join(err.replace("│", " ").split())


async def test_an_import_tells_of_each_bad_line_and_writes_the_others(cli: Notipy, tmp_path: Path) -> None:
    lines = [
        "channel,address,reason,expires",
        "email,ana@example.org,hard_bounce,",
        "email,ben@example.org",
        "",
        "fax,7,manual,",
        "email,not an address,,",
        "email,eve@example.org,because,",
        "sms,+4915112345678,unsubscribed,30d",
        "email,old@example.org,,2020-01-01",
        "email",
    ]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(lines))
    dry = await cli("suppressions", "import", str(file), "--dry-run", "--json")
    assert dry[0] == 2
    assert records(dry[1])[-1] == {"used": 3, "new": 0, "bad": 5, "dry_run": True}
    assert (await cli("suppressions", "list", "--json"))[1] == ""
    code, out, err = await cli("suppressions", "import", str(file))
    assert (code, out) == (2, "3 addresses suppressed, 3 of them new.\n")
    assert [line.split(":")[0] for line in err.splitlines()[:5]] == ["line 5", "line 6", "line 7", "line 9", "line 10"]
    assert "because" not in err
    assert len(records((await cli("suppressions", "list", "--json"))[1])) == 3
    again = await cli("suppressions", "import", "-", stdin="email,ana@example.org\nemail,zoe@example.org,,1h\n")
    assert (again[0], again[1]) == (0, "2 addresses suppressed, 1 of them new.\n")
