"""The fake back-end: every model computes the same, and every session tells what it ran."""

import numpy as np

from anabranch.operators.backends.fake import FakeBackend
from anabranch.schemas.model import ModelSpec

MODEL = ModelSpec("m", "1", "", "", (), ())


def test_fake_session_records_its_batches() -> None:
    backend = FakeBackend(lambda inputs: {"y": inputs["x"] * 2, "sum": inputs["x"].sum()})
    session, other = backend.load(MODEL), backend.load(MODEL)
    for rows in (3, 1):
        total, doubled = session.run(["sum", "y"], {"x": np.ones((rows, 2))})
        assert (doubled.shape, total.shape, total.item()) == ((rows, 2), (), 2.0 * rows)
    assert (session.batches, other.batches) == ([3, 1], [])


def test_fake_session_outputs_are_contiguous() -> None:
    session = FakeBackend(lambda inputs: {"y": inputs["x"].T[::2]}).load(MODEL)
    [y] = session.run(["y"], {"x": np.ones((3, 4))})
    assert y.flags.c_contiguous
