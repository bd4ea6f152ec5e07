"""What is wrong with a request is told in one message, and the server goes on."""

import http.client
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving_thread import Served, serving

TOKEN = "correct-horse"


@pytest.fixture(scope="module")
def limited() -> Iterator[Served]:
    with serving(max_texts=3, max_characters=20, max_body=1000) as one:
        yield one


@pytest.fixture(scope="module")
def closed() -> Iterator[Served]:
    with serving(token=TOKEN) as one:
        yield one


def still_answers(served: Served) -> None:
    assert served.post(texts="anna").status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "texts: it is missing"),
        ({"text": "anna"}, "texts: it is missing; text: there is no such key; expected texts, text_pair, tasks, "
         "all_scores. Did you mean `texts`?"),
        ({"texts": None}, "texts: expected a text or a list of texts, found null"),
        ({"texts": 3}, "texts: expected a text or a list of texts, found a number"),
        ({"texts": True}, "texts: expected a text or a list of texts, found a boolean"),
        ({"texts": {"a": 1}}, "texts: expected a text or a list of texts, found an object"),
        ({"texts": []}, "texts: the list is empty; expected at least one text"),
        ({"texts": ["anna", 3]}, "texts: text 1 is a number; expected a string, or a list of words"),
        ({"texts": [["anna", None]]}, "texts: word 1 of text 0 is null; expected a string"),
        ({"texts": "anna", "tasks": "ner"}, "tasks: expected a list of names of tasks, or null for all"),
        ({"texts": "anna", "tasks": []}, "tasks: expected a list of names of tasks, or null for all"),
        ({"texts": "anna", "tasks": ["nerr"]}, "there is no task `nerr`; the model has `ner`, `pos`, `sentiment`, "
         "`tags`, `rating`, `same`. Did you mean `ner`?"),
        ({"texts": "anna", "tasks": ["same"]}, "`same` learned from pairs of texts: give the second text as text_pair"),
        ({"texts": "anna", "text_pair": "bob", "tasks": ["ner"]}, "`ner` learned from single texts: leave out "
         "text_pair"),
        ({"texts": "anna", "text_pair": ["bob"]}, "text_pair: expected the same form as `texts`: one text, or a list"),
        ({"texts": ["anna"], "text_pair": ["bob", "clara"]}, "text_pair: found 2 for 1 texts; each needs one"),
        ({"texts": "anna", "all_scores": "yes"}, "all_scores: Input should be a valid boolean"),
        (["anna"], 'the body should be a JSON object such as {"texts": "Anna moved to Oslo."}'),
        ({"texts": ["anna"] * 4}, "texts: found 4; a request may have 3: send several requests"),
        ({"texts": "x" * 21}, "texts: the text has 21 characters; a text may have 20: send its parts"),
        ({"texts": ["a", "x" * 21]}, "texts: text 1 has 21 characters; a text may have 20: send its parts"),
        ({"texts": [["xxxx"] * 5]}, "texts: text 0 has 25 characters; a text may have 20: send its parts"),
        ({"texts": "x" * 11, "text_pair": "y" * 10}, "texts: the text has 21 characters; a text may have 20: send its "
         "parts"),
    ],
)  # fmt: skip
def test_a_body_that_holds_something_else_is_told_where_and_what(limited: Served, body: Any, message: str) -> None:
    response = limited.client.post("/predict", json=body)
    assert (response.status_code, response.json()) == (422, {"detail": message})
    still_answers(limited)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "the body is not JSON: Expecting property name enclosed in double quotes (character 1)"),
        (b"", 422, 'the body should be a JSON object such as {"texts": "Anna moved to Oslo."}'),
        (b'{"texts": "\xff"}', 400, "the body is not JSON: 'utf-8' codec can't decode byte 0xff in position 11"),
        (b"[" * 900, 400, "the body is not JSON: "),
        (b'{"texts": ' + b"9" * 900 + b"}", 422, "texts: expected a text or a list of texts, found a number"),
        (b"x" * 1001, 413, "a body may have 1,000 bytes: send the texts in several requests"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_is_told(limited: Served, content: bytes, status: int, message: str) -> None:
    response = limited.client.post("/predict", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["detail"].startswith(message)
    still_answers(limited)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_is_not_said_to_be_json_is_refused_as_pages_of_others_can_send_such(
    limited: Served, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    response = limited.client.post("/predict", content=b'{"texts": "anna"}', headers=headers)
    assert response.status_code == 415
    assert "expected `application/json`" in response.json()["detail"]


def test_other_paths_and_methods_are_told(limited: Served) -> None:
    assert limited.client.get("/predict").status_code == 405
    assert limited.client.get("/nothing").status_code == 404
    assert limited.client.post("/tasks", json={}).status_code == 405


def test_a_large_body_of_unknown_length_is_cut_off(limited: Served) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    response = limited.client.post("/predict", content=parts(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    still_answers(limited)


def connected(served: Served) -> socket.socket:
    address = urlsplit(served.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def test_a_body_that_never_ends_is_given_up(served: Served) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n"
    with serving(served.nlp, body_timeout=0.3) as hasty, connected(hasty) as client:
        client.sendall(head + b"{")
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 408
        assert b"did not come to its end in 0.3 seconds" in answer.read()
        assert hasty.client.get("/health").status_code == 200


def test_a_client_that_leaves_is_forgotten(limited: Served) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for rest in (b"content-length: 900\r\n\r\n{", b'content-length: 16\r\n\r\n{"texts":"anna"}', b""):
        with connected(limited) as client:
            client.sendall(head + rest)
    still_answers(limited)


def test_what_is_no_http_is_no_harm(limited: Served) -> None:
    for content in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ):
        with connected(limited) as client:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1000):
                pass
    still_answers(limited)


@pytest.mark.parametrize("path", ["/predict", "/tasks", "/metrics"])
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"])
def test_without_the_token_nothing_is_answered(closed: Served, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    method = "POST" if path == "/predict" else "GET"
    response = closed.client.request(
        method, path, headers=headers, json={"texts": "anna"} if method == "POST" else None
    )
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in response.text


def test_with_the_token_all_is_answered_and_without_the_page_and_health(closed: Served) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert closed.client.post("/predict", json={"texts": "anna"}, headers=headers).status_code == 200
    for path in ("/tasks", "/metrics"):
        assert closed.client.get(path, headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
    for path in ("/", "/page.js", "/page.css", "/health", "/docs", "/openapi.json"):
        assert closed.client.get(path).status_code == 200
    assert "HTTPBearer" in closed.client.get("/openapi.json").text


class Slow:
    """A predictor that takes its time."""

    def __init__(self, nlp: Any, seconds: float) -> None:
        self._nlp, self._seconds = nlp, seconds
        self.tasks, self.chosen_tasks = nlp.tasks, nlp.chosen_tasks

    def __call__(self, *args: Any, **options: Any) -> Any:
        time.sleep(self._seconds)
        return self._nlp(*args, **options)


def test_more_than_may_wait_is_told_when_to_come_again_and_nothing_taken_is_lost(served: Served) -> None:
    with serving(Slow(served.nlp, 0.3), max_queue=4) as slow:

        def ask(_: int) -> httpx.Response:
            with httpx.Client(base_url=slow.url, timeout=30) as client:
                return client.post("/predict", json={"texts": ["anna", "bob"]})

        with ThreadPoolExecutor(16) as pool:
            found = [*pool.map(ask, range(16))]
        assert {one.status_code for one in found} == {200, 429}
        for one in found:
            if one.status_code == 429:
                assert int(one.headers["retry-after"]) >= 1
                assert "wait already" in one.json()["detail"]
        still_answers(slow)


def test_an_answer_that_takes_too_long_is_given_up(served: Served) -> None:
    with serving(Slow(served.nlp, 0.5), timeout=0.2) as slow:
        response = slow.post(texts="anna")
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["detail"] == "there was no time for an answer in 0.2 seconds"
        assert slow.client.get("/health").status_code == 200


def test_large_bodies_together_are_bounded(served: Served) -> None:
    with serving(served.nlp, max_body=10_000) as one:
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n"
        clients = [connected(one) for _ in range(20)]
        try:
            for client in clients:
                client.sendall(head + b"x" * 9998)
            time.sleep(0.3)
            response = one.post(texts="x" * 9000)
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
        finally:
            for client in clients:
                client.close()
        time.sleep(0.3)
        still_answers(one)
