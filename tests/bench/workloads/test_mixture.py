from collections import Counter

import numpy as np

from anabranch.schemas.messages import InferRequest
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from bench.workloads.mixture import SHARES, mixture_of
from bench.workloads.workload import PLACEHOLDER, Workload


def workload(name: str, values: int) -> Workload:
    requests, answers = [], []
    for number in range(3):
        row = np.full((1, values), number, np.float32)
        request = InferRequest(name, (Tensor.from_array("x", row),), id=PLACEHOLDER)
        requests.append(np.frombuffer(codec.encode_request(request), np.uint8))
        answers.append(row[0])
    return Workload(name, requests, answers)


def test_mixture_has_each_workload_in_all_priorities() -> None:
    mixture = mixture_of({"a": 20, "long name": 30}, [workload("a", 2), workload("long name", 5)])
    seen: Counter[tuple[str, int]] = Counter()
    for number in range(50):
        request = codec.decode_request(mixture.workload.message(number))
        assert isinstance(request, InferRequest)
        priority = mixture.priorities[number]
        assert request.parameters == {"priority": priority}
        assert request.id == f"{number:012d}"
        assert request.model_name == mixture.workloads[mixture.parts[number]].name
        assert np.array_equal(request.inputs[0].to_array()[0], mixture.workload.answer(number))
        seen[request.model_name, int(priority)] += 1
    assert seen == {
        **{("a", priority): 2 * share for priority, share in SHARES.items()},
        **{("long name", priority): 3 * share for priority, share in SHARES.items()},
    }
