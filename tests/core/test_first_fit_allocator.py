"""FirstFitAllocator: extents never overlap, and freed ones join."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.operators.core.transport.first_fit_allocator import FirstFitAllocator

START, STOP, ALIGNMENT = 100, 100 + 64 * 64, 64


@given(st.data())
def test_allocator_extents_are_aligned_disjoint_and_inside(data: st.DataObject) -> None:
    extents = FirstFitAllocator(START, STOP, ALIGNMENT)
    taken: dict[int, int] = {}
    for size in data.draw(st.lists(st.integers(0, 1500), max_size=60)):
        gives_back: bool = data.draw(st.booleans())
        if taken and gives_back:
            offset = data.draw(st.sampled_from(sorted(taken)))
            extents.give_back(offset, taken.pop(offset))
        free_bytes = extents.free_bytes
        offset_or_none = extents.take(size)
        if offset_or_none is None:
            assert extents.free_bytes == free_bytes
            continue
        assert (offset_or_none - START) % ALIGNMENT == 0
        taken[offset_or_none] = size
        ends = START
        for offset, length in sorted(taken.items()):
            assert offset >= ends
            ends = offset + max(length, 1)
        assert ends <= STOP
    for offset, size in taken.items():
        extents.give_back(offset, size)
    assert extents.take(STOP - START) == START, "neighbours did not become one"


def test_allocator_refuses_only_without_a_large_enough_piece() -> None:
    extents = FirstFitAllocator(0, 256, ALIGNMENT)
    assert [extents.take(64) for _ in range(4)] == [0, 64, 128, 192]
    assert extents.take(1) is None
    extents.give_back(0, 64)
    extents.give_back(128, 64)
    assert extents.take(65) is None
    assert extents.take(1) == 0
    extents.give_back(64, 64)
    assert extents.take(128) == 64


def test_allocator_of_no_size_has_no_room() -> None:
    assert FirstFitAllocator(10, 10, ALIGNMENT).take(0) is None
    assert FirstFitAllocator(0, 63, ALIGNMENT).take(0) is None
