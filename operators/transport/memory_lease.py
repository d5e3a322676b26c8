"""Views of memory that is somebody else's again once nobody looks at it any more."""

import weakref
from collections.abc import Callable
from mmap import mmap

import numpy as np


def lend(
    memory: mmap | memoryview, offset: int, size_bytes: int, give_back: Callable[..., None], *args: object
) -> memoryview:
    """A read-only view of a part of the memory; `give_back(*args)` is called when the last view of it is dropped."""
    lent = np.frombuffer(memory, np.uint8, size_bytes, offset)
    lent.flags.writeable = False
    # Every view of it, numpy's too, holds this array.
    weakref.finalize(lent, give_back, *args).atexit = False
    return lent.data
