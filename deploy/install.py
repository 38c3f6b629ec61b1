"""Finds RabbitMQ's start script, and installs Debian's package where it is missing and may be installed."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.errors import CannotInstall

Log = Callable[[str], None]

_PROGRAMS = (  # the scripts themselves: Debian's wrapper in /usr/sbin changes user and drops the environment
    Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),
    Path("/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server"),
    Path("/usr/local/opt/rabbitmq/sbin/rabbitmq-server"),
)
_PACKAGE = "rabbitmq-server"
_USER = "rabbitmq"
_POLICY = Path("/usr/sbin/policy-rc.d")  # https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
_POLICY_MARK = "# Written by NotiPy for one apt-get run; may be deleted."
_POLICY_TEXT = f"#!/bin/sh\n{_POLICY_MARK}\nexit 101\n"
_APT_GET = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0")
_OUTPUT_TAIL_LINES = 15
_WHAT_TO_DO = """
Install RabbitMQ yourself and try again:
  Debian, Ubuntu:  sudo apt-get update && sudo apt-get install -y --no-install-recommends rabbitmq-server
  macOS:           brew install rabbitmq
or set NOTIPY_AMQP_URL to a RabbitMQ of yours, such as amqp://user:password@host:5672/vhost"""


def find_rabbitmq() -> Path | None:
    """RabbitMQ's start script, if it is installed."""
    return next((program for program in _PROGRAMS if program.exists()), None)


def ensure_rabbitmq(log: Log = lambda _line: None) -> Path:
    """RabbitMQ's start script, installed first if need be; raises CannotInstall with what to do instead.

    Installing takes apt-get, and root or a sudo that asks for no password. It starts no system-wide service.
    """
    return find_rabbitmq() or _install(log)


def _install(log: Log) -> Path:
    if shutil.which("apt-get") is None:
        raise CannotInstall("RabbitMQ is not installed, and there is no apt-get to install it with." + _WHAT_TO_DO)
    privilege = _privilege()
    if privilege is None:
        raise CannotInstall("RabbitMQ is not installed, and installing it takes root." + _WHAT_TO_DO)
    with _no_service_starts(privilege):
        _apt_install(privilege, log)
    program = find_rabbitmq()
    if program is None:
        raise CannotInstall(f"The package {_PACKAGE} is installed but has no {_PROGRAMS[0]}." + _WHAT_TO_DO)
    return program


def _privilege() -> Sequence[str] | None:
    """Return what to put before a command so that it runs as root; None if nothing does."""
    if os.geteuid() == 0:
        return ()
    sudo = ("sudo", "-n")
    return sudo if shutil.which("sudo") and _run((*sudo, "true")).returncode == 0 else None


def _apt_install(privilege: Sequence[str], log: Log) -> None:
    """Install with the package lists at hand, and once more with fresh ones if that did not work."""
    as_root = (*privilege, "env", "DEBIAN_FRONTEND=noninteractive", *_APT_GET)
    install = (*as_root, "install", "--no-install-recommends", _PACKAGE)
    log(f"Installing {_PACKAGE} with apt-get (once, about half a minute) …")
    if _run(install).returncode == 0:
        return
    log("Refreshing apt's package lists …")
    _run((*as_root, "update"))
    log(f"Installing {_PACKAGE} …")
    result = _run(install)
    if result.returncode != 0:
        tail = "\n".join(result.stdout.splitlines()[-_OUTPUT_TAIL_LINES:])
        raise CannotInstall(f"apt-get could not install {_PACKAGE}:\n{tail}{_WHAT_TO_DO}")


@contextmanager
def _no_service_starts(privilege: Sequence[str]) -> Iterator[None]:
    """Keep the package from starting its system-wide service; a policy of the machine's own is left as it is."""
    if _POLICY.exists() and _POLICY_MARK not in _POLICY.read_text(errors="replace"):
        yield
        _stop_what_runs(privilege)
        return
    try:
        _run((*privilege, "sh", "-c", f'cat > "{_POLICY}" && chmod 755 "{_POLICY}"'), stdin=_POLICY_TEXT)
        yield
    finally:
        _run((*privilege, "rm", "-f", str(_POLICY)))


def _stop_what_runs(privilege: Sequence[str]) -> None:
    """End every process of the package's user: the package was not there before, so nothing of it ran before.

    The service is only asked to stop where it runs, because its script leaves an epmd behind where it does not.
    """
    if any(name == "beam.smp" for _, name in _processes_of(_USER)):
        _run((*privilege, "service", _PACKAGE, "stop"))
    for pid, _ in _processes_of(_USER):
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
