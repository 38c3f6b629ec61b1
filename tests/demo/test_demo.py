"""`notipy demo` and `notipy run --embedded` as a person starts them: as a process of their own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.samples import SAMPLES
from deploy.processes import LiveProcess, alive, descendants
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
NOTIPY = Path(sys.executable).with_name("notipy")


@contextmanager
def started(folder: Path, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a folder of its own, at the head of its own session; killed if the test leaves it running."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOTIPY_")} | settings
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [NOTIPY, *arguments], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def output_of(folder: Path) -> str:
    return (folder / "output").read_text(encoding="utf-8")


def end(process: subprocess.Popen[bytes], folder: Path, *, within: float = 60) -> str:
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {within} s:\n{output_of(folder)}")
    return output_of(folder)


def wait_for(text: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    wait_until(lambda: text in output_of(folder) or process.poll() is not None, timeout=60)
    assert text in output_of(folder), output_of(folder)


def test_the_demo_ends_well_and_leaves_nothing_running(tmp_path: Path) -> None:
    with started(tmp_path, "demo") as demo:
        wait_for("RabbitMQ is ready", demo, tmp_path)
        family = descendants(demo.pid)
        told = end(demo, tmp_path)
    assert demo.returncode == 0, told
    assert states_told(told) == states_expected()
    assert "✗" not in told
    assert len(list((tmp_path / ".notipy" / "demo" / "data" / "mail").glob("*.eml"))) == 10
    assert family
    assert not alive(family)


def states_told(told: str) -> Sequence[tuple[str, str, str, str, str]]:
    """Event, channel, attempt, epoch and state of every line of the last table."""
    line = re.compile(r"^✓ (\S+) +(\S+) +\S+ +(\d+) +(\d+) +.*?(\w+)(?: \(\w+\))? *$", re.MULTILINE)
    return line.findall(told)


def states_expected() -> Sequence[tuple[str, str, str, str, str]]:
    """The same of every sample, after the replay."""
    ids = {"smallest.json": "ord-1047-shipped"} | {
        sample.file: event_id(ROOT / "examples" / "events" / sample.file) for sample in SAMPLES if sample.id is None
    }
    return [
        (ids[sample.file], str(wanted.channel), str(wanted.attempt), str(wanted.epoch), str(wanted.state))
        for sample in SAMPLES
        for wanted in sample.replayed or sample.expected
    ]


def event_id(path: Path) -> str:
    found = re.search(r'"id": "([^"]+)"', path.read_text(encoding="utf-8"))
    assert found
    return found[1]


def test_the_demo_fails_where_a_delivery_does_not_end_as_it_should(tmp_path: Path) -> None:
    with started(tmp_path, "demo", NOTIPY_CHANNELS__EMAIL__RETRY='["500ms"]') as demo:
        told = end(demo, tmp_path)
    assert demo.returncode == 1, told
    assert "✗ ord-1044-shipped" in told
    assert "ord-1044-shipped email to user-9: failed, attempt 2, epoch 1 (should be sent, attempt 3, epoch 1)" in told


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(signal.SIGINT, "Starting a private", id="Ctrl-C-at-the-start"),
        pytest.param(signal.SIGINT, "What becomes of them", id="Ctrl-C-in-the-middle"),
        pytest.param(signal.SIGTERM, "MongoDB is ready", id="SIGTERM-while-servers-start"),
    ],
)
def test_the_demo_stopped_in_the_middle_leaves_nothing_running(tmp_path: Path, number: int, moment: str) -> None:
    with started(tmp_path, "demo") as demo:
        wait_for(moment, demo, tmp_path)
        family = descendants(demo.pid)
        demo.send_signal(number)
        told = end(demo, tmp_path, within=20)
    assert demo.returncode == 130, told
    assert "Stopped" in told
    assert "Traceback" not in told
    assert not alive(family)


def test_a_run_stays_takes_messages_of_ones_own_and_stops_at_ctrl_c(tmp_path: Path) -> None:
    with started(tmp_path, "run", "--embedded") as run:
        wait_for("Ctrl-C stops everything", run, tmp_path)
        family = descendants(run.pid)
        url = re.search(r'AMQP_URL="([^"]+)"', output_of(tmp_path))
        assert url
        subprocess.run(
            [sys.executable, ROOT / "examples" / "producers" / "publish.py", "ben@example.org", "7"],
            env={**os.environ, "AMQP_URL": url[1]},
            check=True,
        )
        wait_until(lambda: states_listed(tmp_path) == {"email": "sent", "sms": "suppressed"}, timeout=20)
        run.send_signal(signal.SIGINT)
        told = end(run, tmp_path, within=20)
    mail = tmp_path / ".notipy" / "run" / "data" / "mail" / "0001.eml"
    assert b"ben@example.org" in mail.read_bytes()
    assert run.returncode == 0, told
    assert_gone(family)
    assert not (tmp_path / ".notipy" / "notipy.yaml").exists()


def states_listed(folder: Path) -> dict[str, str]:
    """What another terminal is told of the event, by channel."""
    listed = subprocess.run(
        [NOTIPY, "--config", ".notipy/notipy.yaml", "deliveries", "list", "--event", "shop", "ord-7", "--json"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    deliveries = map(json.loads, listed.stdout.splitlines())
    return {delivery["channel"]: delivery["state"] for delivery in deliveries}


def assert_gone(family: set[LiveProcess]) -> None:
    assert family
    assert not alive(family)
