"""The web application: what is asked of it by which path, and what it says."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from nlp_mtl.errors import ModelError
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.inference.texts import as_json
from nlp_mtl.serving.batching import Batcher, BusyError, FailedError
from nlp_mtl.serving.bodies import Guard
from nlp_mtl.serving.given import given_texts, read_request
from nlp_mtl.serving.measures import Measures
from nlp_mtl.serving.refusals import add_refusals
from nlp_mtl.serving.schemas import (
    Health,
    Limits,
    PredictRequest,
    PredictResponse,
    Problem,
    TaskInfo,
    TasksResponse,
)
from nlp_mtl.serving.settings import Settings
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

PAGE = Path(__file__).parent / "page"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

LONG_TEXTS_WAITING = 40
"""How many of the longest texts may wait."""

SLOW_TO_WRITE = 10_000
"""Characters of an answer, after which others get their turn."""

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/answers.js", "/health", "/docs", "/openapi.json"})
"""What needs no token: it holds nothing of the model but its name."""

DOCS_FILES = "/static-offline-docs/"
"""What the OpenAPI page loads: fastapi_offline serves it there."""

logger = logging.getLogger(__name__)


def make_app(nlp: Predictor, settings: Settings) -> Guard:
    """The ASGI application for a model.

    Args:
        nlp: answers one call at a time, from a thread of its own.
    """
    measures = Measures()
    batcher = Batcher(
        nlp, batch_wait=settings.batch_wait, max_queue=settings.max_queue,
        max_queue_characters=LONG_TEXTS_WAITING * settings.max_characters, on_batch=measures.batch,
    )  # fmt: skip
    measures.watch_queue(lambda: batcher.texts_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(_log_connection)
        await batcher.start()
        yield
        await batcher.stop()

    app = FastAPIOffline(
        docs_url="/docs", redoc_url=None, redirect_slashes=False, lifespan=lifespan, title=f"nlp-mtl: {settings.name}",
        version=version("nlp_mtl"), description="Answers of all tasks of a model for texts, from one pass.",
    )  # fmt: skip
    _add_pages(app)
    _add_answers(app, nlp, batcher, measures, settings)
    add_refusals(app)
    return Guard(
        app, is_open=lambda path: path in OPEN_PATHS or path.startswith(DOCS_FILES), token=settings.token,
        hosts=settings.hosts, has_body=lambda path: path == "/predict", max_body=settings.max_body,
        body_timeout=settings.body_timeout, seconds_to_wait=batcher.seconds_to_wait, on_request=measures.request,
    )  # fmt: skip


def _log_connection(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """In a line: clients that break HTTP would fill the log with tracebacks."""
    logger.warning("a connection broke: %s", type(context.get("exception")).__name__)


def _add_pages(app: FastAPI) -> None:
    def page(path: str, file: str) -> None:
        headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "x-content-type-options": "nosniff"}

        @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def give() -> FileResponse:
            return FileResponse(PAGE / file, headers={**headers, "cache-control": "no-cache"})

    page("/", "index.html")
    for file in ("page.css", "page.js", "answers.js"):
        page(f"/{file}", file)


def _add_answers(app: FastAPI, nlp: Predictor, batcher: Batcher, measures: Measures, settings: Settings) -> None:
    problems: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem, "description": text}
        for code, text in {
            400: "The body is not JSON.",
            401: "A token is needed.",
            408: "The body did not come to its end.",
            413: "The body is too large.",
            415: "The body is not said to be JSON.",
            422: "The body holds something else than is expected.",
            429: "Too much is waiting; `Retry-After` says for how long.",
            500: "The model failed.",
            503: "There was no time for an answer; `Retry-After` says how long others wait.",
        }.items()
    }
    protected = [Depends(HTTPBearer(auto_error=False))] if settings.token is not None else []  # for the OpenAPI page
    limits = Limits(max_texts=settings.max_texts, max_characters=settings.max_characters, max_body=settings.max_body)
    about = TasksResponse(model=settings.name, tasks=[_about(task) for task in nlp.tasks], limits=limits)

    content = {"application/json": {"schema": PredictRequest.model_json_schema()}}

    @app.post(
        "/predict", response_model=PredictResponse, responses=problems, dependencies=protected,
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )  # fmt: skip
    async def predict(request: Request) -> Response:
        """Answers for one text or for several, in their order."""
        asked = read_request(await request.body(), request.headers.get("content-type", ""))
        is_one, texts, text_pair = given_texts(asked, settings.max_texts, settings.max_characters)
        try:
            tasks = [task.name for task in nlp.chosen_tasks(asked.tasks, is_pair=text_pair is not None)]
        except ModelError as error:
            raise HTTPException(422, str(error)) from error
        answering = batcher.answer(texts, text_pair, tasks, asked.all_scores)
        try:
            found = await asyncio.wait_for(answering, settings.timeout)
        except BusyError as error:
            raise HTTPException(429, str(error), {"retry-after": str(error.seconds)}) from error
        except FailedError as error:
            raise HTTPException(500, str(error)) from error
        except asyncio.TimeoutError as error:
            message = f"there was no time for an answer in {settings.timeout:g} seconds"
            raise HTTPException(503, message, {"retry-after": str(batcher.seconds_to_wait())}) from error
        parts = []
        for one in found:
            parts.append(as_json(one))
            if len(parts[-1]) > SLOW_TO_WRITE:
                await asyncio.sleep(0)  # others are not kept waiting
        answers = parts[0] if is_one else f"[{', '.join(parts)}]"
        return Response(f'{{"predictions": {answers}}}', media_type="application/json")

    @app.get("/tasks", response_model=TasksResponse, responses={401: problems[401]}, dependencies=protected)
    async def tasks() -> Response:
        """What the model answers."""
        return _json(about.model_dump())

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "It is not."}})
    async def health() -> Response:
        """Whether texts are answered."""
        return _json({"status": "ok" if batcher.runs else "failed"}, 200 if batcher.runs else 503)

    app.head("/health", include_in_schema=False)(health)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: problems[401]},
        dependencies=protected,
    )
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(measures.page(), media_type=CONTENT_TYPE_LATEST)


_OF_TEXTS: dict[str, Literal["label", "labels", "value"]] = {"one": "label", "many": "labels", "none": "value"}


def _about(task: Task) -> TaskInfo:
    answer: Literal["spans", "words", "label", "labels", "value"]
    kind = kind_of(task)
    labels = list(task.labels)
    if task.is_spans:
        answer = "spans"
        labels = list(dict.fromkeys(label[2:] for label in labels if label != "O"))
    elif kind.reads_words:
        answer = "words"
    else:
        answer = _OF_TEXTS[kind.label_set]
    return TaskInfo(name=task.name, type=task.type, answer=answer, labels=labels, pairs=task.pairs)


def _json(value: Any, status: int = 200) -> Response:
    return Response(as_json(value), status, media_type="application/json")
