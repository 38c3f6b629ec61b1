"""Each producer publishes, with its language's usual client, an event that becomes one mail."""

import asyncio
import os

import pytest

from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.vocabulary import Channel, State
from tests.examples import producers
from tests.examples.producers import Command
from tests.running import ORDER_SHIPPED, Stack


@pytest.fixture(scope="module", params=producers.at_hand(), ids=lambda producer: producer.__name__)
def producer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Command:
    command: Command = request.param(tmp_path_factory.mktemp("producer"))
    return command


async def publish(command: Command, url: str, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        env={**os.environ, "AMQP_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    return process.returncode or 0, told.decode()


async def test_what_it_publishes_is_delivered_once_however_often(
    producer: Command, settings: Settings, stack: Stack, vhost: str, smtp: SmtpSink
) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        for _ in range(2):
            code, told = await publish(producer, vhost, "ben@example.org", "7")
            assert code == 0, told
        (delivery,) = await stack.final("ord-7")
    assert (delivery.channel, delivery.state) == (Channel.EMAIL, State.SENT)
    assert delivery.type == "order.shipped"
    assert [mail.recipients for mail in smtp.mails] == [("ben@example.org",)]


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nowhere.invalid"])
async def test_it_says_in_a_line_that_the_broker_cannot_be_reached(producer: Command, host: str) -> None:
    code, told = await publish(producer, f"amqp://ana:geheim@{host}/%2F")
    assert code == 1
    assert len(told.splitlines()) == 1
    assert "geheim" not in told


async def test_it_fails_where_nobody_takes_events(producer: Command, vhost: str) -> None:
    code, told = await publish(producer, vhost)
    assert code != 0
    assert "Published" not in told
