"""Turn requests away before they cost anything: too many at once, too large, or too slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from batching import Settings
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.auto import AutoHTTPProtocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ENVELOPE = 10_000
"""Bytes that the form around an upload may take."""
CLOSE = {"Connection": "close"}


class Admission:
    """ASGI middleware that admits `max_queue` uploads at once, each for `upload_seconds` and `max_bytes`."""

    def __init__(self, app: Any, settings: Settings):
        self.app, self.settings = app, settings
        self.admitted = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it without reading it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif self.admitted >= self.settings.max_queue:
            await _refuse(503, "Too many requests are waiting; try again later.")(scope, receive, send)
        elif _declared_bytes(scope) > self.settings.max_bytes + ENVELOPE:
            await _refuse(413, f"The upload is larger than {self.settings.max_bytes} bytes.")(scope, receive, send)
        else:
            self.admitted += 1
            try:
                await self.app(scope, self._limited(receive), send)
            finally:
                self.admitted -= 1

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive`, which raises an error of HTTP once the upload is too large or takes too long."""
        end, received, complete = time.monotonic() + self.settings.upload_seconds, 0, False

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError as error:
                seconds = self.settings.upload_seconds
                raise HTTPException(408, f"The upload took longer than {seconds:g} seconds.", CLOSE) from error
            received += len(message.get("body", b""))
            if received > self.settings.max_bytes + ENVELOPE:
                raise HTTPException(413, f"The upload is larger than {self.settings.max_bytes} bytes.", CLOSE)
            complete = not message.get("more_body", False)
            return message

        return limited


def _declared_bytes(scope: Message) -> int:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    return int(declared) if declared.isdigit() else 0


def _refuse(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, CLOSE)


def timed_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, closing a connection that sends no whole head of a request for some seconds.

    uvicorn itself waits for ever for the first request of a connection, and for the rest of a head.
    """

    class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._waits_since = time.monotonic()
            self._check = self.loop.call_later(seconds, self._close_if_late)

        def on_response_complete(self) -> None:
            self._waits_since = time.monotonic()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._check.cancel()
            super().connection_lost(exc)

        def _close_if_late(self) -> None:
            left = self._waits_since + seconds - time.monotonic()
            waits = self.cycle is None or self.cycle.response_complete
            if waits and left <= 0:
                self.transport.close()
            else:  # an answer may take any time; what is left is that of the next request
                self._check = self.loop.call_later(left if waits else seconds, self._close_if_late)

    return TimedProtocol
