import numpy as np
import pytest

from bench.workloads.workload import Workload


@pytest.fixture
def tiny_workload() -> Workload:
    """Two messages with room for an id, and what the model would answer."""
    messages = [b"head-@@@@@@@@@@@@-one", b"head-@@@@@@@@@@@@-two"]
    requests = [np.frombuffer(message, np.uint8) for message in messages]
    return Workload("tiny", requests, [*np.array([[0.5, 0.5], [0.25, 0.75]], np.float32)])
