"""Installing RabbitMQ and Exim, with an apt-get of the test's own."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy import install
from deploy.errors import CannotInstall
from deploy.install import ensure_exim, ensure_rabbitmq


class Machine:
    """A machine without RabbitMQ, whose apt-get writes down how it was called and obeys a script."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.calls = root / "calls"
        self.policy = root / "policy-rc.d"
        self.program = root / "rabbitmq-server"
        self.policy_seen = root / "policy-seen"

    def apt_get(self, script: str) -> None:
        self.command("apt-get", f'echo "$*" >> "{self.calls}"\ncp "{self.policy}" "{self.policy_seen}"\n{script}')

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def verbs(self) -> list[str]:
        return [next(word for word in ("install", "update") if word in line) for line in self.lines()]

    def lines(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr(install, "_PROGRAMS", (machine.program,))
    monkeypatch.setattr(install, "_POLICY", machine.policy)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{machine.bin}:/usr/bin:/bin")
    machine.command("service", f'echo "$*" >> "{tmp_path}/services"')
    return machine


def test_what_is_installed_is_left_alone(machine: Machine) -> None:
    machine.program.touch()

    assert ensure_rabbitmq() == machine.program
    assert not machine.calls.exists()


def test_it_installs_without_starting_a_service(machine: Machine) -> None:
    machine.apt_get(f'touch "{machine.program}"')

    assert ensure_rabbitmq() == machine.program

    assert machine.verbs() == ["install"]
    assert "exit 101" in machine.policy_seen.read_text()
    assert not machine.policy.exists()


def test_a_policy_of_the_machines_own_is_kept_and_what_the_package_started_is_ended(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 0\n")
    machine.apt_get(f'touch "{machine.program}"')
    with subprocess.Popen(["sleep", "60"]) as left_behind:  # an epmd, say
        monkeypatch.setattr(install, "_processes_of", lambda _: [(left_behind.pid, "beam.smp")])

        ensure_rabbitmq()

        assert left_behind.wait(10) == -signal.SIGTERM
    assert machine.policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert (tmp_path / "services").read_text() == "rabbitmq-server stop\n"


def test_where_nothing_of_the_package_runs_its_service_is_not_asked(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 101\n")
    machine.apt_get(f'touch "{machine.program}"')
    monkeypatch.setattr(install, "_processes_of", lambda _: [])
    ensure_rabbitmq()
    assert not (tmp_path / "services").exists()


def test_stale_package_lists_are_refreshed_once(machine: Machine) -> None:
    machine.apt_get(f'[ $(wc -l < "{machine.calls}") -lt 3 ] || touch "{machine.program}"; [ -e "{machine.program}" ]')
    progress: list[str] = []

    assert ensure_rabbitmq(progress.append) == machine.program

    assert machine.verbs() == ["install", "update", "install"]
    assert len(progress) == 3


def test_a_failing_apt_get_is_shown_with_what_to_do(machine: Machine) -> None:
    machine.apt_get("echo 'E: Unable to locate package'; exit 100")

    with pytest.raises(CannotInstall, match=r"(?s)Unable to locate.*NOTIPY_AMQP_URL"):
        ensure_rabbitmq()

    assert not machine.policy.exists()


def test_without_root_it_says_what_to_do(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    machine.apt_get("exit 1")
    machine.command("sudo", "exit 1")

    with pytest.raises(CannotInstall, match=r"(?s)takes root.*sudo apt-get.*brew install.*NOTIPY_AMQP_URL"):
        ensure_rabbitmq()

    assert not machine.calls.exists()


def test_without_apt_get_it_says_what_to_do(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(machine.bin))

    with pytest.raises(CannotInstall, match=r"(?s)no apt-get.*brew install"):
        ensure_rabbitmq()


def test_a_mail_server_for_tests_takes_no_other_ones_place(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "exim4"
    monkeypatch.setattr(install, "_EXIM_PROGRAMS", (program,))
    machine.apt_get(f'touch "{program}"')

    assert ensure_exim() == program

    (call,) = machine.lines()
    assert "--no-remove" in call
    assert call.endswith("exim4-daemon-light")
    assert ensure_exim() == program
    assert len(machine.lines()) == 1


def test_two_who_need_it_at_once_install_it_once(machine: Machine) -> None:
    """The first would else end what the second has started with it meanwhile."""
    machine.apt_get(f'sleep 0.3; touch "{machine.program}"; sleep 0.3')

    with ThreadPoolExecutor() as both:
        found = list(both.map(lambda _: ensure_rabbitmq(), range(2)))

    assert found == [machine.program] * 2
    assert machine.verbs() == ["install"]


def test_without_root_it_says_how_to_get_a_mail_server(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "_EXIM_PROGRAMS", (tmp_path / "exim4",))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    machine.command("sudo", "exit 1")

    with pytest.raises(
        CannotInstall, match=r"(?s)Exim is not installed.*takes root.*apt-get install.*exim4-daemon-light"
    ):
        ensure_exim()
