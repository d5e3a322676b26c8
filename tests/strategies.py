"""Hypothesis strategies for tensors and requests of the protocol."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from anabranch.schemas.messages import Encoding, InferRequest
from anabranch.schemas.tensors import BYTES, DATATYPES, FLOATS, NUMPY_DTYPES, Tensor, raw_from_elements

#: Text that protobuf and JSON can both carry.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
parameters = st.dictionaries(
    texts.filter(bool),
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)


@st.composite
def tensors(draw: st.DrawFn, *, encoding: Encoding = Encoding.PROTOBUF) -> Tensor:
    """A small tensor of any datatype; in JSON without NaN and non-text bytes."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(shapes)
    count = math.prod(shape)
    name = draw(texts)
    if datatype == BYTES:
        kinds: st.SearchStrategy[Any] = texts if encoding is Encoding.JSON else st.binary(max_size=9)
        elements = draw(st.lists(kinds, min_size=count, max_size=count))
        return Tensor(name, datatype, shape, raw_from_elements(elements))
    dtype = NUMPY_DTYPES[datatype]
    if datatype in FLOATS:
        floats: dict[str, Any] = {"width": dtype.itemsize * 8, "allow_nan": False, "allow_infinity": False}
        values: list[Any] = draw(st.lists(st.floats(**floats), min_size=count, max_size=count))
    elif datatype == "BOOL":
        values = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    else:
        limits: Any = np.iinfo(dtype.str)
        values = draw(st.lists(st.integers(int(limits.min), int(limits.max)), min_size=count, max_size=count))
    return Tensor(name, datatype, shape, np.array(values, dtype).tobytes())


@st.composite
def requests(draw: st.DrawFn, encoding: Encoding = Encoding.PROTOBUF) -> InferRequest:
    """A request that the codecs can carry; it may be invalid for every model."""
    return InferRequest(
        model_name=draw(texts),
        inputs=tuple(draw(st.lists(tensors(encoding=encoding), min_size=1, max_size=3))),
        id=draw(texts),
        model_version=draw(texts),
        parameters=draw(parameters),
        outputs=tuple(draw(st.lists(texts, max_size=2))),
        encoding=encoding,
    )
