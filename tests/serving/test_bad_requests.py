"""What is wrong with a request is told in one message, and the server goes on."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving_thread import Served, serving

TOKEN = "correct-horse"
SWAGGER = "/static-offline-docs/swagger-ui-bundle.js"


@pytest.fixture(scope="module")
def limited() -> Iterator[Served]:
    with serving(max_texts=3, max_characters=20, max_body=1000, hosts=frozenset({"127.0.0.1"})) as one:
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
        ({"texts": "anna", "tasks": []}, "tasks: found 0 names of tasks; expected 1 to 1,000, or null for all"),
        ({"texts": "anna", "tasks": ["nerr"]}, "there is no task `nerr`; the model has `ner`, `pos`, `sentiment`, "
         "`tags`, `rating`, `same`. Did you mean `ner`?"),
        ({"texts": "anna", "tasks": ["same"]}, "`same` learned from pairs of texts: give the second text as text_pair"),
        ({"texts": "anna", "text_pair": "bob", "tasks": ["ner"]}, "`ner` learned from single texts: leave out "
         "text_pair"),
        ({"texts": "anna", "text_pair": ["bob"]}, "text_pair: expected the same form as `texts`: one text, or a list"),
        ({"texts": ["anna"], "text_pair": ["bob", "clara"]}, "text_pair: found 2 for 1 texts; each needs one"),
        ({"texts": "anna", "all_scores": "yes"}, "all_scores: expected true or false, found a string"),
        ({f"{n}": n for n in range(7)}, "texts: it is missing; " + "".join(f"{n}: there is no such key; expected "
         "texts, text_pair, tasks, all_scores.; " for n in range(4)) + "and 3 more"),
        ({"texts": "anna", "x" * 300: 1}, f"{'x' * 60}: there is no such key; expected texts, text_pair, tasks, "
         "all_scores."),
        ({"texts": "anna", "tasks": ["x" * 300]}, f"there is no task `{'x' * 60}`; the model has `ner`, `pos`, "
         "`sentiment`, `tags`, `rating`, `same`."),
        ({"texts": "anna", "tasks": ["\ud800"]}, "there is no task `\\ud800`; the model has `ner`, `pos`, `sentiment`, "
         "`tags`, `rating`, `same`."),
        ({"texts": "anna", "\ud800": 1}, "a key is no text in Unicode"),
        (["anna"], 'the body should be a JSON object such as {"texts": "Anna moved to Oslo."}'),
        ({"texts": ["anna"] * 4}, "texts: found 4; a request may have 3: send several requests"),
        ({"texts": "x" * 21}, "texts: the text has 21 characters; a text may have 20: send its parts"),
        ({"texts": ["a", "x" * 21]}, "texts: text 1 has 21 characters; a text may have 20: send its parts"),
        ({"texts": [["xxxx"] * 5]}, "texts: text 0 has 25 characters; a text may have 20: send its parts"),
        ({"texts": ["x" * 15] * 2, "all_scores": True}, "texts: found 30 characters; a request with all scores may "
         "have 20: send several requests"),
        ({"texts": "x" * 11, "text_pair": "y" * 10}, "texts: the text has 21 characters; a text may have 20: send its "
         "parts"),
    ],
)  # fmt: skip
def test_a_body_that_holds_something_else_is_told_where_and_what(limited: Served, body: Any, message: str) -> None:
    content, headers = json.dumps(body), {"content-type": "application/json"}
    response = limited.client.post("/predict", content=content, headers=headers)
    assert (response.status_code, response.json()) == (422, {"detail": message})
    still_answers(limited)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "the body is not JSON: Expecting property name enclosed in double quotes (character 1)"),
        (b"", 400, "the body is not JSON: Expecting value (character 0)"),
        (b'"anna"', 422, 'the body should be a JSON object such as {"texts": "Anna moved to Oslo."}'),
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
    assert limited.client.post("/predict/", json={"texts": "anna"}).status_code == 404
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


def test_clients_that_leave_are_forgotten_with_their_texts_and_bodies(served: Served) -> None:
    body = json.dumps({"texts": ["anna loves rome"] * 40}).encode()
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with serving(Slow(served.nlp, 0.05), max_body=70_000) as slow:
        guard = slow.guard
        for number in range(60):
            with connected(slow) as client:
                client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body[: 9 * (number % 2) or None])
        until(lambda: guard.held == 0 and measured(slow, "nlp_mtl_waiting_texts") == 0)
        assert measured(slow, "nlp_mtl_texts_total") < 30 * 40  # most were not answered to nobody
        still_answers(slow)
        until(lambda: guard.held == 0)


def until(condition: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 30
        time.sleep(0.01)


def measured(served: Served, name: str) -> float:
    """A figure of /metrics."""
    lines = served.client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def test_headers_that_never_end_are_cut_off(limited: Served) -> None:
    for part in (b"x" * 1000, b"y: " + b"y" * 997 + b"\r\n"):
        with connected(limited) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\nx: ")
            with pytest.raises(OSError):  # noqa: PT011 - reset, or broken pipe
                client.sendall(part * 10_000)
    still_answers(limited)


def test_a_head_behind_a_body_is_not_taken_for_as_large_as_both(served: Served) -> None:
    body = b'{"texts": "anna"}' + b" " * 90_000
    head = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with connected(served) as client:
        client.sendall(head % len(body) + body + b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        time.sleep(0.2)  # what has come is read by then, at one go
        client.sendall(b"connection: close\r\n\r\n")
        found = b""
        while part := client.recv(10_000):
            found += part
    assert b"too large" not in found
    assert found.count(b"HTTP/1.1 200 ") == 2


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


@pytest.mark.parametrize("path", ["/predict", "/tasks", "/metrics", "/predict%0a", "/tasks%0a", "/other"])
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"])
def test_without_the_token_nothing_is_answered(closed: Served, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    method = "POST" if "predict" in path else "GET"
    response = closed.client.request(
        method, path, headers=headers, json={"texts": "anna"} if method == "POST" else None
    )
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    is_token = given is not None and given.startswith("Bearer ")
    assert f"was given {'another one' if is_token else 'none'}: send" in response.text
    assert TOKEN not in response.text


def test_with_the_token_all_is_answered_and_without_the_page_and_health(closed: Served) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert closed.client.post("/predict", json={"texts": "anna"}, headers=headers).status_code == 200
    for path in ("/tasks", "/metrics"):
        assert closed.client.get(path, headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
    for path in ("/", "/page.js", "/page.css", "/answers.js", "/health", "/docs", "/openapi.json", SWAGGER):
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


def test_large_bodies_together_are_bounded_and_small_ones_are_not_kept_out(served: Served) -> None:
    large = {"texts": "x" * 80_000}
    with serving(served.nlp, max_body=100_000, body_timeout=60.0) as one:
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n"
        clients = [connected(one) for _ in range(16)]
        try:
            for client in clients:
                client.sendall(head + b"x" * 99_998)
            until(lambda: one.guard.held > 1_590_000)
            response = one.post(**large)
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            still_answers(one)
        finally:
            for client in clients:
                client.close()
        until(lambda: one.guard.held == 0)
        assert one.post(**large).status_code == 200


def test_bodies_are_read_only_where_they_are_asked_for(served: Served) -> None:
    with serving(served.nlp, token=TOKEN, max_body=1000) as one:
        for path in ("/nothing", "/health", "/predict"):
            response = one.client.post(path, content=b"x" * 900)
            assert response.status_code == (401 if path != "/health" else 405)
        assert one.guard.held == 0


def test_a_megabyte_of_text_is_answered_where_it_may_be(served: Served) -> None:
    text = "anna loves the good film of acme .\n" * (2**20 // 35)
    assert served.post(texts=text).status_code == 422
    with serving(served.nlp, max_characters=2**20) as one:
        found = one.post(texts=text, tasks=["pos", "sentiment"]).json()["predictions"]
        assert len(found["pos"]) == 8 * (2**20 // 35)
        assert text[found["pos"][-1]["start"] :] == ".\n"
        assert found["sentiment"]["label"] in ("negative", "positive")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::2]:80"])
def test_pages_of_other_sites_cannot_ask_a_local_server_by_their_own_name(limited: Served, host: str) -> None:
    response = limited.client.post("/predict", json={"texts": "anna"}, headers={"host": host})
    assert response.status_code == 403
    assert "this server is for its own machine" in response.json()["detail"]
    still_answers(limited)


def test_an_error_that_nobody_thought_of_is_told_and_logged_without_texts(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(value: object) -> str:
        raise RuntimeError(f"cannot write {value}")

    with monkeypatch.context() as patch:
        patch.setattr("nlp_mtl.serving.app.as_json", fails)
        response = served.post(texts="anna secret")
    assert (response.status_code, response.json()) == (500, {"detail": "the server failed; its log says where"})
    until(lambda: "RuntimeError" in caplog.text)
    assert "anna" not in caplog.text
    still_answers(served)


def test_head_is_answered_where_balancers_ask(served: Served) -> None:
    for path in ("/", "/health"):
        response = served.client.head(path)
        assert (response.status_code, response.content) == (200, b"")
