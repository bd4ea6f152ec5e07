"""What a run shows while it trains: a live bar on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Mapping

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
"""Without a terminal: often enough to see that a run lives, seldom enough for a log of days."""


class Progress:
    """Steps done, losses, useful tokens a second (padding not counted, over all processes), and the time left."""

    def __init__(self, first: int, num_steps: int, *, shown: bool, on_terminal: bool) -> None:
        """
        Args:
            first: steps done before.
            shown: whether this process shows anything.
            on_terminal: a bar; else lines.
        """
        self.done, self.num_steps = first, num_steps
        self._lines = shown and not on_terminal
        self._bar = tqdm(
            total=num_steps, initial=first, desc="Training", unit="step", disable=not (shown and on_terminal)
        )
        self._tokens, self._steps, self._seconds = 0, 0, 0.0
        self._told = self._started = time.perf_counter()

    def start(self) -> None:
        """A step begins: what was done since the last one ended (an evaluation, a checkpoint) is not training."""
        self._started = time.perf_counter()

    def step(self, tokens: int) -> None:
        """A step of so many tokens is done."""
        self._seconds += time.perf_counter() - self._started
        self._started = time.perf_counter()
        self._tokens += tokens
        self._steps += 1
        self.done += 1
        self._bar.update()

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self._tokens / max(self._seconds, 1e-9)

    def tell(self, losses: Mapping[str, float]) -> None:
        """Show the losses of the tasks."""
        shown = " ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
        self._bar.set_postfix_str(f"{shown}, {self.speed:,.0f} tokens/s")
        now = time.perf_counter()
        if self._lines and now - self._told >= SECONDS_BETWEEN_LINES and self.done < self.num_steps:
            self._told = now
            left = self._seconds / self._steps * (self.num_steps - self.done)
            logger.info(
                "Step %d of %d: loss %s; %.0f tokens a second, %s left",
                self.done, self.num_steps, shown, self.speed, duration(left),
            )  # fmt: skip

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
