"""Exim, a mail server as many run it: private, on a free loopback port, delivering into a maildir.

Nothing of the system's own configuration is read or changed. STARTTLS comes before AUTH, and AUTH before MAIL.
"""

import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import trustme

from deploy.install import ensure_exim
from deploy.processes import LOOPBACK, free_ports, stopped_at_exit
from tests.waiting import wait_until

USER, PASSWORD = "notipy", "s3cret, with spaces"
REFUSED = "nobody"
"""A recipient's name that the server does not know."""
UNPRIVILEGED = "Debian-exim"
_START_SECONDS = 20.0

_CONFIGURATION = """\
exim_path = {program}
primary_hostname = localhost
local_interfaces = {host}
daemon_smtp_ports = {port}
spool_directory = {root}/spool
log_file_path = {root}/log/%slog
pid_file_path = {root}/exim.pid
exim_user = {user}
exim_group = {group}
never_users =
timezone = UTC
keep_environment =
domainlist local_domains = example.org : xn--bcher-kva.example : bücher.example
acl_smtp_mail = ask_login
acl_smtp_rcpt = ask_recipient
tls_advertise_hosts = *
tls_certificate = {root}/certificate.pem
tls_privatekey = {root}/key.pem
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
smtputf8_advertise_hosts = *
pipelining_advertise_hosts = *
dns_ipv4_lookup =
host_lookup =
rfc1413_query_timeout = 0s
message_size_limit = 20M
smtp_accept_queue_per_connection = 0
dkim_verify_signers =

begin acl
ask_login:
  deny message = log in first
       !authenticated = *
  accept

ask_recipient:
  deny message = no such user here
       local_parts = {refused}
  accept domains = +local_domains
  deny message = relay not permitted

begin routers
here:
  driver = accept
  domains = +local_domains
  transport = maildir

begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = {root}/mail
  create_directory
  envelope_to_add
  return_path_add
  batch_max = 100
  user = {user}
  group = {group}

begin retry
* * F,1h,1m

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{username}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2

login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{{username}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
"""


@dataclass(frozen=True)
class Mta:
    """A running server.

    Attributes:
        ca_file: the authority that its certificate, for `localhost`, is from.
    """

    port: int
    ca_file: Path
    root: Path

    @property
    def mails(self) -> list[bytes]:
        """What was delivered, line ends as on the disk."""
        return [path.read_bytes() for path in sorted((self.root / "mail" / "new").glob("*"))]

    @property
    def log(self) -> str:
        """What it did: who was served over TLS, logged in as whom."""
        return (self.root / "log" / "mainlog").read_text()


@contextmanager
def mta() -> Iterator[Mta]:
    """Run one; raises CannotInstall with what to do where there is no Exim and none can be installed."""
    program = ensure_exim(print)
    # not among pytest's folders, which are for their owner alone: the server runs as another
    with TemporaryDirectory(prefix="notipy-mta-") as folder, stopped_at_exit(timeout=2) as processes:
        root, (port,) = Path(folder), free_ports(1)
        server = Mta(port, root / "ca.pem", root)
        _prepare(server, program)
        command: list[str | Path] = [program, "-C", root / "exim.conf", "-bdf", "-q1m"]
        running = processes.start("exim", command, env={"PATH": os.environ["PATH"]}, log=root / "output")
        running.wait_until(lambda: _answers(port), timeout=_START_SECONDS)
        yield server
        running.signal(signal.SIGTERM)
        wait_until(lambda: not _processes(root))  # deliveries are on their own, and would write on what is removed


def _prepare(server: Mta, program: Path) -> None:
    root, (user, group) = server.root, _owner()
    _write_certificate(server)
    values = {"program": program, "host": LOOPBACK, "port": server.port, "root": root, "user": user, "group": group}
    text = _CONFIGURATION.format(username=USER, password=PASSWORD.replace(",", r"\,"), refused=REFUSED, **values)
    configuration = root / "exim.conf"
    configuration.write_text(text)
    for name in ("spool", "log", "mail"):
        (root / name).mkdir()
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{user}:{group}", str(root)], check=True)
        os.chown(configuration, 0, 0)  # Exim reads none that its own user could change


def _write_certificate(server: Mta) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(server.ca_file))
    certificate.private_key_pem.write_to_path(str(server.root / "key.pem"))
    for part in certificate.cert_chain_pems:
        part.write_to_path(str(server.root / "certificate.pem"), append=True)


def _owner() -> tuple[str, str]:
    """As whom it serves and delivers: this user, or where that is root, the package's own."""
    name = UNPRIVILEGED if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    return name, name if os.geteuid() == 0 else str(os.getegid())


def _processes(root: Path) -> list[Path]:
    """All that run with this configuration, whatever parent they have left."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if f"{root}/exim.conf".encode() in command.read_bytes():
                found.append(command.parent)
    return found


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1) as connection:
        return connection.recv(4).startswith(b"220")
    return False
