"""Finds the programs of servers, and installs Debian's packages where they are missing and may be installed."""

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import CannotInstall

Log = Callable[[str], None]

_PROGRAMS = (  # the scripts themselves: Debian's wrapper in /usr/sbin changes user and drops the environment
    Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),
    Path("/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server"),
    Path("/usr/local/opt/rabbitmq/sbin/rabbitmq-server"),
)
_EXIM_PROGRAMS = (Path("/usr/sbin/exim4"),)
_POLICY = Path("/usr/sbin/policy-rc.d")  # https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
_POLICY_MARK = "# Written by NotiPy for one apt-get run; may be deleted."
_POLICY_TEXT = f"#!/bin/sh\n{_POLICY_MARK}\nexit 101\n"
_APT_GET = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0")
_OUTPUT_TAIL_LINES = 15
_RABBITMQ_WHAT_TO_DO = """
Install RabbitMQ yourself and try again:
  Debian, Ubuntu:  sudo apt-get update && sudo apt-get install -y --no-install-recommends rabbitmq-server
  macOS:           brew install rabbitmq
or set NOTIPY_AMQP_URL to a RabbitMQ of yours, such as amqp://user:password@host:5672/vhost"""
_EXIM_WHAT_TO_DO = """
The tests of mail over a real server need Exim. Install it yourself and try again:
  Debian, Ubuntu:  sudo apt-get update && sudo apt-get install -y --no-install-recommends exim4-daemon-light
It stands in for another mail server's package: on a machine that has one, run these tests in a container."""


@dataclass(frozen=True)
class _Package:
    """A server of Debian's.

    Attributes:
        name: of the package and of its service.
        user: whom its service runs as.
        process: what the service's process is called.
    """

    title: str
    name: str
    service: str
    user: str
    process: str
    programs: tuple[Path, ...]
    what_to_do: str

    def found(self) -> Path | None:
        """Its program, if it is installed."""
        return next((program for program in self.programs if program.exists()), None)


def _rabbitmq() -> _Package:
    name = "rabbitmq-server"
    return _Package("RabbitMQ", name, name, "rabbitmq", "beam.smp", _PROGRAMS, _RABBITMQ_WHAT_TO_DO)


def _exim() -> _Package:
    return _Package("Exim", "exim4-daemon-light", "exim4", "Debian-exim", "exim4", _EXIM_PROGRAMS, _EXIM_WHAT_TO_DO)


def find_rabbitmq() -> Path | None:
    """RabbitMQ's start script, if it is installed."""
    return _rabbitmq().found()


def ensure_rabbitmq(log: Log = lambda _line: None) -> Path:
    """RabbitMQ's start script, installed first if need be; raises CannotInstall with what to do instead.

    Installing takes apt-get, and root or a sudo that asks for no password. It starts no system-wide service.
    """
    return _ensured(_rabbitmq(), log)


def ensure_exim(log: Log = lambda _line: None) -> Path:
    """Exim's program, a mail server for tests; as `ensure_rabbitmq`. Another mail server is never removed for it."""
    return _ensured(_exim(), log)


def _ensured(package: _Package, log: Log) -> Path:
    with _one_at_a_time():  # whoever installs ends what the package has started, and would end what another has since
        return package.found() or _install(package, log)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Among the processes of this user."""
    path = Path(tempfile.gettempdir()) / f"notipy-install-{os.geteuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _install(package: _Package, log: Log) -> Path:
    what_to_do = package.what_to_do
    if shutil.which("apt-get") is None:
        raise CannotInstall(
            f"{package.title} is not installed, and there is no apt-get to install it with.{what_to_do}"
        )
    privilege = _privilege()
    if privilege is None:
        raise CannotInstall(f"{package.title} is not installed, and installing it takes root.{what_to_do}")
    with _no_service_starts(package, privilege):
        _apt_install(package, privilege, log)
    program = package.found()
    if program is None:
        raise CannotInstall(f"The package {package.name} is installed but has no {package.programs[0]}.{what_to_do}")
    return program


def _privilege() -> Sequence[str] | None:
    """Return what to put before a command so that it runs as root; None if nothing does."""
    if os.geteuid() == 0:
        return ()
    sudo = ("sudo", "-n")
    return sudo if shutil.which("sudo") and _run((*sudo, "true")).returncode == 0 else None


def _apt_install(package: _Package, privilege: Sequence[str], log: Log) -> None:
    """Install with the package lists at hand, and once more with fresh ones if that did not work."""
    as_root = (*privilege, "env", "DEBIAN_FRONTEND=noninteractive", *_APT_GET)
    install = (*as_root, "install", "--no-remove", "--no-install-recommends", package.name)
    log(f"Installing {package.name} with apt-get (once, about half a minute) …")
    if _run(install).returncode == 0:
        return
    log("Refreshing apt's package lists …")
    _run((*as_root, "update"))
    log(f"Installing {package.name} …")
    result = _run(install)
    if result.returncode != 0:
        tail = "\n".join(result.stdout.splitlines()[-_OUTPUT_TAIL_LINES:])
        raise CannotInstall(f"apt-get could not install {package.name}:\n{tail}{package.what_to_do}")


@contextmanager
def _no_service_starts(package: _Package, privilege: Sequence[str]) -> Iterator[None]:
    """Keep the package from starting its system-wide service; a policy of the machine's own is left as it is."""
    if _POLICY.exists() and _POLICY_MARK not in _POLICY.read_text(errors="replace"):
        yield
        _stop_what_runs(package, privilege)
        return
    try:
        _run((*privilege, "sh", "-c", f'cat > "{_POLICY}" && chmod 755 "{_POLICY}"'), stdin=_POLICY_TEXT)
        yield
    finally:
        _run((*privilege, "rm", "-f", str(_POLICY)))


def _stop_what_runs(package: _Package, privilege: Sequence[str]) -> None:
    """End every process of the package's user: the package was not there before, so nothing of it ran before.

    The service is only asked to stop where it runs, because its script leaves an epmd behind where it does not.
    """
    if any(name == package.process for _, name in _processes_of(package.user)):
        _run((*privilege, "service", package.service, "stop"))
    for pid, _ in _processes_of(package.user):
        _run((*privilege, "kill", str(pid)))


def _processes_of(user: str) -> list[tuple[int, str]]:
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return []
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if folder.stat().st_uid == uid:
                found.append((int(folder.name), (folder / "comm").read_text().strip()))
    return found


def _run(command: Sequence[str], *, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command lines
        command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
