"""The real command as a process of its own, against real servers: what it prints, and its exit code."""

import asyncio
import json
import os
import re
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.delivery import Change
from domain.ports import Claim
from domain.vocabulary import Reason, State
from tests.contract.peers import scripted_smtp
from tests.forking import Notipy
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "order-shipped.yaml").write_text(yaml.safe_dump(dict(ORDER_SHIPPED)))
    (folder / "hello.yaml").write_text("name: hello\non: shop.hello\nchannels: {sms: {text: Hi}}\n")
    return folder


async def test_a_catalog_is_planned_applied_listed_changed_and_pruned(notipy: Notipy, catalog: Path) -> None:
    planned = await notipy("apply", str(catalog), "--dry-run", "--json")
    assert planned.records == [
        {"name": "hello", "action": "new", "version": 1},
        {"name": "order-shipped", "action": "new", "version": 1},
    ]
    assert (await notipy("notifications", "list", "--json")).out == ""
    assert (await notipy("apply", str(catalog))).code == 0
    (catalog / "hello.yaml").unlink()
    shipped = catalog / "order-shipped.yaml"
    shipped.write_text(shipped.read_text().replace("Hello", "Dear"))
    applied = await notipy("apply", str(catalog), "--prune", "--json")
    assert applied.records == [
        {"name": "hello", "action": "removed", "version": 1},
        {"name": "order-shipped", "action": "changed", "version": 2},
    ]
    assert [r["name"] for r in (await notipy("notifications", "list", "--search", "DEAR", "--json")).records] == [
        "order-shipped"
    ]
    old = await notipy("notifications", "show", "order-shipped", "--version", "1", "--json")
    assert "Hello" in old.records[0]["channels"]["email"]["text"]


async def test_a_faulty_catalog_changes_nothing(notipy: Notipy, catalog: Path) -> None:
    (catalog / "bad.yaml").write_text("name: bad\non: x\nchannels: {sms: {text: '{{ x'}}\n")
    refused = await notipy("apply", str(catalog))
    assert refused.code == 2
    assert f"{catalog}/bad.yaml:3: channels.sms.text: line 1" in refused.err
    assert (await notipy("notifications", "list", "--json")).out == ""


async def test_notifications_are_paged_shown_and_deleted(notipy: Notipy, catalog: Path) -> None:
    await notipy("apply", str(catalog))
    first = await notipy("notifications", "list", "--limit", "1", "--json")
    assert [record["name"] for record in first.records] == ["hello"]
    assert "--after hello" in first.err
    rest = await notipy("notifications", "list", "--after", "hello", "--json")
    assert [record["name"] for record in rest.records] == ["order-shipped"]
    assert (await notipy("notifications", "delete", "hello")).code == 0
    assert (await notipy("notifications", "delete", "hello")).code == 1
    assert (await notipy("notifications", "show", "hello")).code == 1


async def test_a_preview_sends_nothing_and_tells_faults(notipy: Notipy, catalog: Path) -> None:
    await notipy("apply", str(catalog))
    shown = await notipy(
        "render", "order-shipped", "--channel", "email", "--data", "-", "--json", stdin='{"order_id": 7}'
    )
    assert shown.records == [
        {"name": "order-shipped", "channel": "email", "subject": "Order 7 shipped", "text": "Hello Ana Example"}
    ]
    refused = await notipy("render", "order-shipped", "--channel", "email")
    assert (refused.code, refused.out) == (1, "")
    assert "data lacks order_id" in refused.err
    unapplied = await notipy("render", "hello", "--channel", "sms", "--catalog", str(catalog), "--json")
    assert unapplied.records[0]["text"] == "Hi"


async def test_a_preview_speaks_the_language_that_is_asked_for(notipy: Notipy, catalog: Path) -> None:
    (catalog / "foot.j2").write_text("{{ event.source }}")
    (catalog / "bill.yaml").write_text(
        'name: bill\non: shop.bill\ndefault_locale: en\nchannels:\n  chat:\n    text: "Total {{ t | number }}"\n'
        "    locales: {de: {text: \"Summe {{ t | number }} {% include 'foot.j2' %}\"}}\n"
    )
    assert (await notipy("apply", str(catalog))).code == 0
    for locale, text in (("de-AT", "Summe 1.234,5 shop"), ("fr", "Total 1,234.5")):
        shown = await notipy(
            "render", "bill", "--channel", "chat", "--data", '{"t": 1234.5}', "--locale", locale, "--json"
        )
        assert [record["text"] for record in shown.records] == [text]
    refused = await notipy("render", "bill", "--channel", "chat", "--data", '{"t": 1}', "--locale", "x!")
    assert refused.code == 2
    assert "locale: is not a locale such as de or pt-BR" in refused.err
    told = await notipy("notifications", "show", "bill")
    assert "chat, de" in told.out
    assert "foot.j2" in told.out
    assert "bill" in (await notipy("notifications", "list", "--search", "summe")).out


async def test_an_event_is_sent_and_followed_to_its_end(notipy: Notipy, settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    args = (
        "send",
        "--key",
        "shop.order.shipped",
        "--id",
        "ord-1",
        "--data",
        '{"order_id": 1}',
        "--wait",
        "30",
        "--json",
    )
    async with running(settings):
        sent = await notipy(*args, "--to", "ana@example.org")
        bad = await notipy("send", "--key", "shop.nothing", "--to", "ana@example.org", "--wait", "30")
        once = (*args[:3], "--data", '{"order_id": 1}', "--wait", "30")
        silent = await notipy(*once, "--recipients", '[{"id": "user-7"}]', "--json")
        partly = await notipy(*once, "--to", "reject-550@example.org", "--to", "ben@example.org")
    assert sent.code == 0
    (record,) = sent.records
    assert (record["event_id"], record["state"], record["recipient"]) == ("ord-1", "sent", {"email": "ana@example.org"})
    assert bad.code == 1
    assert "No notification is on shop.nothing" in bad.err
    assert (silent.code, [record["state"] for record in silent.records]) == (0, ["suppressed"])
    assert partly.code == 1
    assert "1 of 2 deliveries ended neither sent nor suppressed." in partly.err
    shown = await notipy("events", "show", "shop", "ord-1", "--body", "--json")
    (event,) = shown.records
    assert (event["state"], event["states"], len(event["deliveries"])) == ("planned", {"sent": 1}, 1)
    assert json.loads(event["body"])["data"] == {"order_id": 1}


async def test_without_a_consumer_waiting_ends(notipy: Notipy) -> None:
    waited = await notipy("send", "--key", "shop.x", "--to", "ana@example.org", "--wait", "0")
    assert waited.code == 1
    assert "no consumer has taken it yet" in waited.err
    assert (await notipy("events", "show", "shop", "ord-1")).code == 1


async def test_deliveries_are_paged_by_cursor_and_shown_with_their_attempts(
    notipy: Notipy, settings: Settings, stack: Stack
) -> None:
    await stack.apply(ORDER_SHIPPED)
    recipients = [{"email": f"{name}@example.org"} for name in ("fail-451-2", "ben", "cleo")]
    async with running(settings):
        event = await stack.publish({**order(), "recipients": recipients})
        await stack.final(event, count=3)
    listing = ("deliveries", "list", "--event", "shop", event, "--limit", "2", "--json")
    first = await notipy(*listing)
    cursor = first.err.split("--after ")[1].strip()
    second = await notipy(*listing, "--after", cursor)
    assert second.err == ""
    records = [*first.records, *second.records]
    assert {record["recipient"]["email"] for record in records} == {each["email"] for each in recipients}
    retried = next(record for record in records if record["recipient"]["email"].startswith("fail"))
    assert [attempt["state"] for attempt in retried["attempts"]] == ["retrying", "retrying", "sent"]
    shown = await notipy("deliveries", "show", retried["id"])
    assert shown.code == 0
    assert [shown.out.count(f"attempt {number}") for number in (1, 2, 3, 4)] == [2, 2, 2, 0]
    assert (await notipy("deliveries", "show", "nothing")).code == 1


async def test_held_deliveries_are_cancelled_by_their_ids(notipy: Notipy, settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish({**order(), "send_at": "2100-01-01T00:00:00Z"})
        held = await stack.reach(event, State.HELD)
    listed = await notipy("deliveries", "list", "--state", "held", "--json")
    assert [record["id"] for record in listed.records] == [held.id]
    unknown = await notipy("deliveries", "list", "--event", "shop", "gone")
    assert (unknown.code, unknown.out) == (0, "")
    assert "No event gone of shop is stored." in unknown.err
    assert "`notipy dead list --channel events` says why" in unknown.err
    assert (await notipy("deliveries", "cancel", "-", stdin=f"{held.id}\n")).code == 0
    again = await notipy("deliveries", "cancel", held.id, "--json")
    assert (again.code, again.records[0]["why"]) == (1, "it is cancelled already")


async def test_what_is_being_sent_is_listed_until_it_is_on_record(
    notipy: Notipy, settings: Settings, stack: Stack
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings, ["events"]):
        events = [await stack.publish(order()) for _ in range(4)]
        *sending, done, _ = [await stack.reach(event, State.QUEUED) for event in events]
    now = datetime.now(UTC)
    for each in (*sending, done):
        await stack.core.deliveries.claim(Claim(each.claim_id(1), "t", now, now + timedelta(minutes=2)))
    change = Change(State.SENT, now, Reason.ACCEPTED, 1, 1, "sink", "250 ok")
    assert await stack.core.deliveries.record(done.changed(change, None), 0, [change])
    listing = ("deliveries", "list", "--state", "sending", "--limit", "1", "--json")
    first = await notipy(*listing)
    second = await notipy(*listing, "--after", first.err.split("--after ")[1].strip())
    newest = sorted(sending, key=lambda one: (one.created_at, one.id), reverse=True)
    records = [*first.records, *second.records]
    assert [(record["id"], record["state"]) for record in records] == [(each.id, "sending") for each in newest]


async def test_the_recipe_of_the_readme_cancels_every_held_delivery(
    notipy: Notipy, settings: Settings, stack: Stack
) -> None:
    await stack.apply(ORDER_SHIPPED)
    recipients = [{"email": f"{number}@example.org"} for number in range(1100)]  # more than a page
    async with running(settings):
        event = await stack.publish({**order(), "recipients": recipients, "send_at": "2100-01-01T00:00:00Z"})
        await eventually(lambda: _planned(stack, event, 1100))
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"`notipy (deliveries list --state held .*?) \\\| jq", readme)
    listed = await notipy(*recipe.split())
    ids = [record["id"] for record in listed.records]
    assert (len(set(ids)), listed.err) == (1100, "")
    assert (await notipy("deliveries", "cancel", "-", stdin="\n".join(ids))).code == 0
    assert (await notipy("deliveries", "list", "--state", "held", "--json")).out == ""


async def _planned(stack: Stack, event: str, count: int) -> bool:
    return len(await stack.deliveries(event)) == count


@pytest.mark.parametrize("text", ["{{ order_id.a.b }}", "{{ customer }}"], ids=["rendered", "planned"])
async def test_what_failed_over_its_template_is_replayed_with_the_corrected_one(
    text: str, notipy: Notipy, settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    wrong = {**ORDER_SHIPPED, "channels": {"email": {"subject": "Shipped", "text": text}}}
    await stack.apply(wrong)
    async with running(settings):
        event = await stack.publish(order())
        (failed,) = await stack.final(event)
        assert (failed.state, failed.reason, failed.version) == (State.FAILED, Reason.TEMPLATE_ERROR, 1)
        in_vain = await notipy("dead", "replay", "--reason", "template_error", "--dry-run")
        assert in_vain.out.splitlines()[-1] == (
            "1 of them in words that have failed: correct them and `notipy apply` before."
        )
        await stack.apply(ORDER_SHIPPED)
        again = await notipy("dead", "replay", "--reason", "template_error")
        assert again.out.splitlines() == [
            "1 delivery replayed.",
            "1 of them with the version of their notification that is in force now.",
        ]
        sent = await stack.reach(event, State.SENT)
    assert (sent.version, sent.epoch) == (2, 2)
    assert "with version 2 of order-shipped, in force now" in [change.detail for change in sent.history]
    assert [mail.message["Subject"] for mail in smtp.mails] == ["Order 1042 shipped"]


async def test_failed_deliveries_are_listed_replayed_and_dropped(
    notipy: Notipy, settings: Settings, stack: Stack, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        once = await stack.publish(order("refuse-552-1@example.org"))
        ever = await stack.publish(order("reject-550@example.org"))
        await stack.final(once)
        await stack.final(ever)
        await eventually(lambda: _holds(stack, "notipy.dead.email", 2))
        listed = await notipy("dead", "list", "--channel", "email", "--json")
        assert {record["event_id"] for record in listed.records} == {once, ever}
        dry = await notipy("dead", "replay", "--channel", "email", "--dry-run", "--json")
        assert [record["dry_run"] for record in dry.records] == [True, True]
        assert not smtp.mails
        replayed = await notipy("dead", "replay", "--channel", "email", "--json")
        assert {(record["action"], record["epoch"]) for record in replayed.records} == {("replayed", 2)}
        await stack.reach(once, State.SENT)
        assert len(smtp.mails) == 1
        await eventually(lambda: _failed_in(stack, ever, epoch=2))
        await eventually(lambda: _holds(stack, "notipy.dead.email", 1))
    dropped = await notipy("dead", "drop", "--reason", "recipient_rejected", "--yes")
    assert dropped.out.splitlines()[0] == "1 delivery dropped."
    assert await stack.depth("notipy.dead.email") == 0
    (delivery,) = await stack.deliveries(ever)
    assert (delivery.state, delivery.reason) == (State.CANCELLED, Reason.DROPPED)


async def _holds(stack: Stack, queue: str, count: int) -> bool:
    return await stack.depth(queue) == count


async def _failed_in(stack: Stack, event: str, *, epoch: int) -> bool:
    (delivery,) = await stack.deliveries(event)
    return (delivery.state, delivery.epoch) == (State.FAILED, epoch)


async def test_hundreds_are_replayed_once_by_two_operators(notipy: Notipy, settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    recipients = [{"email": f"reject-550@{number}.example.org"} for number in range(300)]
    async with running(settings):
        event = await stack.publish({**order(), "recipients": recipients})
        await stack.final(event, count=300)
        await eventually(lambda: _holds(stack, "notipy.dead.email", 300))
    ended = await asyncio.gather(*(notipy("dead", "replay", "--channel", "email", "--json") for _ in range(2)))
    replayed = [r["id"] for each in ended for r in each.records if r["action"] == "replayed"]
    assert len(replayed) == len(set(replayed)) == 300
    assert {delivery.epoch for delivery in await stack.deliveries(event)} == {2}
    assert await stack.depth("notipy.dead.email") == 0


async def test_dead_events_are_listed_replayed_and_dropped(notipy: Notipy, settings: Settings, stack: Stack) -> None:
    async with running(settings):
        await stack.publish(b"no json", message_id="bad-1")
        await stack.publish({"data": {}}, message_id="bad-2", key="other.thing")
        await eventually(lambda: _holds(stack, "notipy.dead.events", 2))
    listed = await notipy("dead", "list", "--json")
    assert {(r["message_id"], r["reason"]) for r in listed.records} == {("bad-1", "not_json"), ("bad-2", "invalid")}
    faults = next(r["detail"] for r in listed.records if r["message_id"] == "bad-2")
    assert [fault["field"] for fault in faults] == ["recipients"]
    replayed = await notipy("dead", "replay", "--channel", "events", "--source", "other")
    assert replayed.out.splitlines()[0] == "1 dead event replayed."
    assert (await stack.depth("notipy.dead.events"), await stack.depth("notipy.events")) == (1, 1)
    elsewhere = await notipy("dead", "replay", "--id", "bad-1")
    assert (elsewhere.code, elsewhere.out) == (1, "")
    assert "No dead delivery" in elsewhere.err
    assert "--channel events" in elsewhere.err
    assert "1 dead event would be dropped" in (await notipy("dead", "drop", "--channel", "events", "--dry-run")).out
    refused = await notipy("dead", "drop", "--channel", "events")
    assert (refused.code, refused.out) == (2, "")
    assert "Give --yes" in refused.err
    assert await stack.depth("notipy.dead.events") == 1
    dropped = await notipy("dead", "drop", "--channel", "events", "--yes", "--json")
    assert [record["message_id"] for record in dropped.records] == ["bad-1"]
    assert await stack.depth("notipy.dead.events") == 0
    assert (await notipy("dead", "drop", "--channel", "events")).code == 0  # there is nothing to ask about


async def test_ctrl_c_at_the_question_leaves_everything_as_it_is(
    settings: Settings, config_file: Path, stack: Stack
) -> None:
    async with running(settings):
        await stack.publish(b"no json", message_id="bad-1")
        await eventually(lambda: _holds(stack, "notipy.dead.events", 1))
    keyboard, screen = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "--config", str(config_file), "dead", "drop", "--channel", "events"),
        stdin=screen,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(screen)
    assert process.stderr is not None
    question = await process.stderr.readuntil(b"[y/N]")
    process.send_signal(signal.SIGINT)
    out, rest = await process.communicate()
    os.close(keyboard)
    assert b"Drop 1 dead event?" in question
    assert rest.decode().splitlines()[-1] == "Aborted."
    assert (process.returncode, out.strip()) == (130, b"")
    assert await stack.depth("notipy.dead.events") == 1


async def test_dead_deliveries_and_dead_events_are_told_apart(notipy: Notipy, settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    assert (await notipy("dead", "list")).out == ""
    async with running(settings):
        await stack.publish(b"no json", message_id="bad-1")
        await eventually(lambda: _holds(stack, "notipy.dead.events", 1))
        alone = await notipy("dead", "list")
        await stack.final(await stack.publish(order("reject-550@example.org")))
    both = await notipy("dead", "list")
    assert alone.out.startswith("DEAD EVENT")
    assert "\n\nMessages that were no events\nDEAD EVENT" in both.out


async def test_the_topology_is_checked_and_declared(notipy: Notipy) -> None:
    missing = await notipy("topology", "--check")
    assert missing.code == 1
    assert "missing" in missing.err
    assert (await notipy("topology", "--declare")).code == 0
    checked = await notipy("topology", "--check", "--json")
    assert checked.code == 0
    events = next(r for r in checked.records if (r["kind"], r["name"]) == ("queue", "notipy.events"))
    assert (events["bound_to"], events["key"], events["messages"], events["consumers"]) == ("notipy.events", "#", 0, 0)


async def test_a_queue_that_was_declared_otherwise_differs(notipy: Notipy, stack: Stack) -> None:
    await stack.channel.queue_delete("notipy.dead.sms")
    await stack.channel.declare_queue("notipy.dead.sms", durable=True)
    checked = await notipy("topology", "--check", "--json")
    assert checked.code == 1
    assert [r["name"] for r in checked.records if r["state"] != "present"] == ["notipy.dead.sms"]
    sent = await notipy("send", "--key", "shop.x", "--to", "ana@example.org")
    assert sent.code == 1
    assert "`notipy topology --check` shows what" in sent.err


async def test_the_audit_finds_what_is_overdue(notipy: Notipy, settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    in_order = await notipy("audit", "--json")
    assert (in_order.code, in_order.records[0]["in_order"]) == (0, True)
    async with running(settings, ["events"]):  # nobody delivers, and no sweeper looks after it
        event = await stack.publish(order())
        delivery = await stack.reach(event, State.QUEUED)
    waiting = {"notipy.channel.email.normal": 1}
    moved = await notipy("audit", "--json")
    assert (moved.code, moved.records[0]["untaken"]) == (0, waiting), "it is on its way, though nobody takes it"
    told = (await notipy("audit")).out
    assert "Nobody takes from notipy.channel.email.normal, where 1 message waits." in told
    assert "Everything is accounted for, but not all of it moves." in told
    (consumers,) = [each for each in (await notipy("doctor", "--json")).records if each["check"] == "consumers"]
    assert consumers["detail"].endswith("; 1 message waits there")
    await stack.core.deliveries.postpone(delivery, delivery.created_at.replace(year=2020))
    late = await notipy("audit", "--json")
    assert (late.code, late.records[0]["overdue"]) == (1, 1)
    assert late.records[0]["states"] == {"email": {"queued": 1}}


async def test_the_audit_names_what_is_amiss_and_repairs_it(notipy: Notipy, settings: Settings, stack: Stack) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        events = [await stack.publish(order()) for _ in range(3)]
        for event in events:
            await stack.final(event)
    in_order = await notipy("audit")
    assert in_order.code == 0
    assert "Everything is accounted for." in in_order.out
    (orphan,) = await stack.deliveries(events[2])
    for event in events[:2]:
        await stack.core.database.collection("deliveries").delete_one({"event_id": event})
    await stack.core.database.collection("events").delete_one({"_id": orphan.event_key})
    amiss = await notipy("audit", "--json", "--limit", "1")
    summary, *exceptions = amiss.records
    assert amiss.code == 1
    assert "3 exceptions: 2 missing, 1 orphaned." in amiss.err
    assert "`notipy audit --repair`" in amiss.err
    assert summary["exceptions"] == {"missing": 2, "orphaned": 1}
    assert (summary["planned"], summary["final"], summary["in_flight"], summary["queues"]) == (2, 1, 0, True)
    assert {(each["exception"], each["id"]) for each in exceptions} >= {("orphaned", orphan.id)}
    assert len(exceptions) == 2, "one of each kind"
    named = await notipy("audit")
    for event in events:
        assert f"shop/{event}" in named.out
    assert (await notipy("audit", "--since", "2100-01-01", "--json")).records[0]["in_order"]
    part = await notipy("audit", "--repair", "--limit", "1")
    assert (part.code, "1 exception left." in part.err) == (1, True)
    repaired = await notipy("audit", "--repair", "--json")
    assert (repaired.code, [each["repaired"] for each in repaired.records[1:]]) == (0, [True])
    assert (await notipy("audit", "--json")).code == 0
    assert {delivery.event_id for delivery in await stack.deliveries()} == set(events)


async def test_the_doctor_masks_secrets_and_says_what_fails(
    notipy: Notipy, config_file: Path, stack: Stack, tmp_path: Path
) -> None:
    await stack.apply(ORDER_SHIPPED)
    good = await notipy("doctor", "--json")
    found = {record["check"]: record["result"] for record in good.records}
    assert good.code == 0
    assert found.pop("consumers") == "warning"
    assert set(found.values()) == {"ok"}
    assert "whsec_" not in good.out
    assert "guest:guest" not in good.out
    file = tmp_path / "wrong.yaml"
    wrong = {"name": "gone", "kind": "smtp", "url": "smtp://u:geheim@127.0.0.1:1?tls=none", "from": "a@example.org"}
    document = yaml.safe_load(config_file.read_text()) | {"channels": {"sms": {"providers": [wrong]}}}
    file.write_text(yaml.safe_dump(document | {"amqp_url": "amqp://nobody:geheim@127.0.0.1:1/"}))
    bad = await notipy("doctor", config=file)
    assert bad.code == 1
    assert "geheim" not in bad.out + bad.err
    assert bad.out.index("✗ provider sms") < bad.out.index("Settings from") < bad.out.index("retry: [")
    for told in (
        "✗ broker:",
        "✗ catalog: its notifications use channels that have no provider: email",
        "✗ provider sms",
    ):
        assert told in bad.out


async def test_the_doctor_names_a_host_that_there_is_not(notipy: Notipy, config_file: Path, tmp_path: Path) -> None:
    named = {"name": "us", "kind": "mailgun", "domain": "mg.shop.example", "api_key": "geheim", "from": "a@example.org"}
    mistyped = {**named, "base_url": "https://api.mailgun.invalid/v3"}
    document = yaml.safe_load(config_file.read_text()) | {"channels": {"email": {"providers": [mistyped]}}}
    file = tmp_path / "mistyped.yaml"
    file.write_text(yaml.safe_dump(document))
    told = await notipy("doctor", "--json", config=file)
    assert told.code == 1
    (provider,) = [each for each in told.records if each["check"] == "provider email/us"]
    assert (provider["result"], "the host api.mailgun.invalid was not found" in provider["detail"]) == ("failed", True)
    assert provider["advice"] == "See that it runs and that channels.email.providers.0 names it."


async def test_wrong_settings_are_told_together_and_the_doctor_checks_the_rest(
    notipy: Notipy, config_file: Path, tmp_path: Path
) -> None:
    wrong = {"name": "us", "kind": "mailgun", "domain": "mg.shop.example", "from": "a@example.org"}
    document = yaml.safe_load(config_file.read_text()) | {"channels": {"email": {"providers": [wrong]}}}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(document))
    lacking = "channels.email.providers.0 (us): api_key: Field required"
    findings = {each["check"]: each for each in (await notipy("doctor", "--json", config=file)).records}
    assert (findings["broker"]["result"], findings["provider email/us"]["result"]) == ("ok", "failed")
    assert findings["provider email/us"]["detail"] == f"wrong settings: {lacking}"
    started = await notipy("run", config=file)
    assert (started.code, lacking in started.err) == (2, True)
    file.write_text(yaml.safe_dump(document | {"lease": "0s", "amqp_url": "${NO_SUCH_VARIABLE}"}))
    for command in ("run", "doctor", "audit"):
        told = await notipy(command, config=file)
        assert (told.code, told.out) == (2, "")
        for each in ("lease: should be longer", "amqp_url: the environment variable NO_SUCH_VARIABLE", lacking):
            assert each in told.err, command


@pytest.mark.parametrize("command", [("audit",), ("notifications", "list"), ("deliveries", "list")])
async def test_what_reads_mongodb_alone_does_not_need_the_broker(
    notipy: Notipy, config_file: Path, command: tuple[str, ...]
) -> None:
    document = yaml.safe_load(config_file.read_text())
    config_file.write_text(yaml.safe_dump(document | {"amqp_url": "amqp://127.0.0.1:1/"}))
    assert (await notipy(*command)).code == 0


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"amqp_url": "amqp://me:geheim@127.0.0.1:1/"}, "RabbitMQ at amqp://me:***@127.0.0.1:1/"),
        ({"mongo_url": "mongodb://me:geheim@127.0.0.1:1/x"}, "MongoDB at mongodb://me:***@127.0.0.1:1/x"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_told_with_what_to_do(
    notipy: Notipy, config_file: Path, setting: dict[str, str], told: str
) -> None:
    config_file.write_text(yaml.safe_dump(yaml.safe_load(config_file.read_text()) | setting))
    ended = await notipy("deliveries", "cancel", "x")
    assert ended.code == 1
    assert told in ended.err
    assert "What to do:" in ended.err
    assert "Traceback" not in ended.err
    assert "geheim" not in ended.err


async def test_the_doctor_says_where_wrong_credentials_are_corrected(
    notipy: Notipy, config_file: Path, tmp_path: Path
) -> None:
    async with scripted_smtp(EHLO=["250-mail.example\r\n250 AUTH PLAIN"], AUTH=["535 5.7.8 wrong"]) as server:
        url = f"smtp://shop:geheim@127.0.0.1:{server.port}?tls=none"
        provider = {"name": "primary", "kind": "smtp", "url": url, "from": "shop@example.org"}
        document = yaml.safe_load(config_file.read_text()) | {"channels": {"email": {"providers": [provider]}}}
        file = tmp_path / "wrong.yaml"
        file.write_text(yaml.safe_dump(document))
        told = await notipy("doctor", "--json", config=file)
    (found,) = [each for each in told.records if each["check"] == "provider email/primary"]
    assert found["result"] == "failed"
    assert found["advice"].startswith("Correct the credentials of channels.email.providers.0")


async def test_a_key_of_one_word_is_told_what_a_key_is(notipy: Notipy) -> None:
    told = await notipy("send", "--key", "shop", "--to", "ana@example.org")
    assert told.code == 2
    assert "The key is <source>.<type>" in told.err


async def test_no_id_on_standard_input_is_nothing_to_cancel(notipy: Notipy) -> None:
    told = await notipy("deliveries", "cancel", "-", "--json", stdin="")
    assert (told.code, told.out) == (0, "")
    assert "names none" in told.err
