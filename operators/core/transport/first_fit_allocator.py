"""Allocates bytes of an arena by first fit, which reuses the same pages."""

from bisect import bisect_left


class FirstFitAllocator:
    """The free extents [start, stop) of an arena, with neighbours joined."""

    def __init__(self, start: int, stop: int, alignment_bytes: int) -> None:
        self._alignment_bytes = alignment_bytes
        stop -= (stop - start) % alignment_bytes
        self._offsets = [start] if stop > start else []
        self._sizes = [stop - start] if stop > start else []

    @property
    def free_bytes(self) -> int:
        """Free bytes, perhaps in pieces."""
        return sum(self._sizes)

    def take(self, size_bytes: int) -> int | None:
        """Allocate bytes and return their offset; None without room."""
        wanted = self._aligned(size_bytes)
        for index, size in enumerate(self._sizes):
            if size >= wanted:
                offset = self._offsets[index]
                if size == wanted:
                    del self._offsets[index], self._sizes[index]
                else:
                    self._offsets[index] += wanted
                    self._sizes[index] -= wanted
                return offset
        return None

    def give_back(self, offset: int, size_bytes: int) -> None:
        """Free an allocation of this size."""
        size = self._aligned(size_bytes)
        index = bisect_left(self._offsets, offset)
        if index < len(self._offsets) and offset + size == self._offsets[index]:
            size += self._sizes[index]
            del self._offsets[index], self._sizes[index]
        if index and self._offsets[index - 1] + self._sizes[index - 1] == offset:
            self._sizes[index - 1] += size
        else:
            self._offsets.insert(index, offset)
            self._sizes.insert(index, size)

    def _aligned(self, size_bytes: int) -> int:
        return max(size_bytes + -size_bytes % self._alignment_bytes, self._alignment_bytes)
