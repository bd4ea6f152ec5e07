"""SIGTERM, which a machine that is about to be taken away sends, and Ctrl-C: noted, so that a run can save before it
ends."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed

from nlp_mtl.errors import RunStopped

logger = logging.getLogger(__name__)


class Termination:
    """Whether this run was asked to end. All processes get the same answer in the same step.

    Of several processes one may be asked before the others. So each adds what it knows to a sum that is on its way
    while the next step is computed, and all read it there: nobody waits, and the answer is a step old.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether this process was."""
        self.by_hand = False
        """Whether it was by Ctrl-C."""
        self.is_together = distributed.is_initialized() and distributed.get_world_size() > 1
        # Of its own, on CPU: reading the answer on a GPU would wait for the step.
        self._group = distributed.new_group(backend="gloo") if self.is_together else None
        self._on_its_way: tuple[Tensor, distributed.Work] | None = None

    def agreed(self) -> bool:
        """Whether to end after this step. Every process calls it once a step."""
        if not self.is_together:
            return self.asked
        answer = self.close()
        asked = torch.tensor(int(self.asked))
        self._on_its_way = asked, distributed.all_reduce(asked, group=self._group, async_op=True)
        return answer

    def close(self) -> bool:
        """Wait for what is still on its way; whether it says that a process was asked."""
        if self._on_its_way is None:
            return False
        asked, work = self._on_its_way
        self._on_its_way = None
        work.wait()
        return bool(asked.item())


def ignore_termination(_: int) -> None:
    """For loader workers: signals often come to all processes of a job, and these end with the one they serve."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def noted_termination() -> Iterator[Termination]:
    """Within it the first SIGTERM or Ctrl-C is noted; a second one of its kind ends the process at once, as it would
    have.

    Of several processes none ends by a second Ctrl-C: their launcher sends it on to those that have had it.
    Where Python cannot take signals (outside its main thread) or another handler is set, nothing is changed.
    """
    termination = Termination()
    in_main_thread = threading.current_thread() is threading.main_thread()
    usual: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = [number for number, handler in usual.items() if in_main_thread and signal.getsignal(number) is handler]

    def note(number: int, frame: FrameType | None) -> None:
        termination.asked = True
        termination.by_hand = number == signal.SIGINT
        if termination.by_hand:
            logger.warning("Stopping after this step, which is saved first; Ctrl-C again stops at once")
        is_sent_on = termination.by_hand and termination.is_together
        signal.signal(number, signal.SIG_IGN if is_sent_on else usual[number])

    for number in ours:
        signal.signal(number, note)
    try:
        yield termination
        termination.close()
    except RunStopped as error:
        error.by_hand = termination.by_hand
        raise
    finally:
        for number in ours:
            signal.signal(number, usual[number])
