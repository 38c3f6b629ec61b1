"""What is printed fits the terminal, loses nothing, and cannot command it."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from rich.console import Console

from cli.output import Column, counted, hanging, json_line, plain, print_fields, print_table, time_text

ID = "0c6f1a52-5a0e-5b7e-8d0c-6a3c6e2f9b11"
COLUMNS = (Column("id"), Column("state"), Column("reason", rank=1), Column("detail", rank=2))
ROW = (ID, "failed", "recipient_rejected", "550 5.1.1 there is no such mailbox here, and there has never been one")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    monkeypatch.setattr("cli.output.UNBOUNDED", request.param)
    return int(request.param)


def test_in_a_pipe_a_row_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [ROW])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "STATE", "REASON", "DETAIL"]
    assert [cell.strip() for cell in row.split("  ") if cell] == list(ROW)


@pytest.mark.parametrize("terminal", [20, 40, 60, 80, 120], indirect=True)
def test_on_a_narrow_terminal_nothing_is_cut(terminal: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [ROW])
    shown = capsys.readouterr().out
    assert ID in shown
    for word in " ".join(ROW).split():
        assert word in shown
    if terminal >= 80:
        assert max(map(len, shown.splitlines())) <= terminal


SHORTENED = (Column("address"), Column("delivery", rank=1, short=8), Column("detail", rank=2))


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        (20, ["ADDRESS", "  DELIVERY · DETAIL", "ana@example.org", "  0c6f1a52 · by hand", "+4915112345678"]),
        (30, ["ADDRESS          DELIVERY", "  DETAIL", "ana@example.org  0c6f1a52", "  by hand", "+4915112345678"]),
        (50, ["ADDRESS          DELIVERY  DETAIL", "ana@example.org  0c6f1a52  by hand", "+4915112345678"]),
        (80, [f"ADDRESS          {'DELIVERY':36}  DETAIL", f"ana@example.org  {ID}  by hand", "+4915112345678"]),
    ],
    indirect=["terminal"],
)
@pytest.mark.usefixtures("terminal")
def test_an_id_that_may_be_is_shortened_where_it_is_narrow(
    expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(SHORTENED, [("ana@example.org", ID, "by hand"), ("+4915112345678", "", "")])
    assert capsys.readouterr().out.splitlines() == expected


def test_names_and_values_leave_out_what_is_unset(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"State": "sent", "Detail": None, "Due": ""})
    assert capsys.readouterr().out.split() == ["State", "sent"]


def test_text_from_outside_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((Column("id"),), [("\x1b[31mred\x1b]0;title\x07 [bold]x[/]",)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]x[/]" in shown
    assert plain("a\x1bb\nc\u202ed") == "a�b\nc�d"


def test_json_is_one_object_a_line_with_times_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    json_line({"at": datetime(2026, 11, 22, 17, tzinfo=UTC), "text": "ä\nb"})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"at": "2026-11-22T17:00:00Z", "text": "ä\nb"}


def test_times_are_shown_in_utc() -> None:
    assert time_text(datetime(2026, 11, 22, 18, tzinfo=timezone(timedelta(hours=1)))) == "2026-11-22T17:00:00Z"
    assert time_text(None) == ""


def test_numbers_are_counted_in_words() -> None:
    assert [counted(n, "delivery", "deliveries") for n in (0, 1, 2000)] == [
        "0 deliveries",
        "1 delivery",
        "2,000 deliveries",
    ]


@pytest.mark.parametrize("text", ["1.234,50\u00a0€", "25\u202f%", "👩\u200d💻", "soft\u00adhyphen", "a\nb", "Grüße"])
def test_what_is_text_is_shown_as_it_is(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\u202eabc", "\x9b31m", "\u2066x"])
def test_what_a_terminal_would_obey_is_not(text: str) -> None:
    assert "�" in plain(text)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, ["  lease: should be longer than nothing"]),
        (30, ["  lease: should be longer", "    than nothing"]),
        (20, ["  lease: should be", "    longer than", "    nothing"]),
    ],
)
def test_a_line_that_is_too_long_goes_on_indented(width: int, lines: list[str]) -> None:
    shown = hanging("  lease: should be longer than nothing", Console(width=width))
    assert [line.rstrip() for line in shown.plain.splitlines()] == lines


def test_a_command_whose_output_nobody_reads_any_more_ends_as_other_programs_do() -> None:
    code = "from cli.output import json_line\nfor number in range(100_000): json_line({'number': number})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b'{"number":0}\n'
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
