"""`notipy inbox`, as a process of its own over a real database."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from domain.inbox import InboxItem, Mark, Marking
from tests.forking import Notipy
from tests.running import Stack

NOW = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)


@pytest.fixture
async def filled(stack: Stack) -> None:
    """Three items, of which one was read and one put away."""
    inbox = stack.core.inbox
    for number in range(3):
        at = NOW + timedelta(minutes=number)
        await inbox.add(InboxItem(f"d{number}/1", "user-7", {"title": f"Order {number}\x1b[2J", "text": "…"}, at))
    await inbox.mark(Marking("user-7", Mark.READ, ("d0/1",), NOW))
    await inbox.mark(Marking("user-7", Mark.ARCHIVED, ("d1/1",), NOW))


@pytest.mark.usefixtures("filled")
async def test_an_inbox_is_listed_page_by_page(notipy: Notipy) -> None:
    code, out, err = await notipy("inbox", "list", "user-7", "--limit", "1", "--json")
    (newest,) = map(json.loads, out.splitlines())
    assert (code, newest["id"], newest["unread"], newest["at"]) == (0, "d2/1", True, "2026-11-22T17:02:00Z")
    cursor = err.split("--after '")[1].split("'")[0]
    _, out, _ = await notipy("inbox", "list", "user-7", "--limit", "2", "--after", cursor, "--json")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["d0/1"]


@pytest.mark.usefixtures("filled")
async def test_it_is_shown_counted_and_its_archive_apart(notipy: Notipy) -> None:
    code, out, err = await notipy("inbox", "list", "user-7")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["STATE", "new", "read"]
    assert "\x1b" not in out
    assert "2 items, 1 unseen, 1 unread" in err
    _, out, _ = await notipy("inbox", "list", "user-7", "--archived")
    assert "archived" in out
    _, out, _ = await notipy("inbox", "count", "user-7", "--json")
    assert json.loads(out) == {"recipient": "user-7", "items": 2, "unseen": 1, "unread": 1}


async def test_a_cursor_that_is_none_is_told(notipy: Notipy) -> None:
    code, _, err = await notipy("inbox", "list", "user-7", "--after", "yesterday")
    assert code == 2
    assert "--after" in err
