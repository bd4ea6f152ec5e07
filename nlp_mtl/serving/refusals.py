"""What a client is told instead of an answer."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nlp_mtl.errors import did_you_mean, first_line
from nlp_mtl.serving.schemas import PredictRequest

PROBLEMS_TOLD = 5
"""Of a body that has thousands, these say enough."""


def add_refusals(app: FastAPI) -> None:
    """Let an application tell what is wrong in one message, ``{"detail": ...}``."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        media_type = request.headers.get("content-type", "")
        if not _is_json(media_type):
            given = f"`{media_type:.80}`" if media_type else "nothing"
            return refused(415, f"content-type says {given}; expected `application/json`")
        found = error.errors()
        for one in found:
            if one["type"] == "json_invalid":
                place = one["loc"][-1] if isinstance(one["loc"][-1], int) else 0
                return refused(400, f"the body is not JSON: {one['ctx']['error']} (character {place})")
        rest = f"; and {len(found) - PROBLEMS_TOLD:,} more" if len(found) > PROBLEMS_TOLD else ""
        return refused(422, "; ".join(map(_told, found[:PROBLEMS_TOLD])) + rest)

    @app.exception_handler(HTTPException)
    async def told(_: Request, error: HTTPException) -> Response:
        detail = error.detail
        if error.status_code == 400 and error.__cause__ is not None:  # FastAPI does not say what it could not read
            detail = f"the body is not JSON: {first_line(error.__cause__)}"
        return refused(error.status_code, detail, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return refused(500, "the server failed; its log says where")


def refused(status: int, detail: str, headers: Any = None) -> Response:
    """A response that says why there is no answer."""
    return JSONResponse({"detail": detail}, status, headers)


def _is_json(media_type: str) -> bool:
    """Whether FastAPI reads such a body as JSON."""
    kind = media_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))


def _told(error: dict[str, Any]) -> str:
    """What is wrong with a body, in a line without what it holds."""
    where = ".".join(map(str, error["loc"][1:]))
    if error["type"] == "extra_forbidden":
        names = PredictRequest.model_fields
        return f"{where:.60}: there is no such key; expected {', '.join(names)}.{did_you_mean(where, names)}"
    if error["type"] == "missing" and where:
        return f"{where}: it is missing"
    if not where:
        return 'the body should be a JSON object such as {"texts": "Anna moved to Oslo."}'
    return f"{where:.60}: {error['msg'].removeprefix('Value error, ')}"
