"""Requests share batches, fairly, within bounds."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.serving.batching import BATCH_CHARACTERS, BATCH_TEXTS, Batcher, BusyError, FailedError


class Model:
    """Answers a task's name and the text; keeps what it was asked, and can be held up."""

    tasks = ()

    def __init__(self, fails: Callable[[Any], bool] = lambda text: False) -> None:
        self.batches: list[list[Any]] = []
        self.options: list[dict[str, Any]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.fails = fails
        self.error: type[BaseException] = ValueError

    def __call__(self, texts: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
        self.batches.append([*texts])
        self.options.append(options)
        assert self.go_on.wait(10)
        if any(map(self.fails, texts)):
            raise self.error(f"cannot read {texts}")
        return [{name: f"{name}: {text}" for name in options["tasks"]} for text in texts]


DEFAULTS: dict[str, Any] = {"batch_wait": 0.02, "max_queue": 2048, "max_queue_characters": 4_000_000}


def run(model: Model, test: Callable[[Batcher], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def whole() -> Any:
        batcher = Batcher(cast(Predictor, model), **DEFAULTS | options)
        await batcher.start()
        try:
            return await test(batcher)
        finally:
            model.go_on.set()
            await batcher.stop()
            assert not batcher.runs
            assert (batcher.texts_waiting, batcher.characters_waiting) == (0, 0)

    return asyncio.run(whole())


async def until(condition: Callable[[], object]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 10
        await asyncio.sleep(0.001)


def asked(batcher: Batcher, texts: Sequence[Any], *tasks: str, **options: Any) -> "asyncio.Task[Any]":
    given = {"text_pair": None, "all_scores": False, **options}
    return asyncio.create_task(batcher.answer(texts, given["text_pair"], tasks or ("ner",), given["all_scores"]))


def assert_nobody_waits(model: Model, test: Callable[[Batcher], Coroutine[Any, Any, Any]]) -> None:
    start = time.monotonic()
    run(model, test, batch_wait=100)
    assert time.monotonic() - start < 60


def test_requests_that_arrive_together_share_a_batch_and_each_gets_its_tasks() -> None:
    model = Model()

    async def test(batcher: Batcher) -> Any:
        return await asyncio.gather(asked(batcher, ["a"], "ner"), asked(batcher, ["b", "c"], "pos", "topic"))

    first, second = run(model, test, batch_wait=0.05)
    assert first == [{"ner": "ner: a"}]
    assert second == [{"pos": "pos: b", "topic": "topic: b"}, {"pos": "pos: c", "topic": "topic: c"}]
    (batch,), (options,) = model.batches, model.options
    assert sorted(batch) == ["a", "b", "c"]
    assert options["tasks"] == ["ner", "pos", "topic"]


def test_texts_wait_for_as_many_as_there_were_and_no_longer_than_they_may() -> None:
    model = Model()

    async def test(batcher: Batcher) -> list[float]:
        await asyncio.gather(asked(batcher, ["a"]), asked(batcher, ["b"]))
        taken = []
        for _ in range(2):
            start = time.monotonic()
            await asked(batcher, ["c"])
            taken.append(time.monotonic() - start)
        return taken

    first, second = run(model, test, batch_wait=3)
    assert first > 2  # for a second text
    assert second < 2  # which nobody expects any more
    assert [len(batch) for batch in model.batches] == [2, 1, 1]


def test_a_client_alone_does_not_wait_whatever_it_asked_before() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        for count in (3, 1, 2 * BATCH_TEXTS, 1):
            await asked(batcher, ["x"] * count)

    assert_nobody_waits(model, test)


def test_nobody_waits_for_a_client_that_has_gone_or_for_requests_that_share_no_batch() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        model.go_on.clear()
        gone, stays = asked(batcher, ["gone"]), asked(batcher, ["stays"])
        await until(lambda: model.batches)
        gone.cancel()
        await asyncio.wait([gone])
        model.go_on.set()
        await stays
        await asked(batcher, ["again"])
        await asyncio.gather(asked(batcher, ["a"]), asked(batcher, ["b"]))
        await asked(batcher, ["c"], all_scores=True)

    assert_nobody_waits(model, test)


def test_who_comes_when_those_of_the_last_batch_have_gone_does_not_wait_for_them() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        await asyncio.gather(*(asked(batcher, ["x"]) for _ in range(3)))
        batcher._last_end -= 100
        await asked(batcher, ["y"])

    assert_nobody_waits(model, test)


def test_what_arrives_while_others_are_answered_is_answered_together() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        model.go_on.clear()
        requests = [asked(batcher, ["first"])]
        await until(lambda: model.batches)
        for number in range(5):
            requests.append(asked(batcher, [str(number)]))
            await asyncio.sleep(0)
        model.go_on.set()
        await asyncio.gather(*requests)

    run(model, test, batch_wait=0)
    assert model.batches == [["first"], ["0", "1", "2", "3", "4"]]


def test_a_request_of_many_texts_does_not_hold_up_one_of_few() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        large = asked(batcher, [str(number) for number in range(3 * BATCH_TEXTS)])
        await asyncio.sleep(0)
        small = asked(batcher, ["small"])
        await asyncio.gather(large, small)
        assert [one["ner"] for one in large.result()] == [f"ner: {number}" for number in range(3 * BATCH_TEXTS)]

    run(model, test, batch_wait=0)
    assert "small" in model.batches[0] + model.batches[1]
    assert [len(batch) for batch in model.batches] == [BATCH_TEXTS] * 3 + [1]


def test_a_batch_holds_no_more_characters_than_it_may_but_for_a_text_alone() -> None:
    model = Model()
    texts = ["x" * (2 * BATCH_CHARACTERS), *["y" * (BATCH_CHARACTERS // 2)] * 3]

    async def test(batcher: Batcher) -> None:
        await asked(batcher, texts)

    run(model, test)
    assert [len(batch) for batch in model.batches] == [1, 2, 1]


def test_pairs_and_all_scores_have_batches_of_their_own() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        await asyncio.gather(
            asked(batcher, ["a"]),
            asked(batcher, ["b"], all_scores=True),
            asked(batcher, ["c", "d"], text_pair=["C", "D"]),
            asked(batcher, ["e"]),
            asked(batcher, ["f"], text_pair=["F"]),
        )

    run(model, test, batch_wait=0.05)
    given = [
        (sorted(batch), one["text_pair"], one["all_scores"])
        for batch, one in zip(model.batches, model.options, strict=True)
    ]
    assert given == [(["a", "e"], None, False), (["b"], None, True), (["c", "d", "f"], ["C", "F", "D"], False)]


@pytest.mark.parametrize("texts", [["x"] * 9, ["x" * 90]])
def test_what_is_too_much_to_wait_is_refused_with_the_seconds_that_others_take(texts: list[str]) -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        model.go_on.clear()
        first = asked(batcher, ["first"])
        await until(lambda: model.batches)
        second = asked(batcher, ["second"])
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="1 texts wait") as error:
            await asked(batcher, texts)
        assert error.value.seconds == 1
        model.go_on.set()
        await asyncio.gather(first, second)
        assert await asked(batcher, texts)  # nothing waits any more

    run(model, test, batch_wait=0, max_queue=9, max_queue_characters=90)


def test_a_request_that_is_given_up_is_not_answered_and_leaves_room() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        model.go_on.clear()
        first = asked(batcher, ["first"])
        await until(lambda: model.batches)
        gone = asked(batcher, ["gone"] * 9)
        await until(lambda: batcher.texts_waiting == 9)
        gone.cancel()
        await asyncio.wait([gone])
        assert batcher.texts_waiting == 0
        last = asked(batcher, ["last"] * 9)
        model.go_on.set()
        await asyncio.gather(first, last)

    run(model, test, batch_wait=0, max_queue=9)
    assert model.batches == [["first"], ["last"] * 9]


def test_a_request_that_is_given_up_while_it_is_answered_harms_nobody() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        model.go_on.clear()
        gone, stays = asked(batcher, ["gone"]), asked(batcher, ["stays"])
        await until(lambda: model.batches)
        gone.cancel()
        await asyncio.wait([gone])
        model.go_on.set()
        assert await stays == [{"ner": "ner: stays"}]

    run(model, test, batch_wait=0.01)


def test_a_text_that_the_model_fails_on_takes_no_other_with_it_and_no_text_goes_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Model(fails=lambda text: text == "secret")

    async def test(batcher: Batcher) -> None:
        good, bad, both = asked(batcher, ["good"]), asked(batcher, ["secret"]), asked(batcher, ["fine", "secret"])
        assert await good == [{"ner": "ner: good"}]
        for one in (bad, both):
            with pytest.raises(FailedError):
                await one
        assert await asked(batcher, ["next"]) == [{"ner": "ner: next"}]

    with caplog.at_level(logging.ERROR):
        run(model, test, batch_wait=0.01)
    assert "ValueError" in caplog.text
    assert "in __call__" in caplog.text  # where it happened
    assert "secret" not in caplog.text


class Panic(BaseException):
    """As a panic of Rust arrives in Python."""


def test_a_panic_of_the_tokenizer_is_an_error_of_its_text_alone() -> None:
    model = Model()
    model.error = Panic
    model.fails = lambda text: text == "bad"

    async def test(batcher: Batcher) -> None:
        with pytest.raises(FailedError):
            await asked(batcher, ["bad"])
        assert await asked(batcher, ["good"]) == [{"ner": "ner: good"}]

    run(model, test)


def test_what_ends_the_answering_is_told_to_those_who_wait_and_to_those_who_come() -> None:
    model = Model()

    def fails(texts: int, seconds: float) -> None:
        raise RuntimeError("secret")

    async def test(batcher: Batcher) -> None:
        model.go_on.clear()
        first = asked(batcher, ["first"])
        await until(lambda: model.batches)
        second = asked(batcher, ["second"])
        await asyncio.sleep(0)
        model.go_on.set()
        for one in (first, second):  # what is being answered, and what waits
            with pytest.raises(FailedError, match="has stopped"):
                await one
        assert not batcher.runs
        with pytest.raises(FailedError, match="has stopped"):
            await asked(batcher, ["third"])

    run(model, test, batch_wait=0, on_batch=fails)


def test_texts_go_as_soon_as_all_that_are_expected_are_there() -> None:
    model = Model()

    async def test(batcher: Batcher) -> None:
        await asyncio.gather(asked(batcher, ["x"]), asked(batcher, ["x"] * 2))
        first = asked(batcher, ["x"])
        await until(lambda: batcher.texts_waiting)  # it waits for the other
        await asked(batcher, ["y"] * 2)
        assert (await first) == [{"ner": "ner: x"}]

    assert_nobody_waits(model, test)
    assert [len(batch) for batch in model.batches] == [3, 3]
