"""The web application: what is asked of it by which path, and what it says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from nlp_mtl.errors import ModelError, did_you_mean, first_line
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.inference.texts import as_json, num_characters
from nlp_mtl.serving.batching import Batcher, BusyError, FailedError
from nlp_mtl.serving.bodies import Guard
from nlp_mtl.serving.measures import Measures
from nlp_mtl.serving.schemas import (
    Health,
    Limits,
    PredictRequest,
    PredictResponse,
    Problem,
    TaskInfo,
    TasksResponse,
)
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

PAGE = Path(__file__).parent / "page"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Settings:
    """What a server lets its clients do. Times in seconds."""

    name: str = "model"
    """What the model is called."""
    max_texts: int = 1000
    """Texts of a request."""
    max_characters: int = 100_000
    """Of a text, with its second one."""
    max_body: int = 4 * 2**20
    """Bytes of a request."""
    max_queue: int = 2048
    """Texts that wait."""
    timeout: float = 60.0
    """Until an answer."""
    body_timeout: float = 10.0
    """Until a body has come."""
    batch_wait: float = 0.002
    """A text waits for others."""
    token: str | None = None
    """What clients have to send."""


def make_app(nlp: Predictor, settings: Settings) -> Guard:
    """The ASGI application for a model.

    Args:
        nlp: answers one call at a time, from a thread of its own.
    """
    measures = Measures()
    batcher = Batcher(
        nlp, batch_wait=settings.batch_wait, max_queue=settings.max_queue,
        max_queue_characters=40 * settings.max_characters, on_batch=measures.batch,
    )  # fmt: skip
    measures.watch_queue(lambda: batcher.texts_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await batcher.start()
        yield
        await batcher.stop()

    app = FastAPIOffline(
        docs_url="/docs", redoc_url=None, lifespan=lifespan, title=f"nlp-mtl: {settings.name}",
        version=version("nlp_mtl"), description="Answers of all tasks of a model for texts, from one pass.",
    )  # fmt: skip
    _add_pages(app)
    _add_answers(app, nlp, batcher, measures, settings)
    _add_errors(app)
    return Guard(
        app, protected=frozenset({"/predict", "/tasks", "/metrics"}), token=settings.token, max_body=settings.max_body,
        body_timeout=settings.body_timeout, seconds_to_wait=batcher.seconds_to_wait, on_request=measures.request,
    )  # fmt: skip


def _add_pages(app: FastAPI) -> None:
    def page(path: str, file: str) -> None:
        headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "x-content-type-options": "nosniff"}

        @app.get(path, include_in_schema=False)
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

    @app.post("/predict", response_model=PredictResponse, responses=problems, dependencies=protected)
    async def predict(asked: PredictRequest) -> Response:
        """Answers for one text or for several, in their order."""
        is_one, texts, text_pair = _given(asked, settings)
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
        return _json({"predictions": found[0] if is_one else found})

    @app.get("/tasks", response_model=TasksResponse, responses={401: problems[401]}, dependencies=protected)
    async def tasks() -> Response:
        """What the model answers."""
        return _json(about.model_dump())

    @app.get("/health", response_model=Health, responses={503: {"model": Health, "description": "It is not."}})
    async def health() -> Response:
        """Whether texts are answered."""
        return _json({"status": "ok" if batcher.runs else "failed"}, 200 if batcher.runs else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: problems[401]},
        dependencies=protected,
    )
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(measures.page(), media_type=CONTENT_TYPE_LATEST)


def _given(asked: PredictRequest, settings: Settings) -> tuple[bool, list[Any], list[Any] | None]:
    """Whether one text is asked about, the texts, and their second ones.

    Raises:
        HTTPException: there are more, or they are longer, than may be, or not as many second ones.
    """
    texts, pair = asked.texts, asked.text_pair
    is_one = isinstance(texts, str)
    if pair is not None and isinstance(pair, str) != is_one:
        raise HTTPException(422, "text_pair: expected the same form as `texts`: one text, or a list")
    texts = [texts] if is_one else texts
    text_pair = None if pair is None else [pair] if isinstance(pair, str) else pair
    if text_pair is not None and len(text_pair) != len(texts):
        raise HTTPException(422, f"text_pair: found {len(text_pair)} for {len(texts)} texts; each needs one")
    if len(texts) > settings.max_texts:
        raise HTTPException(
            422, f"texts: found {len(texts):,}; a request may have {settings.max_texts:,}: send several requests"
        )
    for place, text in enumerate(texts):
        size = num_characters(text) + (0 if text_pair is None else num_characters(text_pair[place]))
        if size > settings.max_characters:
            where = "texts: the text" if is_one else f"texts: text {place}"
            raise HTTPException(
                422, f"{where} has {size:,} characters; a text may have {settings.max_characters:,}: send its parts"
            )
    return is_one, texts, text_pair


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        media_type = request.headers.get("content-type", "")
        if not _is_json(media_type):
            given = f"`{media_type}`" if media_type else "nothing"
            return _json({"detail": f"content-type says {given:.80}; expected `application/json`"}, 415)
        found = error.errors()
        if any(one["type"] == "json_invalid" for one in found):
            one = next(one for one in found if one["type"] == "json_invalid")
            place = one["loc"][-1] if isinstance(one["loc"][-1], int) else 0
            return _json({"detail": f"the body is not JSON: {one['ctx']['error']} (character {place})"}, 400)
        return _json({"detail": "; ".join(map(_told, found))}, 422)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        detail = error.detail
        if error.status_code == 400 and error.__cause__ is not None:  # FastAPI does not say what it could not read
            detail = f"the body is not JSON: {first_line(error.__cause__)}"
        return _json({"detail": detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _json({"detail": "the server failed; its log says where"}, 500)


def _is_json(media_type: str) -> bool:
    """Whether FastAPI reads such a body as JSON."""
    kind = media_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))


def _told(error: dict[str, Any]) -> str:
    """What is wrong with a body, in a line without what it holds."""
    where = ".".join(map(str, error["loc"][1:]))
    if error["type"] == "extra_forbidden":
        names = PredictRequest.model_fields
        return (
            f"{where}: there is no such key; expected {', '.join(names)}.{did_you_mean(str(error['loc'][-1]), names)}"
        )
    if error["type"] == "missing" and where:
        return f"{where}: it is missing"
    if not where:
        return 'the body should be a JSON object such as {"texts": "Anna moved to Oslo."}'
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


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


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(as_json(value), status, headers, "application/json")
