"""SIGTERM is noted while a run trains, once, and left to others elsewhere."""

import os
import signal
import threading

import pytest

from nlp_mtl.training.termination import noted_termination


def test_the_first_termination_is_noted_and_the_second_would_end_the_process() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with noted_termination() as termination:
        assert not termination.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.agreed()
        assert termination.agreed()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
