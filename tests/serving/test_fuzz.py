"""Whatever is sent, the server says what is wrong or answers, and goes on."""

import json
from typing import Any

import pytest
import schemathesis
from answers import assert_alike
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serving_thread import Served

TEXT = st.text(st.characters(exclude_categories=()), max_size=40)  # surrogates and control characters as well
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
TEXTS = TEXT | st.lists(TEXT | st.lists(TEXT, max_size=4), min_size=1, max_size=4)
TASKS = st.sampled_from(["ner", "pos", "sentiment", "tags", "rating", "same"])
KEYS = {"texts": TEXTS, "text_pair": TEXTS, "tasks": st.lists(TASKS, max_size=3), "all_scores": st.booleans()}
BODY = st.fixed_dictionaries({}, optional={key: values | JSON for key, values in KEYS.items()})

every_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def refused(response: Any) -> None:
    """A body was refused, in a message."""
    assert response.status_code in (400, 413, 415, 422), response.text
    assert response.json().keys() == {"detail"}
    assert response.json()["detail"]


@every_fixture
@given(BODY | JSON)
def test_any_json_is_answered_or_refused_in_a_message(served: Served, body: Any) -> None:
    headers = {"content-type": "application/json"}
    response = served.client.post("/predict", content=json.dumps(body), headers=headers)
    if response.status_code != 200:
        refused(response)


@every_fixture
@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "application/json; charset=utf-16"]))
def test_any_bytes_are_refused_in_a_message(served: Served, body: bytes, media_type: str) -> None:
    response = served.client.post("/predict", content=body, headers={"content-type": media_type})
    refused(response)


@every_fixture
@given(st.lists(TEXT | st.lists(TEXT, max_size=4), min_size=1, max_size=4), st.booleans())
def test_any_texts_are_answered_as_by_a_call(served: Served, texts: list[Any], all_scores: bool) -> None:
    response = served.post(texts=texts, all_scores=all_scores)
    assert response.status_code == 200, response.text
    assert_alike(response.json()["predictions"], served.nlp(texts, all_scores=all_scores))


GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [("POST", "/predict", GOOD), ("POST", "/predict", BAD), ("GET", "/tasks", GOOD), ("GET", "/health", GOOD)],
)
def test_what_the_openapi_page_says_is_so(served: Served, method: str, path: str, mode: GenerationMode) -> None:
    operation = schemathesis.openapi.from_url(f"{served.url}/openapi.json")[path][method]

    @settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
    @given(operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=[not_a_server_error, status_code_conformance, response_schema_conformance])

    check()
