"""NotiPy as real processes: killed, stopped, several at once."""

import asyncio
import os
import re
import signal
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
import yaml

from consumers.topology import channel_queue
from deploy.embedded import embedded_servers
from deploy.processes import alive, descendants, free_ports
from deploy.smtp_sink import SmtpSink
from domain.vocabulary import Channel, Lane, State
from tests.forking import Forker
from tests.running import ORDER_SHIPPED, Stack, order
from tests.waiting import eventually

CONCURRENCY = 100


async def publish_many(stack: Stack, count: int) -> None:
    body = {"data": {"order_id": 1}}
    await asyncio.gather(
        *(
            stack.publish({**body, "recipients": [{"email": f"user{n}@example.org"}]}, message_id=f"ord-{n}")
            for n in range(count)
        )
    )


def unhurried(config: Path) -> None:
    """Leases so long that none runs out on a slow machine: what the test sees is no work of the sweeper's."""
    document = yaml.safe_load(config.read_text())
    document |= {"lease": "10m", "sweeper": {"interval": "200ms", "overdue": "10m"}}
    config.write_text(yaml.safe_dump(document))


async def all_sent(stack: Stack, count: int) -> bool:
    found = await stack.core.deliveries.count_by_state()
    return not found and len(await stack.deliveries()) == count


def received(smtp: SmtpSink) -> Counter[str]:
    return Counter(mail.recipients[0] for mail in smtp.mails)


async def test_killed_in_the_middle_of_two_thousand_nothing_is_lost(
    stack: Stack, config_file: Path, smtp: SmtpSink, forker: Forker, tmp_path: Path
) -> None:
    count = 2000
    await stack.apply(ORDER_SHIPPED)
    await publish_many(stack, count)
    log = tmp_path / "notipy.log"
    async with forker.consumer(config_file, log=log) as process:
        await eventually(lambda: len(smtp.mails) > count // 4, timeout=60)
        process.kill()
        await process.wait()
    at_kill = len(smtp.mails)
    assert at_kill < count
    async with forker.consumer(config_file, log=log):

        async def done() -> bool:
            return len(received(smtp)) == count and await all_sent(stack, count)

        await eventually(done, timeout=90)
    twice = {address for address, times in received(smtp).items() if times > 1}
    print(f"killed after {at_kill} mails; {len(twice)} of {count} were sent twice")
    assert len(received(smtp)) == count
    assert len(twice) <= CONCURRENCY * len(Lane)
    deliveries = await stack.deliveries()
    assert {delivery.state for delivery in deliveries} == {State.SENT}
    flagged = {str(delivery.recipient["email"]) for delivery in deliveries if delivery.possible_duplicate}
    assert twice <= flagged


async def test_stopped_under_load_nothing_is_sent_twice_and_no_delivery_count_grows(
    stack: Stack, config_file: Path, smtp: SmtpSink, forker: Forker, tmp_path: Path
) -> None:
    count = 1000
    unhurried(config_file)
    await stack.apply(ORDER_SHIPPED)
    await publish_many(stack, count)
    log = tmp_path / "notipy.log"
    async with forker.consumer(config_file, log=log) as process:
        await eventually(lambda: len(smtp.mails) > count // 4, timeout=60)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 15) == 0
    assert len(smtp.mails) < count
    await _no_message_was_given_back(stack)
    async with forker.consumer(config_file, log=log):

        async def done() -> bool:
            return await all_sent(stack, count)

        await eventually(done, timeout=60)
    assert set(received(smtp).values()) == {1}
    assert len(received(smtp)) == count
    assert not [delivery for delivery in await stack.deliveries() if delivery.possible_duplicate]
    assert "grace_exceeded" not in log.read_text()
    assert "delivery.sent" in log.read_text()
    assert "example.org" not in log.read_text()


async def test_two_workers_share_the_work_and_one_page(
    stack: Stack, config_file: Path, smtp: SmtpSink, forker: Forker, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    document = yaml.safe_load(config_file.read_text())
    document["metrics"]["port"] = port
    config_file.write_text(yaml.safe_dump(document))
    await stack.apply(ORDER_SHIPPED)
    log = tmp_path / "notipy.log"
    async with forker.consumer(config_file, "--workers", "2", log=log) as process, aiohttp.ClientSession() as http:

        async def status(path: str) -> int:
            try:
                async with http.get(f"http://127.0.0.1:{port}/{path}") as answer:
                    return answer.status
            except aiohttp.ClientConnectionError:
                return 0

        async def ready() -> bool:
            return await status("readyz") == 200

        await eventually(ready, timeout=30)
        assert await status("healthz") == 200
        await publish_many(stack, 200)

        async def done() -> bool:
            return await all_sent(stack, 200)

        await eventually(done, timeout=30)

        async def counted() -> bool:  # a delivery is counted just after it is recorded
            async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
                sent = re.search(r'notipy_deliveries_total\{.*outcome="sent".*\} (\d+)', await answer.text())
            return sent is not None and int(sent[1]) == 200

        await eventually(counted)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    assert set(received(smtp).values()) == {1}


async def _no_message_was_given_back(stack: Stack) -> None:
    """Look at every message that waits, without taking it."""
    for name in ("notipy.events", *(channel_queue(Channel.EMAIL, lane) for lane in Lane)):
        channel = await stack.core.connection.channel()
        queue = await channel.declare_queue(name, passive=True, robust=False)
        for _ in range(queue.declaration_result.message_count or 0):
            message = await queue.get(fail=False)
            if message is not None:
                assert not message.headers.get("x-delivery-count"), name
        await channel.close()


async def test_workers_end_with_their_supervisor_however_it_ends(
    stack: Stack, config_file: Path, forker: Forker, tmp_path: Path
) -> None:
    log = tmp_path / "notipy.log"
    async with forker.consumer(config_file, "--workers", "2", log=log) as process:
        await eventually(lambda: log.read_text().count("notipy.started") == 2, timeout=30)
        workers = descendants(process.pid)
        assert len(workers) >= 2
        process.kill()
        await process.wait()
        await eventually(lambda: not alive(workers), timeout=20)
    assert log.read_text().count("notipy.stopping") == 2


async def test_wrong_settings_stop_the_start_and_name_themselves(forker: Forker, tmp_path: Path) -> None:
    wrong = tmp_path / "notipy.yaml"
    wrong.write_text("channels: {email: {retry: [soon], providers: [{name: x, kind: smtp, url: 'smtp://h'}]}}\n")
    log = tmp_path / "notipy.log"
    async with forker.consumer(wrong, log=log) as process:
        assert await asyncio.wait_for(process.wait(), 20) == 2
    assert "channels.email.retry.0" in log.read_text()


@pytest.mark.parametrize(
    ("url", "roles", "told"),
    [
        ("smtp://h?tls=maybe", "email", "channels.email.providers.0 (x): url"),
        ("smtp://h", "mail", "no such role: mail"),
    ],
)
async def test_what_no_worker_can_run_with_stops_all_of_them(
    forker: Forker, tmp_path: Path, url: str, roles: str, told: str
) -> None:
    wrong, log = tmp_path / "notipy.yaml", tmp_path / "notipy.log"
    provider = {"name": "x", "kind": "smtp", "url": url, "from": "shop@example.org"}
    wrong.write_text(yaml.safe_dump({"channels": {"email": {"providers": [provider]}}}))
    async with forker.consumer(wrong, "--workers", "2", "--roles", roles, log=log) as process:
        assert await asyncio.wait_for(process.wait(), 20) == 2
    assert told in log.read_text()


async def test_a_restarted_worker_takes_over(
    stack: Stack, config_file: Path, forker: Forker, smtp: SmtpSink, tmp_path: Path
) -> None:
    await stack.apply(ORDER_SHIPPED)
    log = tmp_path / "notipy.log"
    async with forker.consumer(config_file, "--workers", "2", log=log) as process:
        await eventually(lambda: log.read_text().count("notipy.started") == 2, timeout=30)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        await eventually(lambda: log.read_text().count("notipy.started") == 3, timeout=30)
        event = await stack.publish(order())
        await stack.final(event)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_stopping_does_not_wait_for_servers_that_are_gone(
    config_file: Path, forker: Forker, tmp_path: Path
) -> None:
    log = tmp_path / "notipy.log"
    with embedded_servers(tmp_path / "servers", log=print) as servers:
        document = yaml.safe_load(config_file.read_text())
        document |= {"amqp_url": servers.amqp_url, "mongo_url": servers.mongo_url, "grace": "3s"}
        config_file.write_text(yaml.safe_dump(document))
        async with forker.consumer(config_file, log=log) as process:
            await eventually(lambda: "notipy.started" in log.read_text(), timeout=30)
            for pid in servers.pids.values():
                os.kill(pid, signal.SIGKILL)
            await eventually(lambda: "database.unreachable" in log.read_text(), timeout=30)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) == 0
