"""A server's answers are those of the model, whatever else is asked at the same time."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from answers import ODD, TEXTS, assert_alike
from serving_thread import SERVED_TASKS, Served


def body(served: Served, **asked: Any) -> Any:
    response = served.post(**asked)
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def test_one_text_has_one_answer_and_a_list_a_list(served: Served) -> None:
    text = "anna loves the film of acme ."
    assert_alike(body(served, texts=text), served.nlp(text))
    assert_alike(body(served, texts=[text]), [served.nlp(text)])
    assert_alike(body(served, texts=TEXTS), served.nlp(TEXTS))


def test_words_stay_words_and_may_stand_beside_texts(served: Served) -> None:
    given: list[Any] = [["anna", "loves", "", "rome"], "anna loves rome", []]
    assert_alike(body(served, texts=given), served.nlp(given))


def test_pairs_are_answered_by_the_tasks_that_read_pairs(served: Served) -> None:
    found = body(served, texts="anna loves rome", text_pair="anna hates rome")
    assert_alike(found, served.nlp("anna loves rome", text_pair="anna hates rome"))
    assert [*found] == ["same"]
    several: Any = {"texts": ["anna", "bob"], "text_pair": ["bob", ["the", "film"]]}
    assert_alike(body(served, **several), served.nlp(**several))


def test_chosen_tasks_and_all_scores_are_those_of_a_call(served: Served) -> None:
    for options in ({"tasks": ["sentiment", "ner"]}, {"all_scores": True}, {"tasks": ["tags"], "all_scores": True}):
        assert_alike(body(served, texts=TEXTS, **options), served.nlp(TEXTS, **options))


@pytest.mark.parametrize("text", [*ODD, "", " \n\t", "😀🎉", "\x00\x07\x1b[31m", "<script>alert(1)</script>"])
def test_odd_texts_are_answered_as_they_are(served: Served, text: str) -> None:
    assert_alike(body(served, texts=text), served.nlp(text))


def test_offsets_are_those_of_the_text_that_was_sent(served: Served) -> None:
    text = "😀 anna\r\n  loves\u200b acme"
    for entry in body(served, texts=text)["pos"]:
        assert text[entry["start"] : entry["end"]] == entry["text"]


def test_many_at_once_each_get_their_own_answers(served: Served) -> None:
    words = ["anna", "bob", "loves", "the", "good", "film", "of", "acme", "."]
    texts = [" ".join(words[number % 9 :] + words[: number % 7]) + f" {number}" for number in range(200)]
    options = [{}, {"tasks": ["pos"]}, {"all_scores": True}, {"tasks": ["sentiment", "tags"], "all_scores": True}]

    def ask(number: int) -> Any:
        with httpx.Client(base_url=served.url, timeout=30) as client:
            return client.post("/predict", json={"texts": texts[number], **options[number % 4]}).json()["predictions"]

    with ThreadPoolExecutor(32) as pool:
        found = [*pool.map(ask, range(len(texts)))]
    for number, answer in enumerate(found):
        assert_alike(answer, served.nlp(texts[number], **options[number % 4]))


def test_tasks_tells_what_the_model_answers(served: Served) -> None:
    found = served.client.get("/tasks").json()
    assert [task["name"] for task in found["tasks"]] == [task.name for task in SERVED_TASKS]
    assert {task["name"]: task["answer"] for task in found["tasks"]} == {
        "ner": "spans", "pos": "words", "sentiment": "label", "tags": "labels", "rating": "value", "same": "label",
    }  # fmt: skip
    assert found["tasks"][0]["labels"] == ["LOC", "ORG", "PER"]
    assert [task["name"] for task in found["tasks"] if task["pairs"]] == ["same"]
    assert found["model"] == "tiny"
    assert found["limits"]["max_texts"] == served.settings.max_texts


def test_health_says_that_texts_are_answered(served: Served) -> None:
    response = served.client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_metrics_count_requests_texts_and_batches(served: Served) -> None:
    def measured(name: str) -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return float(next((line.split()[1] for line in lines if line.startswith(name)), 0))

    names = {
        'nlp_mtl_requests_total{path="/predict",status="200"}': 1,
        'nlp_mtl_requests_total{path="/predict",status="422"}': 1,
        'nlp_mtl_requests_total{path="other",status="404"}': 1,
        "nlp_mtl_texts_total": 3,
        "nlp_mtl_batch_texts_count": 1,
        "nlp_mtl_batch_texts_sum": 3,
        'nlp_mtl_request_seconds_count{path="/predict"}': 2,
    }
    before = {name: measured(name) for name in names}
    body(served, texts=["anna", "bob", "rome"])
    served.post(texts=3)
    served.client.get("/some/path")
    assert {name: measured(name) - before[name] for name in names} == names
    assert measured("nlp_mtl_waiting_texts") == 0


def test_the_openapi_page_needs_no_other_host(served: Served) -> None:
    page = served.client.get("/docs").text
    assert "//cdn" not in page
    assert "https://" not in page
    script = page.split('<script src="')[1].split('"')[0]
    assert served.client.get(script).status_code == 200
    spec = json.loads(served.client.get("/openapi.json").text)
    assert {*spec["paths"]} == {"/predict", "/tasks", "/health", "/metrics"}
