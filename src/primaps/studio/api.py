"""The routes of the server; docs/studio.md describes them."""

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

from primaps.studio import messages
from primaps.studio.analysis import live_masks, similar_regions
from primaps.studio.audit import answer_question, describe_audit, restore_audit
from primaps.studio.edits import ClassEditor, ConflictError
from primaps.studio.export import corrected_leaves, describe_formats
from primaps.studio.gallery import class_crops, describe_classes
from primaps.studio.messages import image_number, map_response, read_body, threshold
from primaps.studio.network import NOW, SOON
from primaps.studio.studio import Studio

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy of the report, whose styles and images are inline."""
CACHE_CONTROL = "private, max-age=86400"
Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The routes of a studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._audit_limit = CapacityLimiter(1)
        self._decode_limit = CapacityLimiter(2)
        """Images decoded at a time: a large one takes a hundred megabytes."""

    def routes(self) -> list[Route]:
        """Return all routes, which are below ``/api``."""
        get: dict[str, Handler] = {
            "state": self.state,
            "folders": self.folders,
            "events": self.events,
            "images": self.images,
            "images/{n:int}/image.jpg": self.image,
            "images/{n:int}/thumbnail.jpg": self.thumbnail,
            "images/{n:int}/leaves": self.leaves,
            "images/{n:int}/logits": self.logits,
            "images/{n:int}/proposals": self.proposals,
            "images/{n:int}/proposals/{m:int}/similar": self.similar,
            "crops/{n:int}.jpg": self.crop,
            "classes": self.classes,
            "classes/{id:path}/crops": self.class_crops,
            "audit": self.audit,
            "report.html": self.report,
            "export": self.export,
        }
        post: dict[str, Handler] = {
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
            "audit/restore": self.restore_audit,
            "export": self.begin_export,
        }
        return [
            *(Route(f"/api/{path}", handler, methods=["GET"]) for path, handler in get.items()),
            *(Route(f"/api/{path}", handler, methods=["POST"]) for path, handler in post.items()),
        ]

    # Folder and fit.

    async def state(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self.studio.state))

    async def folders(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self.studio.workspace.folders))

    async def events(self, request: Request) -> Response:
        stream = self.studio.events.stream("state", await run_sync(self.studio.state))
        return StreamingResponse(stream, media_type="text/event-stream")

    async def choose(self, request: Request) -> Response:
        given = await read_body(request, messages.FolderBody)
        await run_sync(self.studio.choose, given.path)
        return await self.state(request)

    async def fit(self, request: Request) -> Response:
        given = await read_body(request, messages.FitBody)
        await run_sync(self.studio.fit, given.classes)
        return await self.state(request)

    async def stop(self, request: Request) -> Response:
        await run_sync(self.studio.stop)
        return await self.state(request)

    # Images.

    async def images(self, request: Request) -> Response:
        return await run_sync(lambda: JSONResponse(self._images()))

    def _images(self) -> dict[str, Any]:
        studio = self.studio
        listed, shares = studio.workspace.images, studio.shares()
        numbers = range(len(listed))
        summaries = [studio.images.summaries.get(number) for number in numbers]
        return {
            "names": [image.path for image in listed],
            "width": [image.width for image in listed],
            "height": [image.height for image in listed],
            "uncertainty": [one and round(one.uncertainty, 4) for one in summaries],
            "shares": [np.round(shares[n], 5).tolist() if n in shares else None for n in numbers],
            "corrected": studio.corrected(),
            "unreadable": sorted(studio.images.unreadable),
        }

    async def image(self, request: Request) -> Response:
        return await self._jpeg(request, self.studio.images.image)

    async def thumbnail(self, request: Request) -> Response:
        return await self._jpeg(request, self.studio.images.thumbnail)

    async def crop(self, request: Request) -> Response:
        box = messages.box(request)
        return await self._jpeg(request, lambda number: self.studio.images.crop(number, box))

    async def _jpeg(self, request: Request, read: Callable[[int], bytes]) -> Response:
        """Answer with a JPEG file; the browser may cache it if the address has the collection."""
        workspace, given = self.studio.workspace, request.query_params.get("of")
        before = workspace.collection
        data = await run_sync(read, image_number(request), limiter=self._decode_limit)
        cached = given == before == workspace.collection
        headers = {"Cache-Control": CACHE_CONTROL} if cached else {}
        return Response(data, media_type="image/jpeg", headers=headers)

    async def leaves(self, request: Request) -> Response:
        _, editor = self.studio.opened()
        number = image_number(request)
        await self._analysis(number)

        def answer() -> Response:
            images = self.studio.images
            key, digest = images.workspace.file(number).key, images.digest(number)
            return map_response(corrected_leaves(images, editor, number), key, digest)

        return await run_sync(answer)

    async def logits(self, request: Request) -> Response:
        self.studio.opened()
        logits = (await self._analysis(image_number(request))).logits
        data = np.array(logits.shape, "<u2").tobytes() + logits.astype("<f2").tobytes()
        return Response(data, media_type="application/octet-stream")

    async def proposals(self, request: Request) -> Response:
        number, psi, images = image_number(request), threshold(request), self.studio.images
        features = await asyncio.wrap_future(images.features(number))
        if request.query_params.get("crf", "0") == "1":
            refine = self.studio.network.queue.submit(
                SOON, lambda: images.masks(number, psi, features)
            )
            return await run_sync(map_response, await asyncio.wrap_future(refine))
        return await run_sync(lambda: map_response(live_masks(features, psi)))

    async def similar(self, request: Request) -> Response:
        number, psi, mask = image_number(request), threshold(request), request.path_params["m"]
        features = await asyncio.wrap_future(self.studio.images.features(number))
        summaries = dict(self.studio.images.summaries)
        found = await run_sync(similar_regions, summaries, number, features, mask, psi)
        return JSONResponse(found)

    async def _analysis(self, number: int) -> Any:
        analysis = await run_sync(self.studio.images.analysis, number, NOW)
        return await asyncio.wrap_future(analysis)

    # Classes.

    async def classes(self, request: Request) -> Response:
        return await run_sync(lambda: JSONResponse(self._classes()))

    def _classes(self) -> dict[str, Any]:
        class_summary, editor = self.studio.opened()
        shares = np.array([*self.studio.shares().values()]).reshape(-1, len(class_summary.tree))
        return describe_classes(class_summary, editor, shares)

    async def class_crops(self, request: Request) -> Response:
        _, editor = self.studio.opened()
        name = request.path_params["id"]
        return JSONResponse(await run_sync(class_crops, self.studio.images, editor, name))

    async def edit(self, request: Request) -> Response:
        given = await read_body(request, messages.EditsBody)
        return await self._change(
            lambda editor: editor.append(given.revision, given.edits, given.change)
        )

    async def cut(self, request: Request) -> Response:
        given = await read_body(request, messages.CutBody)
        return await self._change(
            lambda editor: editor.cut(given.revision, given.classes, given.change)
        )

    async def undo(self, request: Request) -> Response:
        given = await read_body(request, messages.RevisionBody)
        return await self._change(lambda editor: editor.undo(given.revision, given.change))

    async def redo(self, request: Request) -> Response:
        given = await read_body(request, messages.RevisionBody)
        return await self._change(lambda editor: editor.redo(given.revision, given.change))

    async def correct(self, request: Request) -> Response:
        given = await read_body(request, messages.CorrectionBody)
        number = image_number(request)
        file = self.studio.workspace.file(number)
        if given.key != file.key:
            raise ConflictError(
                f"this correction was painted on {given.key}, not on {file.key}; paint it again"
            )
        height, width = (await self._analysis(number)).leaves.shape

        def paint(editor: ClassEditor) -> str:
            if given.digest != self.studio.images.digest(number):
                raise ConflictError(
                    f"{file.source} was replaced after this correction was painted; reload the "
                    "page and paint it again"
                )
            size = (height, width)
            editor.paint(
                given.revision, file.key, size, given.name, given.runs, given.digest, given.change
            )
            return file.key

        return await self._change(paint)

    async def _change(self, change: Callable[[ClassEditor], str | None]) -> Response:
        """Change classes or corrections, and announce it to all tabs."""
        studio = self.studio

        def changed() -> Response:
            key = change(studio.opened()[1])
            image = {} if key is None else {"image": studio.workspace.number(key)}
            for number in image.values():
                studio.recount(number)
            answer = self._classes()
            studio.events.send("classes", {"revision": answer["revision"]})
            return JSONResponse({**answer, **image})

        return await run_sync(changed)

    # Audit and report.

    async def audit(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self._audit))

    def _audit(self) -> dict[str, Any]:
        _, editor = self.studio.opened()
        return describe_audit(self.studio.images, editor, *self.studio.audit())

    async def begin_audit(self, request: Request) -> Response:
        given = await read_body(request, messages.AuditBody)
        await run_sync(self.studio.begin_audit, given.answers, limiter=self._audit_limit)
        return await self.audit(request)

    async def answer(self, request: Request) -> Response:
        given = await read_body(request, messages.AnswerBody)

        def answer() -> None:
            answer_question(*self.studio.audit(), given.right, given.done)

        await run_sync(answer, limiter=self._audit_limit)
        return await self.audit(request)

    async def undo_answer(self, request: Request) -> Response:
        def undo() -> None:
            audit, _ = self.studio.audit()
            if audit is None or audit.progress[0] + sum(audit.record.asked) == 0:
                raise ConflictError("the audit has no answer to undo")
            audit.undo()

        await run_sync(undo, limiter=self._audit_limit)
        return await self.audit(request)

    async def restore_audit(self, request: Request) -> Response:
        await run_sync(restore_audit, self.studio.workspace.out, limiter=self._audit_limit)
        return await self.audit(request)

    async def report(self, request: Request) -> Response:
        path = await run_sync(self.studio.report, limiter=self._audit_limit)
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    # Export.

    async def export(self, request: Request) -> Response:
        return JSONResponse(await run_sync(self._export))

    def _export(self) -> dict[str, Any]:
        studio = self.studio
        return {
            "formats": describe_formats(),
            "job": studio.exporter.job,
            "images": len(studio.workspace.images) - len(studio.images.unreadable),
            "corrected": len(studio.corrected()),
        }

    async def begin_export(self, request: Request) -> Response:
        given = await read_body(request, messages.ExportBody)
        _, editor = self.studio.opened()
        keys = None if given.images == "all" else [*editor.corrections.keys()]
        self.studio.exporter.start(editor, given.format, keys, given.per)
        return await self.export(request)
