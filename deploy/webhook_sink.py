"""A webhook endpoint on the loopback interface that checks signatures and records its calls.

| path                     | answer to a call whose Standard Webhooks signature is right                     |
| ------------------------ | ------------------------------------------------------------------------------- |
| `/ok`                    | 204                                                                             |
| `/fail/<status>/<times>` | that status as many times per `webhook-id`, then 204; `?retry_after=<seconds>`  |
|                          | adds the header Retry-After to it                                               |
| `/gone`                  | 410                                                                             |

A wrong signature is answered 401, whatever the path.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

_HOST = "127.0.0.1"
_LARGEST_BODY = 4 * 1024 * 1024


@dataclass(frozen=True)
class Call:
    """One request: what came, whether its signature was right, and what was answered."""

    path: str
    webhook_id: str
    verified: bool
    status: int
    headers: Mapping[str, str]
    body: str


class WebhookSink:
    """`async with WebhookSink(directory, secret) as sink`: listens on a free port, records to `calls.jsonl`.

    `secret` is a Standard Webhooks secret (`whsec_…`). It runs in the caller's event loop.
    """

    def __init__(self, directory: Path, secret: str) -> None:
        self.directory = directory
        self.calls: list[Call] = []
        self._webhook = Webhook(secret)
        self._refusals: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Base address without a slash at its end; the sink must have been entered."""
        if self._runner is None:
            raise RuntimeError("The webhook sink is not listening: use it as `async with WebhookSink(…) as sink`.")
        return f"http://{_HOST}:{self._runner.addresses[0][1]}"

    async def __aenter__(self) -> Self:
        """Start listening."""
        self.directory.mkdir(parents=True, exist_ok=True)
        application = web.Application(client_max_size=_LARGEST_BODY)
        application.router.add_post("/ok", self._ok)
        application.router.add_post(r"/fail/{status:[345]\d\d}/{times:\d+}", self._fail)
        application.router.add_post("/gone", self._gone)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, _HOST, 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening and hang up on whoever is still connected."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _ok(self, request: web.Request) -> web.Response:
        return await self._answer(request, 204)

    async def _gone(self, request: web.Request) -> web.Response:
        return await self._answer(request, 410)

    async def _fail(self, request: web.Request) -> web.Response:
        webhook_id = request.headers.get("webhook-id", "")
        if self._refusals[webhook_id] >= int(request.match_info["times"]):
            return await self._answer(request, 204)
        self._refusals[webhook_id] += 1
        return await self._answer(request, int(request.match_info["status"]))

    async def _answer(self, request: web.Request, status: int) -> web.Response:
        """Record the call and answer `status`, or 401 where the signature is wrong."""
        body = await request.read()
        verified = self._verifies(body, request.headers)
        status = status if verified else 401
        self._record(
            Call(
                path=request.path,
                webhook_id=request.headers.get("webhook-id", ""),
                verified=verified,
                status=status,
                headers=dict(request.headers),
                body=body.decode(errors="replace"),
            )
        )
        retry_after = request.query.get("retry_after")
        wait = {"Retry-After": retry_after} if retry_after and status >= 400 else {}
        return web.Response(status=status, headers=wait)

    def _verifies(self, body: bytes, headers: Mapping[str, str]) -> bool:
        try:
            self._webhook.verify(body, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError):  # the library lets malformed headers through as ValueError
            return False
        return True

    def _record(self, call: Call) -> None:
        self.calls.append(call)
        with (self.directory / "calls.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(call)) + "\n")
