"""Views that return their memory with the last reference."""

import weakref
from collections.abc import Callable
from mmap import mmap

import numpy as np


def lend(
    memory: mmap | memoryview, offset: int, size_bytes: int, give_back: Callable[..., None], *args: object
) -> memoryview:
    """Return a read-only view; the last reference calls `give_back(*args)`."""
    lent = np.frombuffer(memory, np.uint8, size_bytes, offset)
    lent.flags.writeable = False
    weakref.finalize(lent, give_back, *args).atexit = False
    return lent.data
