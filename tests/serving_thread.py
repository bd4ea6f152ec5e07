"""A tiny model with a task of each kind, served by a thread on 127.0.0.1."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx
from mixed_steps import NER, POS, SENTIMENT
from stock_models import tiny_model
from tiny import tokenizer

from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.serving.bodies import Guard
from nlp_mtl.serving.server import address, bound, make_server
from nlp_mtl.serving.settings import Settings
from nlp_mtl.tasks import Task

TAGS = Task("tags", "multi-label-classification", ("good", "person", "place"), "micro_f1")
RATING = Task("rating", "regression", ("rating",), "pearson")
SAME = Task("same", "text-classification", ("no", "yes"), "accuracy", pairs=True)
SERVED_TASKS = (replace(NER, decoder="iob2"), POS, SENTIMENT, TAGS, RATING, SAME)


def tiny_predictor() -> Predictor:
    return Predictor(tiny_model(tasks=SERVED_TASKS, max_length=64, window_overlap=16), tokenizer())


class Served(NamedTuple):
    url: str
    client: httpx.Client
    nlp: Predictor
    """What the server answers with; to be asked when it is idle."""
    settings: Settings
    guard: Guard

    def post(self, **body: Any) -> httpx.Response:
        content = json.dumps(body)  # lone surrogates as escapes
        return self.client.post("/predict", content=content, headers={"content-type": "application/json"})


@contextmanager
def serving(nlp: Any = None, **settings: Any) -> Iterator[Served]:
    """A running server, which has ended when the block is left."""
    nlp = nlp or tiny_predictor()
    chosen = Settings(**{"name": "tiny", **settings})
    ready = threading.Event()
    with bound("127.0.0.1", 0) as listener:
        url = address(listener, "127.0.0.1")
        server = make_server(nlp, chosen, ready.set)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(30)
            with httpx.Client(base_url=url, timeout=30) as client:
                guard = server.config.app
                assert isinstance(guard, Guard)
                yield Served(url, client, nlp, chosen, guard)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
