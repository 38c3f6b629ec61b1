"""Inboxes in browsers: over RabbitMQ's own Web-STOMP, by a client of its own, as docs/providers/inbox.md says."""

import asyncio
import json
import re
import shlex
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shutil import copy
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from yarl import URL

from config.settings import Settings
from consumers.app import running
from deploy.rabbit_admin import RabbitAdmin
from domain.inbox import inbox_key
from domain.vocabulary import State
from tests.conftest import ROOT, SharedServers
from tests.nodejs import installed, script
from tests.running import Stack
from tests.waiting import eventually

DOCUMENTED = (ROOT / "docs" / "providers" / "inbox.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "tests" / "browser" / "browser.mjs"
PASSCODE = "pass:code/ö"
AWKWARD = "Ана/1:7.*#~%\\\"' 🙂!()"
"""What destinations, headers and keys of STOMP and AMQP give a meaning to, and what is more than a byte."""
HELLO = {
    "name": "hello",
    "on": "shop.#",
    "channels": {"inbox": {"title": "Grüße, {{ recipient.name }}", "text": "{{ words }}"}},
}
WORDS = (
    "Žluťoučký 🐎, 日本語, e\u0301\u200d;\n\t\"quoted\" 'back\\slash' \\n \x00 \x1f \u2028 <b>&amp;</b> {{ 1 }}/%2F\r\n"
)


def block(language: str) -> str:
    """The one example in this language that the documentation of the inbox has."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENTED, re.MULTILINE | re.DOTALL)
    return str(found)


@dataclass
class Access:
    """Gives browsers access to a virtual host, as the documentation says."""

    admin: RabbitAdmin
    vhost: str
    users: list[str] = field(default_factory=list)

    def give(self, person: str) -> str:
        """Carry out the documented commands, with the person's key for the example's; returns the key."""
        key = inbox_key(person)
        self.users.append(key)
        for line in block("console").splitlines():
            prompt, program, *command = shlex.split(line)
            assert (prompt, program) == ("$", "rabbitmqctl")
            self._carry_out(*(word.replace("user-7", key) for word in command))
        return key

    def _carry_out(self, verb: str, name: str, *words: str) -> None:
        match verb, words:
            case "add_user", ():
                self.admin._call("PUT", "users", name, body={"password": PASSCODE, "tags": ""})
            case "set_permissions", (configure, write, read):
                permissions = {"configure": configure, "write": write, "read": read}
                self.admin._call("PUT", "permissions", self.vhost, name, body=permissions)
            case "set_topic_permissions", (exchange, write, read):
                topics = {"exchange": exchange, "write": write, "read": read}
                self.admin._call("PUT", "topic-permissions", self.vhost, name, body=topics)
            case "set_policy", (pattern, definition, "--apply-to", "queues"):
                self.admin.set_policy(self.vhost, name, pattern, json.loads(definition))
            case _:
                raise AssertionError(f"the test does not know {verb} {words}")

    def queues(self) -> set[str]:
        return {queue["name"] for queue in self.admin.queues(self.vhost)}

    def queues_at(self, key: str) -> list[str]:
        """Those that are bound to a key of `notipy.inbox`."""
        bindings = self.admin._list("bindings", self.vhost)
        wanted = ("notipy.inbox", key)
        return [each["destination"] for each in bindings if (each["source"], each["routing_key"]) == wanted]


@pytest.fixture
def access(servers: SharedServers, vhost: str) -> Iterator[Access]:
    given = Access(RabbitAdmin(servers.management_url), URL(vhost).path.strip("/"))
    yield given
    for user in given.users:
        given.admin._call("DELETE", "users", user)


@dataclass(frozen=True)
class Browsers:
    """Any number of them, in one process."""

    process: Process

    def ask(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")

    async def say(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 20))

    async def listen(self, person: str, access: Access) -> str:
        """Open a person's page; once its subscription is there, returns the key as the browser has it."""
        self.ask(person=person, passcode=PASSCODE)
        key: str = (await self.say())["key"]

        async def bound() -> bool:
            return bool(access.queues_at(key))

        await eventually(bound)
        return key

    async def told(self, person: str) -> Any:
        """What a person's page is told next, nobody else's being told anything before."""
        said = await self.say()
        assert said["person"] == person
        return said["told"]

    async def tried(
        self, login: str | None, passcode: str | None, attempts: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, bool]:
        """Whether each attempt was allowed; each had got as far as being logged in."""
        for name, attempt in attempts.items():
            self.ask(name=name, login=login, passcode=passcode, **attempt)
        said = [await self.say() for _ in attempts]
        assert all(each["connected"] for each in said)
        return {each["name"]: each["allowed"] for each in said}


Opened = Callable[[], AbstractAsyncContextManager[Browsers]]


@pytest.fixture
def browsers(servers: SharedServers, access: Access, tmp_path: Path) -> Opened:
    """Opens browsers: the script, with the code of the documentation and the package beside it."""
    (tmp_path / "node_modules").symlink_to(installed(SCRIPT.parent) / "node_modules")
    (tmp_path / "told.mjs").write_text(block("js"), encoding="utf-8")
    code = Path(copy(SCRIPT, tmp_path))

    @asynccontextmanager
    async def opened() -> AsyncIterator[Browsers]:
        async with script(code, servers.web_stomp_url, access.vhost) as process:
            yield Browsers(process)

    return opened


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    """With an inbox."""
    inbox = {"retry": ["100ms"] * 3, "providers": [{"name": "app", "kind": "inbox"}]}
    return {**config, "channels": {**config["channels"], "inbox": inbox}}


async def command(stack: Stack, **fields: Any) -> None:
    """As the application gives one."""
    exchange = await stack.channel.get_exchange("notipy.commands")
    body = json.dumps(fields).encode()
    await exchange.publish(aio_pika.Message(body, timestamp=datetime.now(UTC)), "inbox")


async def test_a_browser_is_told_of_its_own_persons_items_and_marks(
    settings: Settings, stack: Stack, access: Access, browsers: Opened
) -> None:
    ana, bob = f"{AWKWARD}{uuid4().hex}", f"bob-{uuid4().hex}"
    await stack.apply(HELLO)
    keys = [access.give(ana), access.give(bob)]
    async with running(settings), browsers() as pages:
        assert [await pages.listen(person, access) for person in (ana, bob)] == keys

        event = await stack.publish({"recipients": [{"id": ana, "name": AWKWARD}], "data": {"words": WORDS}})
        (delivery,) = await stack.final(event)
        added = await pages.told(ana)
        assert (delivery.state, delivery.detail) == (State.SENT, "stored")
        assert (added["kind"], added["id"], added["recipient"]) == ("added", f"{delivery.id}/1", ana)
        assert added["content"] == {"title": f"Grüße, {AWKWARD}", "text": WORDS}

        for mark in ("seen", "read", "archived"):
            await command(stack, command=f"inbox.{mark}", recipient=ana, ids=[added["id"]])
            change = await pages.told(ana)
            assert (change["kind"], change["recipient"], change["ids"]) == (mark, ana, [added["id"]])
        (kept,) = await stack.core.inbox.page(ana, 10, archived=True)
        assert (kept.id, kept.unseen, kept.unread) == (added["id"], False, False)

        await stack.publish({"recipients": [{"id": bob, "name": "Bob"}], "data": {"words": "for Bob"}})
        assert (await pages.told(bob))["content"]["text"] == "for Bob"


async def test_a_browser_reaches_nothing_else(stack: Stack, access: Access, vhost: str, browsers: Opened) -> None:
    ana, bob = f"ana-{uuid4().hex}", f"bob-{uuid4().hex}"
    access.give(ana)
    access.give(bob)
    async with browsers() as pages, browsers() as visitors:
        (anas,) = access.queues_at(await pages.listen(ana, access))
        administrator, attempts = URL(vhost), {**own(bob), **others(bob, ana, anas)}
        allowed = await visitors.tried(administrator.user, administrator.password, attempts)
        assert allowed == dict.fromkeys(attempts, True)
        before, attempts = access.queues(), {**own(bob), **others(bob, ana, anas)}
        assert await visitors.tried(bob, PASSCODE, attempts) == {name: name in own(bob) for name in attempts}
        assert {queue for queue in access.queues() - before if not queue.startswith(f"inbox.{bob}.")} == set()


def own(key: str) -> Mapping[str, Mapping[str, Any]]:
    """What a browser may do."""
    return {"its own": {"subscribe": f"/exchange/notipy.inbox/{key}", "headers": queue_of(key)}}


def named(queue: str) -> Mapping[str, str]:
    return {"x-queue-name": queue}


def queue_of(key: str) -> Mapping[str, str]:
    """Another one each time: at its last subscription's end a queue is deleted, and others' are under way."""
    return named(f"inbox.{key}.{uuid4()}")


def others(key: str, other: str, queue_of_other: str) -> Mapping[str, Mapping[str, Any]]:
    """What it may not: what an administrator may."""
    mine = f"/exchange/notipy.inbox/{key}"
    return {
        "another's key": {"subscribe": f"/exchange/notipy.inbox/{other}", "headers": queue_of(key)},
        "every key": {"subscribe": "/exchange/notipy.inbox/#", "headers": queue_of(key)},
        "any key": {"subscribe": "/exchange/notipy.inbox/*", "headers": queue_of(key)},
        "no key": {"subscribe": "/exchange/notipy.inbox", "headers": queue_of(key)},
        "another's queue": {"subscribe": f"/amq/queue/{queue_of_other}"},
        "another's queue, by its name": {"subscribe": mine, "headers": named(queue_of_other)},
        "events": {"subscribe": "/exchange/notipy.events/#", "headers": queue_of(key)},
        "status": {"subscribe": "/exchange/notipy.status/#", "headers": queue_of(key)},
        "queue of events": {"subscribe": "/amq/queue/notipy.events"},
        "topic": {"subscribe": "/topic/#", "headers": queue_of(key)},
        "new queue": {"subscribe": f"/queue/{uuid4()}"},
        "new queue with any name": {"subscribe": mine},
        "new queue for another": {"subscribe": mine, "headers": queue_of(other)},
        "publish an event": {"publish": "/exchange/notipy.events/shop.order.shipped"},
        "publish a command": {"publish": "/exchange/notipy.commands/inbox"},
        "publish an item": {"publish": mine},
        "publish to a queue": {"publish": "/amq/queue/notipy.events"},
        "publish to its own queue": {"publish": f"/amq/queue/inbox.{key}.attempt"},
        "publish to a new queue": {"publish": f"/queue/{uuid4()}"},
        "publish to a topic": {"publish": "/topic/new"},
    }
