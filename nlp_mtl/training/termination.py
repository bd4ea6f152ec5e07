"""SIGTERM, which a machine that is about to be taken away sends: noted, so that the run can save before it ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, distributed


class Termination:
    """Whether this run was asked to end. All processes get the same answer in the same step.

    Of several processes one may be asked before the others. So each adds what it knows to a sum that is on its way
    while the next step is computed, and all read it there: nobody waits, and the answer is a step old.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether this process was."""
        self._together = distributed.is_initialized() and distributed.get_world_size() > 1
        # Of its own, on CPU: reading the answer on a GPU would wait for the step.
        self._group = distributed.new_group(backend="gloo") if self._together else None
        self._sum: Tensor | None = None
        self._work: distributed.Work | None = None

    def agreed(self) -> bool:
        """Whether to end after this step. Every process calls it once a step."""
        if not self._together:
            return self.asked
        answer = False
        if self._work is not None and self._sum is not None:
            self._work.wait()
            answer = bool(self._sum.item())
        self._sum = torch.tensor(int(self.asked))
        self._work = distributed.all_reduce(self._sum, group=self._group, async_op=True)
        return answer

    def close(self) -> None:
        """Wait for what is still on its way."""
        if self._work is not None:
            self._work.wait()
            self._work = None


def ignore_termination(_: int) -> None:
    """For loader workers: SIGTERM often comes to all processes of a job, and these end with the one they serve."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def noted_termination() -> Iterator[Termination]:
    """Within it the first SIGTERM is noted; a second one ends the process at once, as it would have.

    Where Python cannot take signals (outside its main thread) or another handler is set, nothing is changed.
    """
    termination = Termination()
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield termination
        return

    def note(number: int, frame: FrameType | None) -> None:
        termination.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)
    try:
        yield termination
        termination.close()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
