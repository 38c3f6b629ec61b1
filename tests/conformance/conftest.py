"""Providers as their settings make them, and the ground that their other sides stand on."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
from pymongo import MongoClient

from channels.registry import kinds, make_provider
from deploy.rabbit_admin import RabbitAdmin
from domain.ports import Provider
from tests.conformance.subject import Ground, Peer, Subject
from tests.conftest import SharedServers


class Make(Protocol):
    """Makes a subject's provider against a peer; `options` override its settings."""

    def __call__(self, subject: Subject, peer: Peer, **options: Any) -> Provider: ...


@pytest.fixture
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    return Ground(tmp_path, request.getfixturevalue)


@pytest.fixture
async def make(ground: Ground) -> AsyncIterator[Make]:
    """What was made is closed at the end."""
    made: list[Provider] = []

    def provider(subject: Subject, peer: Peer, **options: Any) -> Provider:
        patience = {"timeout": "3s"} if "timeout" in kinds()[subject.kind].options.model_fields else {}
        settings = patience | dict(subject.options(peer.url, ground.folder)) | options
        made.append(make_provider(subject.channel, "primary", subject.kind, settings, peer.surroundings))
        return made[-1]

    yield provider
    for each in made:
        await each.close()


@pytest.fixture(scope="module")
def broker(servers: SharedServers) -> Iterator[tuple[RabbitAdmin, str]]:
    """The URL of a virtual host that the module's peers share, each with what is its own in it; and who rules it."""
    admin, name = RabbitAdmin(servers.management_url), f"test-{uuid4().hex[:12]}"
    admin.create_vhost(name)
    yield admin, servers.amqp_url.rsplit("/", 1)[0] + f"/{name}"
    admin.delete_vhost(name)


@pytest.fixture(scope="module")
def database(servers: SharedServers) -> Iterator[str]:
    """The URL of a database that the module's peers share."""
    name = f"test_{uuid4().hex[:12]}"
    base, _, query = servers.mongo_url.partition("?")
    yield f"{base.rsplit('/', 1)[0]}/{name}?{query}"
    with MongoClient[dict[str, Any]](servers.mongo_url) as client:
        client.drop_database(name)
