"""Views that return their memory to its owner when the last reference is dropped."""

import weakref
from collections.abc import Callable
from mmap import mmap

import numpy as np


def lend(
    memory: mmap | memoryview, offset: int, size_bytes: int, give_back: Callable[..., None], *args: object
) -> memoryview:
    """Returns a read-only view; `give_back(*args)` is called when the last view of it is dropped."""
    lent = np.frombuffer(memory, np.uint8, size_bytes, offset)
    lent.flags.writeable = False
    # Every view, numpy's too, holds this array.
    weakref.finalize(lent, give_back, *args).atexit = False
    return lent.data
