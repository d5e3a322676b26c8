"""Prints payments in JSON, or streams them through Kafka.

python -m examples.payments.events --count 1000 > payments.jsonl
python -m examples.payments.events --stream
"""

import argparse
import json
import random
from collections.abc import Iterator
from typing import Any

USERS = 20


def payments(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield payments of some users; each hundredth has no amount."""
    draw = random.Random(seed)
    limits = [draw.choice((500, 1000, 5000)) for _ in range(USERS)]
    for number in range(count):
        user = draw.randrange(USERS)
        payment = {
            "id": f"payment-{number}",
            "amount": round(draw.lognormvariate(4, 1.5), 2),
            "currency": "EUR",
            "user": {"id": f"user-{user}", "limit": limits[user], "is_new": user % 5 == 0},
            "card": {"country": draw.choice(("DE", "DE", "DE", "FR", "IT", "PL"))},
        }
        if number % 100 == 99:
            del payment["amount"]
        yield payment


def stream(server: str, count: int, topic: str = "payments") -> int:
    """Send payments, print each that comes back as fraud, and return the number that came back."""
    from kafka import KafkaConsumer, KafkaProducer  # noqa: PLC0415 - not needed to print

    consumer = KafkaConsumer(
        f"{topic}-scored", bootstrap_servers=server, auto_offset_reset="earliest", consumer_timeout_ms=60_000
    )
    producer = KafkaProducer(bootstrap_servers=server)
    for payment in payments(count):
        producer.send(topic, key=payment["user"]["id"].encode(), value=json.dumps(payment).encode())
    producer.flush()
    scored, complete = 0, sum("amount" in payment for payment in payments(count))
    for record in consumer:
        scored += 1
        payment = json.loads(record.value)
        if payment["fraud"]["label"] == "fraud":
            print(
                f"{payment['id']}: {payment['amount']} of {payment['user']['limit']}, {payment['fraud']['score']:.3f}"
            )
        if scored == complete:
            break
    print(f"{scored} of {count} payments were scored")
    return scored


def main() -> None:
    """Print or stream payments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", default="127.0.0.1:9092", help="a broker of the job")
    parser.add_argument("--count", type=int, default=1000, help="number of payments")
    parser.add_argument("--stream", action="store_true", help="send them, and read the scored ones")
    arguments = parser.parse_args()
    if arguments.stream:
        stream(arguments.server, arguments.count)
    else:
        for payment in payments(arguments.count):
            print(json.dumps(payment))


if __name__ == "__main__":
    main()
