"""What stands before the page: only this machine's own pages may ask, nothing too large comes in, nothing foreign is loaded.

Another web site that is open in the same browser could otherwise send requests here, under a name of its own for this
address, or from a form. A guard is an ASGI application around another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

MAX_UPLOAD = 16 << 20  # bytes
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}  # fmt: skip

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TooLarge(Exception):
    """More came in than is taken."""


def guarded(app: App, port: int) -> App:
    """`app`, which answers this machine's own pages alone: a foreign Host is 400, a foreign Origin 403, too much 413."""
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    origins = {f"http://{host}" for host in hosts}

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await app(scope, receive, send)
        asked = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refused = refusal(asked, hosts, origins)
        if refused is not None and scope["type"] == "http":
            await drain(receive)
            return await answer(send, *refused)
        if refused is not None:
            return await send({"type": "websocket.close", "code": 1008})
        state = {"received": 0, "started": False}

        async def counted() -> Message:
            message = await receive()
            state["received"] += len(message.get("body", b""))
            if state["received"] > MAX_UPLOAD:
                raise TooLarge
            return message

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["started"] = True
                own = {k.encode() for k in HEADERS}
                kept = [(k, v) for k, v in message.get("headers", []) if k.lower() not in own]
                message["headers"] = [*kept, *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        try:
            await app(scope, counted, headed)
        except TooLarge:
            if not state["started"]:
                await drain(receive)
                await answer(send, 413, f"at most {MAX_UPLOAD >> 20} MB are taken")

    return guard


def refusal(asked: Mapping[str, str], hosts: set[str], origins: set[str]) -> tuple[int, str] | None:
    """Why a request with those headers is refused: a status and a sentence; None if it is not."""
    if asked.get("host") not in hosts:
        return 400, "this page is for this machine alone"
    if asked.get("origin", next(iter(origins))) not in origins:
        return 403, "another site's page may not ask this one"
    if asked.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "another site's page may not ask this one"
    length = asked.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_UPLOAD:
        return 413, f"at most {MAX_UPLOAD >> 20} MB are taken"
    return None


async def drain(receive: Receive) -> None:
    """Takes what is still coming in, up to a bound, and forgets it: who is still sending reads no answer."""
    left = 4 * MAX_UPLOAD
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return


async def answer(send: Send, status: int, text: str) -> None:
    """A whole response of one line."""
    body = f"{text}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()),
               (b"connection", b"close")]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
