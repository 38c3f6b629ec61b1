"""A channel's queue takes no more, as a `max-length` of the operator's makes it: nothing waits for it but its own."""

from typing import Any

import aio_pika
import pytest

from config.settings import Settings
from consumers.app import running
from deploy.rabbit_admin import RabbitAdmin
from domain.failures import PermanentFailure
from domain.vocabulary import Channel, Reason, State
from tests.conftest import SharedServers
from tests.fakes import ScriptedProvider
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually

BULK = "notipy.channel.email.bulk"
DEAD_EMAIL = "notipy.dead.email"
HELD = 5
MANY = 40


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for seconds in production."""
    monkeypatch.setattr("consumers.publisher.REFUSED_SECONDS", 0.3)


@pytest.fixture
def limited(servers: SharedServers, vhost: str) -> None:
    """The queue holds five messages."""
    admin = RabbitAdmin(servers.management_url)
    admin.set_policy(vhost.rsplit("/", 1)[1], "limit", r"^notipy\.channel\.email\.bulk$", {"max-length": HELD})


def bulk(number: int) -> dict[str, Any]:
    return order(f"u{number}@example.org", lane="bulk")


@pytest.mark.usefixtures("limited")
async def test_events_of_other_channels_are_planned_and_the_rest_goes_when_there_is_room(
    config: dict[str, Any], stack: Stack
) -> None:
    settings = Settings.model_validate(config | {"events": {"concurrency": 5}, "dispatch": {"bulk": 1}})
    await stack.apply(ORDER_SHIPPED)
    sms, email = ScriptedProvider(), ScriptedProvider()
    async with running(settings, ["events", "sms"], providers={Channel.SMS: sms}):
        waiting = [await stack.publish(bulk(number)) for number in range(MANY)]
        urgent = {"recipients": [{"phone": "+4915112345678"}], "content": {"sms": {"text": "1234"}}, "lane": "high"}
        await stack.final(await stack.publish(urgent))
        assert len(sms.sent) == 1
        assert [(await stack.reach(each, State.QUEUED)).attempt for each in waiting] == [0] * MANY
        await eventually(lambda: _is_full(stack))
    async with running(settings, providers={Channel.EMAIL: email}):  # with those who take from it, and the sweeper
        for each in waiting:
            assert (await stack.final(each))[0].state is State.SENT
    assert len(email.sent) == MANY


@pytest.mark.usefixtures("limited")
async def test_parcels_that_were_handed_out_twice_are_done_though_their_own_queue_is_full(
    config: dict[str, Any], vhost: str, stack: Stack
) -> None:
    """They are taken apart, into the queue that they came from: whoever waits for room there is what leaves none."""
    email = config["channels"]["email"] | {"concurrency": HELD}
    channels = config["channels"] | {"email": email}
    settings = Settings.model_validate(config | {"channels": channels, "dispatch": {"bulk": 20}})
    await stack.apply(ORDER_SHIPPED)
    people = [{"email": f"u{number}@example.org"} for number in range(20 * HELD * 4)]
    async with running(settings, ["events"]):
        event = await stack.publish({"recipients": people, "data": {"order_id": 1}, "lane": "bulk"})
        await eventually(lambda: _is_full(stack))
    for _ in range(2):
        await _handed_out_in_vain(vhost)
        await eventually(lambda: _is_full(stack))
    provider = ScriptedProvider()
    async with running(settings, providers={Channel.EMAIL: provider}):
        ended = await stack.final(event, count=len(people), timeout=40)
    assert {each.state for each in ended} == {State.SENT}
    assert len(provider.sent) == len(people)


async def test_a_full_dead_letter_queue_stops_nothing_and_gets_the_rest_when_there_is_room(
    config: dict[str, Any], servers: SharedServers, vhost: str, stack: Stack
) -> None:
    admin, name = RabbitAdmin(servers.management_url), vhost.rsplit("/", 1)[1]
    admin.set_policy(name, "limit", r"^notipy\.dead\.email$", {"max-length": HELD})
    settings = Settings.model_validate(
        config | {"channels": {"email": config["channels"]["email"] | {"concurrency": 5}}}
    )
    await stack.apply(ORDER_SHIPPED)
    refusing = ScriptedProvider(script=[PermanentFailure(Reason.RECIPIENT_REJECTED, "550 no") for _ in range(MANY)])
    async with running(settings, providers={Channel.EMAIL: refusing}):
        refused = [await stack.publish(order(f"u{number}@example.org")) for number in range(MANY)]
        unreadable = {"content": {"email": {"subject": "s"}}}  # what fails as it is planned
        planned = [await stack.publish(order(f"u{number}@example.org") | unreadable) for number in range(MANY)]
        for each in (*refused, *planned):
            assert (await stack.final(each))[0].state is State.FAILED
        good = await stack.publish(order("ana@example.org"))
        assert (await stack.final(good))[0].state is State.SENT
        assert await stack.depth(DEAD_EMAIL) < MANY
        admin.set_policy(name, "limit", r"^notipy\.dead\.email$", {"max-length": MANY * 10})
        await eventually(lambda: _parked(stack, 2 * MANY))


async def _parked(stack: Stack, count: int) -> bool:
    return await stack.depth(DEAD_EMAIL) >= count


async def _is_full(stack: Stack) -> bool:
    return await stack.depth(BULK) >= HELD


async def _handed_out_in_vain(vhost: str) -> None:
    """To a consumer whose connection is lost."""
    async with await aio_pika.connect(vhost) as connection:
        queue = await (await connection.channel()).get_queue(BULK, ensure=False)
        while await queue.get(fail=False) is not None:
            pass
