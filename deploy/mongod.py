"""A private MongoDB: one mongod as a replica set of one member, from the wheel that ships the program."""

import importlib.util
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from deploy.errors import CannotInstall
from deploy.processes import LOOPBACK, Processes, ServerProcess
from deploy.workspace import Workspace

DATABASE = "notipy"

_REPLICA_SET = "notipy"
_ALREADY_INITIALIZED = 23  # the server's error code
_CACHE_GB = 0.25
_OPLOG_MB = 128
_ANSWER_SECONDS = 60.0


def find_mongod() -> Path:
    """Program inside the installed wheel, found without importing it; raises CannotInstall where it is missing."""
    spec = importlib.util.find_spec("fiftyone")
    for location in (spec.submodule_search_locations or []) if spec else []:
        program = Path(location) / "db" / "bin" / "mongod"
        if program.is_file():
            return _executable(program)
    raise CannotInstall(
        "There is no mongod in this virtual environment. Run `pip install notipy[embedded]` (or `make install`), "
        "or set NOTIPY_MONGO_URL to a MongoDB replica set of yours."
    )


def start_mongod(
    processes: Processes, space: Workspace, port: int, *, name: str = "mongod", test_commands: bool = False
) -> ServerProcess:
    """Start mongod on `port` of the loopback interface; `await_primary` says when it can be used.

    Started again under the same `name`, it finds its data. With `test_commands` it takes `configureFailPoint`.
    """
    data = space.data / name
    data.mkdir(exist_ok=True)
    command: list[str | Path] = [
        *(find_mongod(), "--dbpath", data, "--port", str(port), "--bind_ip", LOOPBACK, "--nounixsocket"),
        *("--replSet", _REPLICA_SET, "--oplogSize", str(_OPLOG_MB), "--wiredTigerCacheSizeGB", str(_CACHE_GB)),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        # nobody reads the past; by default the files of what was dropped stay for five minutes, open, for whoever does
        *("--setParameter", "minSnapshotHistoryWindowInSeconds=0"),
        *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"),  # by default it waits 15 s for readers
        *(("--setParameter", "enableTestCommands=1") if test_commands else ()),
        *("--quiet",),
    ]
    return processes.start(name, command, env={"PATH": os.defpath, "LC_ALL": "C"}, log=space.log / f"{name}.log")


def mongo_url(port: int) -> str:
    """Return the connection string, with the database in its path."""
    return f"mongodb://{LOOPBACK}:{port}/{DATABASE}?directConnection=true"


def replica_set_url(ports: Sequence[int]) -> str:
    """Return the connection string of a set of several members, for clients that follow its primary."""
    hosts = ",".join(f"{LOOPBACK}:{port}" for port in ports)
    return f"mongodb://{hosts}/{DATABASE}?replicaSet={_REPLICA_SET}"


def await_primary(process: ServerProcess, port: int) -> None:
    """Make it a replica set of one and return when it accepts writes; raises StartFailed."""
    client: MongoClient[dict[str, Any]] = MongoClient(
        mongo_url(port), serverSelectionTimeoutMS=200, connectTimeoutMS=1000
    )
    with client:
        process.wait_until(lambda: bool(_hello(client)), timeout=_ANSWER_SECONDS)
        _initiate(client, f"{LOOPBACK}:{port}")
        process.wait_until(lambda: bool(_hello(client).get("isWritablePrimary")), timeout=_ANSWER_SECONDS)


def await_replica_set(member: ServerProcess, ports: Sequence[int], *, election_ms: int) -> None:
    """Make the running mongods on `ports` one set and return when it has a primary; raises StartFailed.

    `member` is the process on the first of the ports; a primary is missed after `election_ms`.
    """
    members = [{"_id": number, "host": f"{LOOPBACK}:{port}"} for number, port in enumerate(ports)]
    settings = {"electionTimeoutMillis": election_ms, "heartbeatIntervalMillis": election_ms // 4}
    first: MongoClient[dict[str, Any]] = MongoClient(mongo_url(ports[0]), serverSelectionTimeoutMS=200)
    with first:
        member.wait_until(lambda: bool(_hello(first)), timeout=_ANSWER_SECONDS)
        document = {"_id": _REPLICA_SET, "members": members, "settings": settings}
        member.wait_until(lambda: _accepted(first, document), timeout=_ANSWER_SECONDS)
    whole: MongoClient[dict[str, Any]] = MongoClient(replica_set_url(ports), serverSelectionTimeoutMS=200)
    with whole:
        member.wait_until(lambda: bool(_hello(whole).get("isWritablePrimary")), timeout=_ANSWER_SECONDS)


def _accepted(client: MongoClient[dict[str, Any]], configuration: Mapping[str, Any]) -> bool:
    """Whether the set could be created: not as long as a member does not answer yet."""
    try:
        client.admin.command("replSetInitiate", configuration)
    except OperationFailure as failure:
        return failure.code == _ALREADY_INITIALIZED
    return True


def _hello(client: MongoClient[dict[str, Any]]) -> Mapping[str, Any]:
    """Ask the server about itself; empty while it does not answer."""
    try:
        return client.admin.command("hello")
    except PyMongoError:
        return {}


def _initiate(client: MongoClient[dict[str, Any]], host: str) -> None:
    """Create the replica set, or give the member of a kept one its present address."""
    members = [{"_id": 0, "host": host}]
    try:
        client.admin.command("replSetInitiate", {"_id": _REPLICA_SET, "members": members})
    except OperationFailure as failure:
        if failure.code != _ALREADY_INITIALIZED:
            raise
        kept = client.admin.command("replSetGetConfig")["config"]
        client.admin.command(
            "replSetReconfig", {**kept, "version": kept["version"] + 1, "members": members}, force=True
        )


def _executable(program: Path) -> Path:
    if not os.access(program, os.X_OK):  # some installers drop the bit
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return program
