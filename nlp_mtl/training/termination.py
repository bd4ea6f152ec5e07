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
        self._on_its_way: tuple[Tensor, distributed.Work] | None = None

    def agreed(self) -> bool:
        """Whether to end after this step. Every process calls it once a step."""
        if not self._together:
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
    """For loader workers: SIGTERM often comes to all processes of a job, and these end with the one they serve."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def noted_termination() -> Iterator[Termination]:
    """Within it the first SIGTERM is noted; a second one ends the process at once, as it would have.

    Where Python cannot take signals (outside its main thread) or another handler is set, nothing is changed.
    """
    termination = Termination()
    in_main_thread = threading.current_thread() is threading.main_thread()
    is_ours = in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def note(number: int, frame: FrameType | None) -> None:
        termination.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if is_ours:
        signal.signal(signal.SIGTERM, note)
    try:
        yield termination
        termination.close()
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
