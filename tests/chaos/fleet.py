"""NotiPy as real processes: started, killed, frozen, looked at."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from deploy.processes import LOOPBACK, Processes, ServerProcess, free_ports
from domain.vocabulary import Lane
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
READY_SECONDS = 45.0
STOP_SECONDS = 20.0
_RESTART_SECONDS = 0.5


@dataclass
class Member:
    """One NotiPy process as it is to run; `process` is its present incarnation."""

    name: str
    arguments: Sequence[str]
    config: Path
    port: int
    log: Path
    cwd: Path = ROOT
    module: str = "cli.main"
    environment: Mapping[str, str] = field(default_factory=dict)
    process: ServerProcess | None = None
    incarnations: int = 0

    @property
    def queues(self) -> int:
        """How many queues it consumes."""
        roles = self.arguments[1].split(",") if self.arguments else ("events", "email", "webhook", "sms", "sweeper")
        return sum({"events": 3, "sweeper": 0}.get(role, len(Lane)) for role in roles)

    @property
    def pid(self) -> int:
        """Of the present incarnation."""
        assert self.process is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether it does."""
        return self.process is not None and self.process.runs()


@dataclass
class Fleet:
    """The NotiPy processes of one run. Each can be told from the others by the name that it gives in EHLO."""

    processes: Processes
    directory: Path
    settings: Mapping[str, Any]
    members: dict[str, Member] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)

    def start(
        self,
        name: str,
        *arguments: str,
        failpoints: str = "",
        cwd: Path = ROOT,
        module: str = "cli.main",
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> Member:
        """Start `notipy run`; `log` in place of a file of its own."""
        (port,) = free_ports(1)
        config = self.directory / f"{name}.yaml"
        config.write_text(yaml.safe_dump(self._settings(name, port)))
        own = {"NOTIPY_FAILPOINTS": failpoints} if failpoints else {}
        member = Member(
            name,
            arguments,
            config,
            port,
            log or self.directory / f"{name}.log",
            cwd,
            module,
            {**own, **(environment or {})},
        )
        self.members[name] = member
        self.begin(member)
        return member

    def begin(self, member: Member) -> None:
        """Start an incarnation."""
        command = [sys.executable, "-m", member.module, "--config", str(member.config), "run", *member.arguments]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONUNBUFFERED": "1", **member.environment}
        # a process's working directory is the version of NotiPy that it runs
        member.process = self.processes.start(
            f"notipy-{member.name}", ["env", "-C", str(member.cwd), *command], env=environment, log=member.log
        )
        member.incarnations += 1

    def _settings(self, name: str, port: int) -> dict[str, Any]:
        document: dict[str, Any] = {**self.settings, "metrics": {"host": LOOPBACK, "port": port}}
        channels = {channel: dict(chosen) for channel, chosen in document["channels"].items()}
        if "email" in channels:
            providers = channels["email"]["providers"]
            channels["email"]["providers"] = [{**each, "local_hostname": f"{name}.localhost"} for each in providers]
        return {**document, "channels": channels}

    async def ready(self, *names: str) -> None:
        """Wait until these, or all, are connected and consuming."""
        for name in names or tuple(self.members):
            await eventually(lambda name=name: self.is_ready(name), timeout=READY_SECONDS)  # type: ignore[misc]

    async def is_ready(self, name: str) -> bool:
        """What `/readyz` says."""
        return await self._get(name, "readyz") is not None

    async def _get(self, name: str, path: str) -> str | None:
        url = f"http://{LOOPBACK}:{self.members[name].port}/{path}"
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as answer:
                return await answer.text() if answer.status == 200 else None
        return None

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to its present incarnation."""
        member = self.members[name]
        if member.process is not None:
            member.process.signal(number)

    async def died(self, name: str, timeout: float = 40.0) -> None:
        """Wait for the end of its present incarnation."""
        await eventually(lambda: not self.members[name].runs, timeout=timeout)

    async def replace(self, name: str, **changes: Any) -> None:
        """What an orchestrator does with a process that has ended: start another after a moment."""
        member = self.members[name]
        await asyncio.sleep(_RESTART_SECONDS)
        member.environment = {k: v for k, v in member.environment.items() if k != "NOTIPY_FAILPOINTS"}
        for change, value in changes.items():
            setattr(member, change, value)
        self.begin(member)

    async def stop(self, *names: str) -> None:
        """Ask to stop, and note how it ended; killed after a while."""
        chosen = [self.members[name] for name in names or tuple(self.members)]
        for member in chosen:
            self.signal(member.name, signal.SIGCONT)
            self.signal(member.name, signal.SIGTERM)
        with suppress(AssertionError):
            await eventually(lambda: not any(member.runs for member in chosen), timeout=STOP_SECONDS)
        for member in chosen:
            if member.process is not None:
                self.exits[member.name] = member.process.popen.poll() if not member.runs else -1  # type: ignore[assignment]
                self.processes.kill(member.process)
                member.process = None

    def kill_all(self) -> None:
        """Leave nothing running."""
        for member in self.members.values():
            if member.process is not None:
                self.processes.kill(member.process)
                member.process = None

    async def tasks(self, name: str) -> float:
        """How many tasks its event loop has, as of its last look; 0 if it does not say."""
        return await self._metric(name, "notipy_tasks")

    async def paused(self, name: str, provider: str) -> bool:
        """Whether it leaves a provider alone."""
        return await self._metric(name, "notipy_provider_paused", provider=provider) > 0

    async def in_flight(self) -> float:
        """How many messages all of them have in progress."""
        return sum([await self._metric(name, "notipy_in_flight") for name in self.members])

    async def total(self, metric: str, **labels: str) -> float:
        """The sum, over all of them, of a metric's samples that have these labels."""
        return sum([await self._metric(name, metric, **labels) for name in self.members])

    async def _metric(self, name: str, metric: str, **labels: str) -> float:
        page = await self._get(name, "metrics") or ""
        samples = re.findall(rf"^{metric}(?:{{(.*)}})? (\S+)$", page, re.M)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for given, value in samples if all(each in given for each in wanted))

    def memory(self, name: str) -> float:
        """Resident megabytes."""
        with suppress(OSError):
            status = Path(f"/proc/{self.members[name].pid}/status").read_text()
            found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)
            return int(found[1]) / 1024 if found else 0.0
        return 0.0
