"""The routes of images: images, parts, logits, proposals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from primaps.studio import proposals
from primaps.studio import responses as answers
from primaps.studio.analysis import Look
from primaps.studio.export import corrected_parts
from primaps.studio.studio import Studio
from primaps.studio.work_queue import NOW, SOON

LONG = "private, max-age=86400"


class Pictures:
    """What is asked of the images of a studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._few = CapacityLimiter(2)
        """Images that are decoded at a time: a large one takes a hundred megabytes."""

    def routes(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """All of them, by their path."""
        return {
            "images": self.images,
            "images/{n:int}/photo.jpg": self.photo,
            "images/{n:int}/thumb.jpg": self.thumb,
            "images/{n:int}/parts": self.parts,
            "images/{n:int}/logits": self.logits,
            "images/{n:int}/proposals": self.proposals,
            "images/{n:int}/proposals/{m:int}/similar": self.similar,
            "crops/{n:int}.jpg": self.crop,
        }

    async def images(self, request: Request) -> Response:
        return await run_sync(lambda: JSONResponse(self._images()))

    def _images(self) -> dict[str, Any]:
        studio = self.studio
        listed, shares = studio.workspace.images, studio.shares()
        seen = [studio.album.summaries.get(n) for n in range(len(listed))]
        return {
            "names": [one.path for one in listed],
            "width": [one.width for one in listed],
            "height": [one.height for one in listed],
            "doubt": [one and round(one.doubt, 4) for one in seen],
            "shares": [
                np.round(shares[n], 5).tolist() if n in shares else None for n in range(len(listed))
            ],
            "corrected": studio.corrected(),
            "lost": sorted(studio.album.lost),
        }

    async def photo(self, request: Request) -> Response:
        return await self._jpeg(request, self.studio.album.photo)

    async def thumb(self, request: Request) -> Response:
        return await self._jpeg(request, self.studio.album.thumb)

    async def crop(self, request: Request) -> Response:
        box = answers.box(request.query_params.get("box", ""))
        return await self._jpeg(request, lambda number: self.studio.album.crop(number, box))

    async def _jpeg(self, request: Request, find: Callable[[int], bytes]) -> Response:
        """A image, which may be kept where the address says of which images it is."""
        workspace = self.studio.workspace
        given = request.query_params.get("of")
        before = workspace.collection
        found = await run_sync(find, answers.number(request), limiter=self._few)
        headers = {"Cache-Control": LONG} if given == before == workspace.collection else {}
        return Response(found, media_type="image/jpeg", headers=headers)

    async def parts(self, request: Request) -> Response:
        number, studio = answers.number(request), self.studio
        _, edited = studio.open()
        studio.workspace.file(number)
        await self.look(number)
        found = await run_sync(corrected_parts, studio.album, edited, number)
        return await run_sync(answers.labels, found)

    async def logits(self, request: Request) -> Response:
        number, studio = answers.number(request), self.studio
        studio.open()
        studio.workspace.file(number)
        look = await self.look(number)
        data = np.array(look.logits.shape, "<u2").tobytes() + look.logits.astype("<f2").tobytes()
        return Response(data, media_type="application/octet-stream")

    async def proposals(self, request: Request) -> Response:
        number, threshold = answers.number(request), answers.threshold(request)
        features = await self._features(number)
        if request.query_params.get("crf", "0") == "1":
            album = self.studio.album
            found = await _turn(
                self.studio.turns.take(
                    SOON, lambda: proposals.refined_masks(album, number, threshold)
                )
            )
        else:
            found = await run_sync(proposals.live_masks, features, threshold)
        return await run_sync(answers.labels, found)

    async def similar(self, request: Request) -> Response:
        number, threshold = answers.number(request), answers.threshold(request)
        features = await self._features(number)
        mask, album = request.path_params["m"], self.studio.album
        found = await run_sync(proposals.similar_masks, album, number, features, mask, threshold)
        return JSONResponse(found)

    async def look(self, number: int) -> Look:
        """What the model sees in an image: at once if it was looked at, however busy it is."""
        album = self.studio.album
        found = await run_sync(album.kept_look, number)
        return found if found is not None else await _turn(album.look(number, NOW))

    async def _features(self, number: int) -> Any:
        album = self.studio.album
        album.workspace.file(number)
        known = album.known_features(number)
        if known is not None:
            return known
        return await _turn(self.studio.turns.take(NOW, lambda: album.features(number)))


async def _turn(future: Any) -> Any:
    """Wait for the thread of the network without holding up anybody."""
    return await asyncio.wrap_future(future)
