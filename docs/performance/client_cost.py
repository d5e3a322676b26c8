"""Measures what a client costs while others ask, too.

One client asks a fake job 20 times a second. The answers of 0, 9 or 49 others, 20 a second each, go to the
partitions that they would have drawn. `python docs/performance/client_cost.py` prints a table.
"""

import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
from kafka import KafkaProducer

from anabranch import Client
from anabranch.schemas.messages import Encoding, InferResponse
from anabranch.schemas.tensors import Tensor
from anabranch.schemas.wire import codec
from anabranch.stack.kafka.broker import KafkaBroker
from anabranch.stack.kafka.topics import Topic
from anabranch.testing import FakeJob

RATE_PER_S = 20
SECONDS = 15.0
ROW = np.zeros((1, 784), np.float32)


def answer_others(servers: str, topic: str, partitions: int, others: int, stop: threading.Event) -> None:
    """Write the answers of other clients at their rate."""
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=0)
    drawn = [random.Random(number).randrange(partitions) for number in range(others)]  # noqa: S311
    value = codec.encode_response(InferResponse("m", "1", "x" * 20, (Tensor.from_array("y", ROW),)), Encoding.PROTOBUF)
    start_s, sent = time.monotonic(), 0
    while not stop.is_set():
        due = int((time.monotonic() - start_s) * RATE_PER_S * others)
        for number in range(sent, due):
            producer.send(topic, value, key=b"%020d" % number, partition=drawn[number % others])
        sent = due
        time.sleep(0.01)
    producer.close(timeout=5)


def measure(servers: str, requests: str, responses: str) -> tuple[float, float]:
    """Return the milliseconds of processor time and the median latency of a request."""
    latencies = []
    with Client(servers, requests_topic=requests, responses_topic=responses) as client:
        client.infer("m", ROW)
        before_s, start_s = time.process_time(), time.monotonic()
        for number in range(int(SECONDS * RATE_PER_S)):
            time.sleep(max(0.0, start_s + number / RATE_PER_S - time.monotonic()))
            latencies.append(client.infer("m", ROW).latency_ms)
        spent_s = time.process_time() - before_s
    return spent_s * 1000 / len(latencies), float(np.median(latencies))


def observe(servers: str, requests: str, responses: str) -> None:
    """Measure in a process of its own."""
    print(*measure(servers, requests, responses))


def main() -> None:
    """Print a row for each number of clients and partitions."""
    import subprocess  # noqa: PLC0415 - only here

    print("| partitions of the answers | clients | processor ms per request | median latency, ms |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, KafkaBroker(Path(folder)) as broker:
        servers = broker.bootstrap_servers
        for partitions in (1, 32):
            for clients in (1, 10, 50):
                requests, responses = f"requests-{uuid4().hex}", f"responses-{uuid4().hex}"
                broker.create_topics(Topic(requests, 4), Topic(responses, partitions))
                stop = threading.Event()
                with FakeJob({"m": lambda inputs: {"y": next(iter(inputs.values()))}}) as job:
                    job.listen(servers, requests_topic=requests, responses_topic=responses)
                    arguments = (servers, responses, partitions, clients - 1, stop)
                    others = threading.Thread(target=answer_others, args=arguments)
                    others.start()
                    command = [sys.executable, __file__, servers, requests, responses]
                    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                    stop.set()
                    others.join()
                print(f"| {partitions} | {clients} | {float(said[0]):.2f} | {float(said[1]):.1f} |", flush=True)


if __name__ == "__main__":
    observe(*sys.argv[1:]) if sys.argv[1:] else main()
