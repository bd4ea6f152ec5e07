"""SIGTERM and Ctrl-C are noted while a run trains, once, and left to others elsewhere."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from nlp_mtl.errors import RunStopped
from nlp_mtl.training.termination import noted_termination


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Of Ctrl-C, which a shell's background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_termination_is_noted_and_the_second_would_end_the_process() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with noted_termination() as termination:
        assert not termination.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.agreed()
        assert termination.agreed()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_first_ctrl_c_is_noted_and_told_and_the_second_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    def interrupted_twice() -> None:
        with noted_termination() as termination:
            os.kill(os.getpid(), signal.SIGINT)
            assert termination.agreed()
            assert "Ctrl-C again stops at once" in caplog.text
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_knows_whether_it_was_by_hand(number: int) -> None:
    def stopped() -> None:
        with noted_termination():
            os.kill(os.getpid(), number)
            raise RunStopped("stopped")

    with pytest.raises(RunStopped) as told:
        stopped()
    assert told.value.by_hand == (number == signal.SIGINT)


def test_of_several_processes_none_ends_by_the_ctrl_c_that_their_launcher_sends_on() -> None:
    with noted_termination() as termination:
        termination.is_together = True
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert termination.asked
        termination.is_together = False


def test_behind_it_everything_is_as_before_also_behind_an_error() -> None:
    def fail() -> None:
        with noted_termination():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_handler_of_a_program_around_it_stays() -> None:
    def theirs(*_: object) -> None:
        raise AssertionError

    signal.signal(signal.SIGTERM, theirs)
    try:
        with noted_termination():
            assert signal.getsignal(signal.SIGTERM) is theirs
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_in_another_thread_than_the_main_one_nothing_is_noted_and_nothing_fails() -> None:
    answers = []

    def run() -> None:
        with noted_termination() as termination:
            answers.append(termination.agreed())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [False]
