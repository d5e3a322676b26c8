"""The demo ends at a signal, whatever Python does at that moment."""

import subprocess
import sys

import pytest

#: Gets SIGTERM while Python finalizes an object, where an exception is dropped.
PROGRAM = """
import signal, time
from anabranch.demo.run import _interruptible
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
try:
    with _interruptible():
        Finalized()
        time.sleep(60)
except KeyboardInterrupt:
    print("ended", signal.getitimer(signal.ITIMER_REAL)[0])
"""


@pytest.mark.slow
def test_demo_signal_in_finalizer_still_ends_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=50)
    assert done.stdout == "ended 0.0\n", done.stderr
