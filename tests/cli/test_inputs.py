"""What is given on the command line, and what is told when it cannot be used."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli.failures import BadInput
from cli.inputs import cursor_of, read_cursor, read_document, read_time
from cli.send import with_limit

TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(lambda time: time.replace(tzinfo=UTC))  # noqa: DTZ001


@given(created_at=TIMES, last=st.uuids())
def test_a_cursor_is_read_as_it_was_written(created_at: datetime, last: UUID) -> None:
    cursor = cursor_of(created_at, str(last))
    assert read_cursor(cursor) == (created_at, str(last))
    assert len(cursor) == 32


@given(st.text())
def test_anything_else_is_a_usage_error(text: str) -> None:
    try:
        created_at, last = read_cursor(text)
    except typer.BadParameter:
        return
    assert cursor_of(created_at, last) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T17:00:00Z", datetime(2026, 11, 22, 17, tzinfo=UTC)),
        ("2026-11-22T18:00:00+01:00", datetime(2026, 11, 22, 17, tzinfo=UTC)),
        ("2026-11-22T17:00:00", datetime(2026, 11, 22, 17, tzinfo=UTC)),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
    ],
)
def test_a_time_is_read(text: str, expected: datetime) -> None:
    assert read_time(text) == expected


def test_how_long_ago_is_a_time_too() -> None:
    assert abs(datetime.now(UTC) - read_time("1h30m") - timedelta(minutes=90)) < timedelta(seconds=5)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "99999999999d"])
def test_what_is_no_time_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a time"):
        read_time(text)


def test_a_document_comes_from_a_file_or_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(b'\xef\xbb\xbf{"order_id": 1}')  # with a byte order mark, as some editors write it
    assert read_document(f"@{file}", "--data") == read_document('{"order_id": 1}', "--data") == {"order_id": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "--data: is not JSON: "),
        ("[1]", "--data: should be a JSON object"),
        ("@nowhere.json", "--data: nowhere.json: cannot be read: No such file"),
        ("[" * 100_000, "--data: is nested too deeply"),
    ],
)
def test_what_is_no_document_is_told_with_its_place(given: str, message: str) -> None:
    with pytest.raises(BadInput) as failure:
        read_document(given, "--data")
    assert message in str(failure.value)
    assert failure.value.code == 2


def test_a_file_without_its_sign_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text("{}")
    with pytest.raises(BadInput) as failure:
        read_document(str(file), "--data")
    assert failure.value.hint == f"Is it a file? Write --data @{file}"


@pytest.mark.parametrize(
    ("args", "full"),
    [
        ([], []),
        (["--wait"], ["--wait", "30"]),
        (["--wait", "5"], ["--wait", "5"]),
        (["--wait", "0.5", "--json"], ["--wait", "0.5", "--json"]),
        (["--wait", "--json"], ["--wait", "30", "--json"]),
        (["--key", "a.b", "--wait"], ["--key", "a.b", "--wait", "30"]),
    ],
)
def test_wait_may_stand_without_a_number(args: list[str], full: list[str]) -> None:
    assert with_limit(args) == full
