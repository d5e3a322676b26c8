"""Signals are taken between calls: none is lost, and a second one ends a call that hangs."""

import signal
import threading
import time

import pytest

from anabranch.jobs.interrupts import Interrupts


class Finalized:
    """Gets Ctrl-C while Python finalizes it, as a proxy of a Java object may."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_signal_in_finalizer_is_taken_later() -> None:
    with Interrupts() as interrupts:
        Finalized()
        with pytest.raises(KeyboardInterrupt):
            interrupts.take()
        interrupts.take()


def test_signal_during_call_waits_for_its_end() -> None:
    ended = []

    def call() -> None:
        with Interrupts():
            signal.raise_signal(signal.SIGTERM)
            ended.append(True)

    with pytest.raises(SystemExit, match="143"):
        call()
    assert ended


def test_second_signal_in_call_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.disable", lambda level: None)

    def call() -> None:
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second signal was not raised")

    with pytest.raises(KeyboardInterrupt):
        call()


def test_failing_block_keeps_its_own_error() -> None:
    def call() -> None:
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call()


def test_sleep_ends_when_a_signal_comes() -> None:
    main = threading.main_thread().ident
    assert main
    sender = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
    with Interrupts() as interrupts:
        sender.start()
        start_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupts.sleep(60)
        assert time.monotonic() - start_s < 50


def test_interrupts_end_gives_handlers_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
