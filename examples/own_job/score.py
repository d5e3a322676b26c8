"""Names the colours of a stream in a PyFlink job: `python -m examples.own_job.score [http://HOST:PORT]`."""

import sys
from pathlib import Path
from typing import Any

from pyflink.common import WatermarkStrategy
from pyflink.datastream.connectors.number_seq import NumberSequenceSource

from anabranch.flink import environment, infer

MODELS = Path(__file__).resolve().parents[1] / "quickstart" / "models"


def to_tensors(number: int) -> dict[str, Any]:
    """Return a row for each input of the model."""
    return {"pixels": [number % 256, 0, 255 - number % 256]}


def with_name(number: int, outputs: dict[str, Any]) -> tuple[int, str]:
    """Return an element of the resulting stream."""
    return number, outputs["name"].decode()


if __name__ == "__main__":
    env = environment(flink_url=sys.argv[1] if len(sys.argv) > 1 else None)
    numbers = env.from_source(NumberSequenceSource(0, 999), WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
    scored = infer(numbers, model="colours", repository=MODELS, inputs=to_tensors, outputs=with_name, uid="colours")
    scored.failures.print()
    scored.print()
    env.execute("own job")
