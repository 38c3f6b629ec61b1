"""Two providers of mail in order, `mail` and `spare`: one that can takes over, and nothing goes to both unmarked."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from domain.vocabulary import Channel, State
from tests.chaos.fleet import ROOT
from tests.chaos.proxy import Mode
from tests.chaos.run import Fault, Run
from tests.chaos.sinks import MAIL, MailServer, Mood
from tests.waiting import eventually

SPARE = "spare"
VICTIM = "a"
_AWAY_SECONDS = 2.0
_EVENTS = 1300
"""So many that there is something left to send when a provider is taken back, or a process has started anew."""
_CUT = "is cut off"
_AWAY = (_CUT, Mood.HANGS_AT_MAIL, Mood.REFUSES_MAIL)
"""How a server can be away. Of what is in hand nothing was sent, but for mails in which the connection is cut."""
_UNSURE = (Mood.HANGS_AFTER_DATA, Mood.CLOSES_AFTER_DATA)
_EXCUSED = frozenset({"duplicated"})
"""What an audit may name: that a delivery was sent twice, late, and is marked."""


async def _with_a_spare(run: Run) -> None:
    """Each has a network of its own."""
    first = run.settings["channels"]["email"]["providers"][0]
    directory = run.directory / SPARE
    run.spare = await run.resources.enter_async_context(MailServer(directory, run.arrivals, name=SPARE))
    providers = []
    for server in (run.mail, run.spare):
        proxy = run.proxies[server.name] = await run.proxied(server.port)
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        providers.append({**first, "name": server.name, "url": url, "timeout": "1s"})
    run.settings["channels"]["email"]["providers"] = providers


def _go(run: Run, server: MailServer, how: str) -> None:
    """Be away, or unsure, until it comes back."""
    run.note(f"{server.name}: {how}")
    if how == _CUT:
        run.proxies[server.name].set(Mode.CUT)
    else:
        server.mood = Mood(how)


def _come_back(run: Run, server: MailServer) -> None:
    run.proxies[server.name].set(Mode.PASS)
    server.mood = Mood.GOOD


def _taken(run: Run, server: MailServer) -> int:
    """How many mails it has."""
    return sum(through[server.name] for through in run.arrivals.through.values())


async def _takes(run: Run, server: MailServer, at_least: int = 20) -> None:
    """Wait until it has taken so many more."""
    before = _taken(run, server)
    await eventually(lambda: _taken(run, server) >= before + run.scaled(at_least), timeout=30)


async def _taken_back(run: Run) -> None:
    """The first is asked, tried, and used again by every process."""
    clients: set[str] = set()
    run.mail.on_content = lambda client, _stage: clients.add(client.partition(".")[0])
    await eventually(lambda: clients >= set(run.fleet.members), timeout=30)
    await _takes(run, run.mail)


async def _first_away(run: Run) -> None:
    _go(run, run.mail, run.rng.choice(_AWAY))
    await asyncio.gather(_takes(run, run.second), asyncio.sleep(_AWAY_SECONDS))
    _come_back(run, run.mail)
    await _taken_back(run)


async def _first_unsure(run: Run) -> None:
    """It keeps the mails: whoever hands them to the other must say that they may come twice."""
    before = _taken(run, run.mail)
    _go(run, run.mail, run.rng.choice(_UNSURE))
    await asyncio.gather(_takes(run, run.second), asyncio.sleep(_AWAY_SECONDS))
    run.expect(_taken(run, run.mail) > before, "the first took no mail without saying so")
    _come_back(run, run.mail)
    await _taken_back(run)


async def _both_away(run: Run) -> None:
    """Whichever comes back first is used first."""
    servers = [run.mail, run.second]
    for server in servers:
        _go(run, server, run.rng.choice(_AWAY))
    paused = len(servers) * len(run.fleet.members)
    await eventually(lambda: _all_paused(run, paused), timeout=30)
    run.rng.shuffle(servers)
    run.note(f"{servers[0].name} is back first")
    for server in servers:
        _come_back(run, server)
        await run.some_progress(50)


async def _all_paused(run: Run, number: int) -> bool:
    return await run.fleet.total("notipy_provider_paused", channel="email") >= number


async def _killed(run: Run) -> None:
    """Between the two providers of a delivery, and again while the first is left alone; each time it starts anew."""
    await run.progressed(run.rng.uniform(0.02, 0.15))
    _go(run, run.mail, Mood.REFUSES_MAIL)
    await run.fleet.died(VICTIM)
    between = await run.database["deliveries"].count_documents({"state": str(State.RETRYING), "forgiven": {"$gt": 0}})
    run.note(f"{between} were between the two")
    run.expect(between, "no delivery was between its providers")
    await run.fleet.replace(VICTIM)
    await eventually(lambda: run.fleet.paused(VICTIM, MAIL), timeout=30)
    run.fleet.signal(VICTIM, signal.SIGKILL)
    await run.fleet.died(VICTIM)
    await run.fleet.replace(VICTIM)
    _come_back(run, run.mail)


async def _told(run: Run) -> None:
    """The audit finds nothing, and the metrics count the attempts of each provider that the histories name."""
    found = await _audit(run)
    run.expect(set(found["exceptions"]) <= _EXCUSED, f"the audit found {found['exceptions']}")
    if not run.fault.failpoints:  # counts are gone with their process
        for provider in (MAIL, SPARE):
            counted = await _counted(run, provider)
            recorded = await _recorded(run, provider)
            run.expect(counted == recorded, f"{provider}: {counted:g} attempts in the metrics, {recorded} on record")


async def _counted(run: Run, provider: str) -> float:
    """How many attempts over this provider the metrics have, without those whose lease had run out."""
    metric, labels = "notipy_attempts_total", {"channel": str(Channel.EMAIL), "provider": provider}
    return await run.fleet.total(metric, **labels) - await run.fleet.total(metric, **labels, outcome="late")


async def _audit(run: Run) -> Mapping[str, Mapping[str, int]]:
    """The sums of `notipy audit`, as an operator asks for them."""
    config = str(run.fleet.members[VICTIM].config)
    command = ("-m", "cli.main", "--config", config, "audit", "--json")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    answer, _ = await process.communicate()
    sums: Mapping[str, Mapping[str, int]] = json.loads(answer.splitlines()[0])
    return sums


async def _recorded(run: Run, provider: str) -> int:
    """How many attempts over this provider have their outcome in a history."""
    stages: list[dict[str, Any]] = [
        {"$match": {"channel": str(Channel.EMAIL)}},
        {"$unwind": "$history"},
        {"$match": {"history.provider": provider, "history.state": str(State.SENDING)}},
        {"$count": "attempts"},
    ]
    found = await (await run.database["deliveries"].aggregate(stages)).to_list()
    return int(found[0]["attempts"]) if found else 0


def _between(run: Run) -> str:
    return f"failed_over:kill:{run.rng.randint(1, 4)}"


_pool_fault = partial(Fault, prepare=_with_a_spare, settled=_told)
FAULTS = (
    _pool_fault(
        "pool-first-away",
        "the first of two mail servers is away for seconds",
        _first_away,
        events=_EVENTS,
        begins=(0.05, 0.15),
    ),
    _pool_fault(
        "pool-first-unsure",
        "the first of two mail servers takes mails and does not say so",
        _first_unsure,
        events=_EVENTS,
        begins=(0.05, 0.15),
    ),
    _pool_fault(
        "pool-both-away",
        "both mail servers are away; one after the other comes back",
        _both_away,
    ),
    _pool_fault(
        "pool-killed",
        "SIGKILL of a consumer between two mail servers, and again while it leaves the first alone",
        _killed,
        failpoints=_between,
        events=_EVENTS,
    ),
)
