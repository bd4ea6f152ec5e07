"""Texts of many requests, answered in shared batches by one thread.

All that is kept here is touched by the event loop alone; the thread gets a list of texts and gives a list of answers.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from nlp_mtl.inference.predictor import Answer, Predictor
from nlp_mtl.inference.texts import sizes_of
from nlp_mtl.serving.logs import log_error

BATCH_TEXTS = 256
BATCH_CHARACTERS = 32_768
"""What is answered together, at most (a longer text is answered alone): nobody waits long for others' texts."""

DECAY = 0.9
"""Of what earlier batches say of how long texts take, with each batch."""


class BusyError(Exception):
    """More is waiting than may; ask again in ``seconds``."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class FailedError(Exception):
    """The model could not answer; the log says why."""


class Kind(NamedTuple):
    """What requests have in common whose texts share a batch; they may want other tasks."""

    all_scores: bool
    are_pairs: bool


@dataclass(eq=False)
class Job:
    """The texts of a request."""

    texts: Sequence[Any]
    text_pair: Sequence[Any] | None
    tasks: Sequence[str]
    all_scores: bool
    taken: int = 0
    left: int = 0
    answers: list[Answer] = field(default_factory=list)
    done: asyncio.Future[list[Answer]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        self.left = len(self.texts)
        self.answers = [{} for _ in self.texts]
        self.sizes = sizes_of(self.texts, self.text_pair)

    @property
    def kind(self) -> Kind:
        """Which jobs' texts share batches with its."""
        return Kind(self.all_scores, self.text_pair is not None)


Place = tuple[Job, int]
"""A text: which of a job's."""


class Batcher:
    """Collects the texts of requests, and answers them in batches, fairly: a text of each request in turn."""

    def __init__(
        self,
        nlp: Predictor,
        *,
        batch_wait: float,
        max_queue: int,
        max_queue_characters: int,
        on_batch: Callable[[int, float], object] = lambda texts, seconds: None,
    ) -> None:
        """
        Args:
            batch_wait: seconds that texts wait for others, at most, behind a batch: for as many requests of its kind as
                were there at its end, with those in it, whose clients may ask again. A client alone does not wait,
                nor does one who comes later.
            max_queue: how many texts may wait. A request that is larger is taken when nothing waits.
            max_queue_characters: how many characters they may have, in the same way.
            on_batch: told of each batch how many texts it had and how long they took.
        """
        self._nlp, self._wait, self._on_batch = nlp, batch_wait, on_batch
        self._max_texts, self._max_characters = max_queue, max_queue_characters
        self._jobs: dict[Kind, deque[Job]] = {}
        self._something, self._full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._loop_task: asyncio.Task[None] | None = None
        self._batch: Sequence[Place] = ()
        self._seconds, self._characters = 1e-4, 1.0  # a guess that the first batches overrule
        self._expected, self._last_end = 1, -math.inf
        self._last_kind = Kind(False, False)
        self.texts_waiting = 0
        self.characters_waiting = 0

    async def start(self) -> None:
        """Answer a text, so that the first request is as quick as others, and begin."""
        for are_pairs in {task.pairs for task in self._nlp.tasks}:
            text_pair = ["The first text."] if are_pairs else None
            call = lambda text_pair=text_pair: self._nlp(["The first text."], text_pair=text_pair)  # noqa: E731
            await asyncio.get_running_loop().run_in_executor(self._thread, call)
        self._loop_task = asyncio.create_task(self._run())
        self._loop_task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End when what is being answered is done. What waits is not answered."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    @property
    def runs(self) -> bool:
        """Whether texts are being answered."""
        return self._loop_task is not None and not self._loop_task.done()

    async def answer(
        self, texts: Sequence[Any], text_pair: Sequence[Any] | None, tasks: Sequence[str], all_scores: bool
    ) -> list[Answer]:
        """The answers for a request's texts. Cancelled, its texts that still wait are forgotten.

        Raises:
            BusyError: too much is waiting.
            FailedError: the model failed.
        """
        if not self.runs:
            raise FailedError("the server has stopped answering")
        job = Job(texts, text_pair, tasks, all_scores)
        count, characters = len(texts), sum(job.sizes)
        over = (
            self.texts_waiting + count > self._max_texts or self.characters_waiting + characters > self._max_characters
        )
        if self.texts_waiting and over:
            raise BusyError(f"{self.texts_waiting} texts wait already: try again", self.seconds_to_wait())
        self.texts_waiting += count
        self.characters_waiting += characters
        self._jobs.setdefault(job.kind, deque()).append(job)
        self._something.set()
        if self._is_full():
            self._full.set()
        try:
            return await job.done
        finally:
            self._forget(job)

    def seconds_to_wait(self) -> int:
        """How long what waits now takes, about; at least a second."""
        return min(60, max(1, math.ceil(self.characters_waiting * self._seconds / self._characters)))

    def _is_full(self) -> bool:
        """Whether a batch would gain nothing by waiting for more."""
        kind, jobs = next(((kind, jobs) for kind, jobs in self._jobs.items() if jobs), (self._last_kind, ()))
        are_many = self.texts_waiting >= BATCH_TEXTS or self.characters_waiting >= BATCH_CHARACTERS
        return kind != self._last_kind or len(jobs) >= self._expected or are_many

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Nothing is answered any more: because the server ends, or because of what was not thought of."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log_error("the server stops answering", error)
        for job in {*chain(*self._jobs.values()), *(job for job, _ in self._batch)}:
            if not job.done.done():
                job.done.set_exception(FailedError("the server has stopped answering"))

    def _forget(self, job: Job) -> None:
        """Take back what of a job still waits."""
        self.texts_waiting -= len(job.texts) - job.taken
        self.characters_waiting -= sum(job.sizes[job.taken :])
        job.taken = len(job.texts)
        if (waiting := self._jobs.get(job.kind)) and job in waiting:
            waiting.remove(job)

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            kind, batch = await self._next_batch()
            self._batch = batch
            if not batch:
                continue
            start = time.perf_counter()
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, kind, batch)
            seconds = time.perf_counter() - start
            characters = sum(job.sizes[place] for job, place in batch)
            self._seconds, self._characters = DECAY * self._seconds + seconds, DECAY * self._characters + characters
            # Those whose clients have gone do not ask again.
            here = {job for job, _ in batch if not job.done.done()} | {*self._jobs.get(kind, ())}
            self._expected, self._last_end, self._last_kind = len(here), time.monotonic(), kind
            self._on_batch(len(batch), seconds)
            for (job, place), one in zip(batch, found, strict=True):
                _deliver(job, place, one)
            self._batch = ()

    async def _next_batch(self) -> tuple[Kind, list[Place]]:
        """What is answered next: of the kind that has waited, after as much waiting for more as is allowed."""
        while True:
            kinds = [kind for kind, jobs in self._jobs.items() if jobs]
            if not kinds:
                self._something.clear()
                return Kind(False, False), []
            kind = kinds[0]
            spare = self._last_end + self._wait - time.monotonic()
            if self._is_full() or spare <= 0:
                break
            self._full.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._full.wait(), spare)
        jobs = self._jobs.pop(kind)
        batch: list[Place] = []
        room = BATCH_CHARACTERS
        while jobs and len(batch) < BATCH_TEXTS:
            size = jobs[0].sizes[jobs[0].taken]
            if batch and size > room:
                break
            job = jobs.popleft()
            batch.append((job, job.taken))
            job.taken += 1
            room -= size
            self.texts_waiting -= 1
            self.characters_waiting -= size
            if job.taken < len(job.texts):
                jobs.append(job)
        if jobs:
            self._jobs[kind] = jobs  # behind the other kinds
        return kind, batch

    def _answers(self, kind: Kind, batch: Sequence[Place]) -> list[Answer | BaseException]:
        """In the thread: an answer for each text, or why there is none."""
        try:
            return list(self._call(kind, batch))
        except BaseException as error:  # as a panic of the tokenizer's Rust is
            if len(batch) == 1:
                return [error]
            # Each alone, so that a text that the model cannot read takes no other with it.
            return [one for place in batch for one in self._answers(kind, [place])]

    def _call(self, kind: Kind, batch: Sequence[Place]) -> list[Answer]:
        wanted = {name for job, _ in batch for name in job.tasks}
        found = self._nlp(
            [job.texts[place] for job, place in batch],
            text_pair=[job.text_pair[place] for job, place in batch if job.text_pair] if kind.are_pairs else None,
            tasks=sorted(wanted),
            all_scores=kind.all_scores,
        )
        return [{name: one[name] for name in job.tasks} for (job, _), one in zip(batch, found, strict=True)]


def _deliver(job: Job, place: int, found: Answer | BaseException) -> None:
    if job.done.done():  # nobody waits for it any more, or another of its texts failed
        return
    if isinstance(found, BaseException):
        log_error("the model failed", found)
        job.done.set_exception(FailedError("the model failed on a text; the server's log says where"))
        return
    job.answers[place] = found
    job.left -= 1
    if not job.left:
        job.done.set_result(job.answers)
