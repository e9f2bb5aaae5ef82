"""What the page asks the server for: docs/studio.md, route by route."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from primaps.data import load_image
from primaps.studio import answers, bodies, gallery, proposals, trust
from primaps.studio.bodies import body
from primaps.studio.edited import ConflictError
from primaps.studio.export import corrected_parts, formats
from primaps.studio.looks import Look
from primaps.studio.photos import SIDE, cut_out, jpeg
from primaps.studio.studio import Studio
from primaps.studio.turns import NOW, SOON

LONG = "private, max-age=86400"
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The report is one file with its styles and pictures inside, and without a script."""


class Api:
    """The routes of a studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._few = CapacityLimiter(4)
        """Photographs that are decoded at a time: a large one takes a hundred megabytes."""
        self._one = CapacityLimiter(1)

    def routes(self) -> list[Route]:
        """All of them, below ``/api``."""
        get: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "state": self.state,
            "folders": self.folders,
            "events": self.events,
            "images": self.images,
            "images/{n:int}/photo.jpg": self.photo,
            "images/{n:int}/thumb.jpg": self.thumb,
            "images/{n:int}/parts": self.parts,
            "images/{n:int}/logits": self.logits,
            "images/{n:int}/proposals": self.proposals,
            "images/{n:int}/proposals/{m:int}/similar": self.similar,
            "classes": self.classes,
            "classes/{id:path}/crops": self.crops,
            "crops/{n:int}.jpg": self.crop,
            "audit": self.audit,
            "report.html": self.report,
            "export": self.export,
        }
        post: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "folder": self.choose,
            "fit": self.fit,
            "stop": self.stop,
            "classes": self.edit,
            "classes/cut": self.cut,
            "undo": self.undo,
            "redo": self.redo,
            "images/{n:int}/correction": self.correct,
            "audit": self.begin_audit,
            "audit/answer": self.answer,
            "audit/undo": self.undo_answer,
            "export": self.begin_export,
        }
        return [
            *(Route(f"/api/{path}", route, methods=["GET"]) for path, route in get.items()),
            *(Route(f"/api/{path}", route, methods=["POST"]) for path, route in post.items()),
        ]

    # The folder and the fit.

    async def state(self, request: Request) -> Response:
        return JSONResponse(self.studio.state())

    async def folders(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self.studio.workspace.folders))

    async def events(self, request: Request) -> Response:
        stream = self.studio.hub.listen(("state", self.studio.state()))
        return StreamingResponse(stream, media_type="text/event-stream")

    async def choose(self, request: Request) -> Response:
        given = await body(request, bodies.FolderBody)
        await run_sync(self.studio.choose, given.path)
        return await self.state(request)

    async def fit(self, request: Request) -> Response:
        given = await body(request, bodies.FitBody)
        await run_sync(self.studio.fit, given.classes)
        return await self.state(request)

    async def stop(self, request: Request) -> Response:
        await run_sync(self.studio.fitting.stop)
        return await self.state(request)

    # Images.

    async def images(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self._images))

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
        }

    async def photo(self, request: Request) -> Response:
        picture = self.studio.album.picture
        found = await run_sync(picture, answers.number(request), SIDE, limiter=self._few)
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": LONG})

    async def thumb(self, request: Request) -> Response:
        found = await run_sync(self.studio.album.thumb, answers.number(request), limiter=self._few)
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": LONG})

    async def parts(self, request: Request) -> Response:
        number, studio = answers.number(request), self.studio
        _, edited = studio.open()
        studio.workspace.file(number)
        await self._look(number)
        found = await run_sync(corrected_parts, studio.album, edited, number)
        return await run_sync(answers.labels, found)

    async def logits(self, request: Request) -> Response:
        number, studio = answers.number(request), self.studio
        studio.open()
        studio.workspace.file(number)
        look = await self._look(number)
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

    async def _look(self, number: int) -> Look:
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

    # Classes.

    async def classes(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self._classes))

    def _classes(self) -> dict[str, Any]:
        found, edited = self.studio.open()
        shares = np.array([*self.studio.shares().values()]).reshape(-1, len(found.tree))
        return gallery.classes(found, edited, shares)

    async def edit(self, request: Request) -> Response:
        given = await body(request, bodies.EditsBody)
        return await self._change(lambda edited: edited.append(given.revision, given.edits))

    async def cut(self, request: Request) -> Response:
        given = await body(request, bodies.CutBody)
        return await self._change(lambda edited: edited.cut(given.revision, given.classes))

    async def undo(self, request: Request) -> Response:
        given = await body(request, bodies.RevisionBody)
        return await self._change(lambda edited: edited.undo(given.revision))

    async def redo(self, request: Request) -> Response:
        given = await body(request, bodies.RevisionBody)
        return await self._change(lambda edited: edited.redo(given.revision))

    async def correct(self, request: Request) -> Response:
        given = await body(request, bodies.CorrectionBody)
        number, studio = answers.number(request), self.studio
        key = studio.workspace.file(number).key
        look = await self._look(number)
        size = (look.parts.shape[0], look.parts.shape[1])

        def paint(edited: Any) -> str:
            edited.paint(given.revision, key, size, given.name, given.runs)
            return key

        return await self._change(paint)

    async def _change(self, change: Callable[[Any], str | None]) -> Response:
        """Change classes or corrections; every tab hears of it."""
        studio = self.studio

        def changed() -> dict[str, Any]:
            number = studio.number(change(studio.open()[1]))
            if number is not None:
                studio.recount(number)
            answer = self._classes()
            return answer if number is None else {**answer, "image": number}

        answer = await run_sync(changed)
        studio.hub.tell("classes", {"revision": answer["revision"]})
        return JSONResponse(answer)

    async def crops(self, request: Request) -> Response:
        _, edited = self.studio.open()
        name = request.path_params["id"]
        return JSONResponse(await run_sync(gallery.crops, self.studio.album, edited, name))

    async def crop(self, request: Request) -> Response:
        number, box = answers.number(request), answers.box(request.query_params.get("box", ""))
        source = self.studio.workspace.file(number).source

        def cut() -> bytes:
            return jpeg(cut_out(load_image(source), box))

        found = await run_sync(cut, limiter=self._few)
        return Response(found, media_type="image/jpeg", headers={"Cache-Control": LONG})

    # Trust.

    async def audit(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self._audit))

    def _audit(self) -> dict[str, Any]:
        _, edited = self.studio.open()
        return trust.audit_page(self.studio.album, edited, *self.studio.audit())

    async def begin_audit(self, request: Request) -> Response:
        given = await body(request, bodies.AuditBody)
        await run_sync(self.studio.begin_audit, given.answers)
        return await self.audit(request)

    async def answer(self, request: Request) -> Response:
        given = await body(request, bodies.AnswerBody)

        def answer() -> None:
            found, now = self.studio.audit()
            question = None if found is None else found.next()
            if found is None or question is None:
                raise ConflictError("there is no question: begin an audit")
            if found.record.about != now:
                raise ConflictError("the classes changed since: begin the audit anew")
            found.answer(question, given.right)

        await run_sync(answer, limiter=self._one)
        return await self.audit(request)

    async def undo_answer(self, request: Request) -> Response:
        def undo() -> None:
            found = self.studio.audit()[0]
            if found is None or found.progress[0] + sum(found.record.asked) == 0:
                raise ConflictError("there is no answer to take back")
            found.undo()

        await run_sync(undo, limiter=self._one)
        return await self.audit(request)

    async def report(self, request: Request) -> Response:
        path = await run_sync(self.studio.report, limiter=self._one)
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    # Export.

    async def export(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self._export))

    def _export(self) -> dict[str, Any]:
        studio = self.studio
        return {
            "formats": formats(),
            "job": studio.exporting.job,
            "images": len(studio.workspace.images) - len(studio.album.lost),
            "corrected": len(studio.corrected()),
        }

    async def begin_export(self, request: Request) -> Response:
        given = await body(request, bodies.ExportBody)
        _, edited = self.studio.open()
        keys = None if given.images == "all" else [*edited.corrections.keys()]
        self.studio.exporting.start(edited, given.format, keys, given.per)
        return await self.export(request)


async def _turn(future: Any) -> Any:
    """Wait for the thread of the network without holding up anybody."""
    return await asyncio.wrap_future(future)
