"""What a client is told instead of an answer."""

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException


def add_refusals(app: FastAPI) -> None:
    """Let an application tell what is wrong in one message, ``{"detail": ...}``."""

    @app.exception_handler(HTTPException)
    async def told(_: Request, error: HTTPException) -> Response:
        return _refused(error.status_code, error.detail, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _refused(500, "the server failed; its log says where")


def _refused(status: int, detail: str, headers: Any = None) -> Response:
    return Response(problem(detail), status, headers, "application/json")


def problem(detail: str) -> bytes:
    """What clients are sent, in ASCII: it may hold lone surrogates of the request."""
    return json.dumps({"detail": detail}).encode()
