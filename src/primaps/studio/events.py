"""Server-sent events: what happens, to every tab that listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

LONGEST = 64
"""Events that wait for a tab; one that is further behind asks for the state anew."""
PATIENCE = 15.0
"""Seconds between two signs of life."""


class Hub:
    """Events to all who listen, from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening: set[asyncio.Queue[bytes | None]] = set()

    def begin(self) -> None:
        """Remember the event loop; called in it."""
        self._loop = asyncio.get_running_loop()

    def tell(self, kind: str, content: Any) -> None:
        """Send an event; without an event loop nobody listens."""
        if self._loop is None or self._loop.is_closed():
            return
        text = f"event: {kind}\ndata: {json.dumps(content)}\n\n".encode()
        try:
            self._loop.call_soon_threadsafe(self._spread, text)
        except RuntimeError:  # closed between the question and the call
            return

    def end(self) -> None:
        """End all streams, so that the server can end; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._spread, None)

    def _spread(self, text: bytes | None) -> None:
        for waiting in self._listening:
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(text)

    async def listen(self, first: tuple[str, Any]) -> AsyncIterator[bytes]:
        """The stream of one tab, beginning with the state of now."""
        waiting: asyncio.Queue[bytes | None] = asyncio.Queue(LONGEST)
        self._listening.add(waiting)
        try:
            yield f"event: {first[0]}\ndata: {json.dumps(first[1])}\n\n".encode()
            while True:
                try:
                    text = await asyncio.wait_for(waiting.get(), PATIENCE)
                except (TimeoutError, asyncio.TimeoutError):
                    text = b": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            self._listening.discard(waiting)
