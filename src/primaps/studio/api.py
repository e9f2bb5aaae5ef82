"""What the page asks the server for: docs/studio.md, route by route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from primaps.studio import gallery, trust
from primaps.studio import requests as bodies
from primaps.studio import responses as answers
from primaps.studio.edited import ConflictError
from primaps.studio.export import formats
from primaps.studio.pictures import Pictures
from primaps.studio.requests import body
from primaps.studio.studio import Studio

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The report is one file with its styles and pictures inside, and without a script."""


class Api:
    """The routes of a studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.pictures = Pictures(studio)
        self._one = CapacityLimiter(1)

    def routes(self) -> list[Route]:
        """All of them, below ``/api``."""
        get: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "state": self.state,
            "folders": self.folders,
            "events": self.events,
            **self.pictures.routes(),
            "classes": self.classes,
            "classes/{id:path}/crops": self.crops,
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
        return JSONResponse(await run_sync(self.studio.state))

    async def folders(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self.studio.workspace.folders))

    async def events(self, request: Request) -> Response:
        stream = self.studio.hub.listen(("state", await run_sync(self.studio.state)))
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
        await run_sync(self.studio.stop)
        return await self.state(request)

    # Classes.

    async def classes(self, request: Request) -> Response:
        return await run_sync(lambda: JSONResponse(self._classes()))

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
        look = await self.pictures.look(number)
        size = (look.parts.shape[0], look.parts.shape[1])

        def paint(edited: Any) -> str:
            edited.paint(given.revision, key, size, given.name, given.runs)
            return key

        return await self._change(paint)

    async def _change(self, change: Callable[[Any], str | None]) -> Response:
        """Change classes or corrections; every tab hears of it."""
        studio = self.studio

        def changed() -> Response:
            number = studio.number(change(studio.open()[1]))
            if number is not None:
                studio.recount(number)
            answer = self._classes()
            studio.hub.tell("classes", {"revision": answer["revision"]})
            return JSONResponse(answer if number is None else {**answer, "image": number})

        return await run_sync(changed)

    async def crops(self, request: Request) -> Response:
        _, edited = self.studio.open()
        name = request.path_params["id"]
        return JSONResponse(await run_sync(gallery.crops, self.studio.album, edited, name))

    # Trust.

    async def audit(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self._audit))

    def _audit(self) -> dict[str, Any]:
        _, edited = self.studio.open()
        return trust.audit_page(self.studio.album, edited, *self.studio.audit())

    async def begin_audit(self, request: Request) -> Response:
        given = await body(request, bodies.AuditBody)
        await run_sync(self.studio.begin_audit, given.answers, limiter=self._one)
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
            if found.progress[0] != given.done:
                raise ConflictError("another tab answered meanwhile: this is the question now")
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
