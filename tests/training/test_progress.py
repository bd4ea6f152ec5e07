import logging

import pytest

from nlp_mtl.training import progress
from nlp_mtl.training.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its one number is changed."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_speed_counts_steps_and_the_wait_for_them_but_not_what_lies_between(clock: list[float]) -> None:
    shown = Progress(0, 10, shown=False, on_terminal=False)
    for _ in range(4):
        clock[0] += 2
        shown.step(600)
        clock[0] += 50  # an evaluation
        shown.start()
    assert shown.speed == 300


def test_without_a_terminal_a_line_comes_every_half_minute_with_losses_speed_and_time_left(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    shown = Progress(20, 100, shown=True, on_terminal=False)
    with caplog.at_level(logging.INFO):
        for step in range(4):
            clock[0] += 15
            shown.step(3000)
            shown.tell({"ner": 0.5, "pos": 1 / (step + 1)})
    assert caplog.messages == [
        "Step 22 of 100: loss ner 0.500 pos 0.500; 200 tokens a second, 20 min left",
        "Step 24 of 100: loss ner 0.500 pos 0.250; 200 tokens a second, 19 min left",
    ]


@pytest.mark.parametrize(("shown", "on_terminal"), [(False, False), (False, True), (True, True)])
def test_other_processes_and_terminals_get_no_lines(
    shown: bool, on_terminal: bool, clock: list[float], caplog: pytest.LogCaptureFixture, capsys
) -> None:
    one = Progress(0, 10, shown=shown, on_terminal=on_terminal)
    with caplog.at_level(logging.INFO):
        clock[0] += 100
        one.step(5)
        one.tell({"ner": 0.125})
    one.close()
    assert caplog.messages == []
    assert ("ner 0.125, 0 tokens/s" in capsys.readouterr().err) is (shown and on_terminal)


@pytest.mark.parametrize(
    ("seconds", "told"), [(3.4, "3 s"), (59, "59 s"), (61, "1 min"), (3540, "59 min"), (11100, "3 h 5 min")]
)
def test_durations_are_told_for_people(seconds: float, told: str) -> None:
    assert duration(seconds) == told
