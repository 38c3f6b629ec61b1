"""The management interface of an embedded RabbitMQ: virtual hosts for tests, and what is inside them."""

import base64
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

_LOOPBACK_NAMES = {"127.0.0.1", "::1", "localhost"}
_NOT_FOUND = 404


class RabbitAdmin:
    """A client of the management interface on the loopback interface; any fault is an OSError.

    Listings are the management plugin's: connections are about a second old, the counts of quorum queues up to six.
    """

    def __init__(self, management_url: str, *, user: str = "guest", password: str = "guest", timeout: float = 10.0):  # noqa: S107 - the broker's well-known default, which it accepts on the loopback interface only
        if urlsplit(management_url).hostname not in _LOOPBACK_NAMES:
            raise ValueError(f"RabbitAdmin is for embedded servers on the loopback interface, not for {management_url}")
        self._base = management_url.rstrip("/") + "/api"
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._timeout = timeout
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers(self) -> bool:
        """Whether the interface and the database behind it respond."""
        try:
            self._call("GET", "vhosts")
        except OSError:
            return False
        return True

    def create_vhost(self, name: str) -> None:
        """Create a virtual host in which the user may do everything; harmless if it exists."""
        self._call("PUT", "vhosts", name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it, closing its connections; harmless if it does not exist."""
        self._delete("vhosts", name)

    def set_policy(self, vhost: str, name: str, pattern: str, definition: dict[str, Any]) -> None:
        """Set a policy on the queues of a virtual host whose names match."""
        body = {"pattern": pattern, "definition": definition, "apply-to": "queues"}
        self._call("PUT", "policies", vhost, name, body=body)

    def queues(self, vhost: str) -> list[dict[str, Any]]:
        """Queues of a virtual host, as the interface describes them."""
        return self._list("queues", vhost)

    def list_connections(self, vhost: str) -> list[dict[str, Any]]:
        """Open client connections of a virtual host."""
        return self._list("vhosts", vhost, "connections")

    def close_connections(self, vhost: str) -> int:
        """Have the broker close every connection of a virtual host; returns how many there were."""
        connections = self.list_connections(vhost)
        for connection in connections:
            self._delete("connections", connection["name"])
        return len(connections)

    def _list(self, *path: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self._call("GET", *path))
        return listed

    def _delete(self, *path: str) -> None:
        try:
            self._call("DELETE", *path)
        except urllib.error.HTTPError as error:
            if error.code != _NOT_FOUND:
                raise

    def _call(self, method: str, *path: str, body: dict[str, Any] | None = None) -> bytes:
        url = "/".join([self._base, *(quote(part, safe="") for part in path)])
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, method=method, headers=headers)  # noqa: S310 - http to loopback only
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            error.close()  # its socket
            raise
