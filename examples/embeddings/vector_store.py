"""Stores embedded notes in sqlite-vec, and finds the nearest ones.

python -m examples.embeddings.vector_store notes.db            stores notes as they come
python -m examples.embeddings.vector_store notes.db QUESTION   prints the nearest notes

Needs `pip install apsw sqlite-vec`. A note has an `id`, so one that comes twice is stored once.
"""

import argparse
import json
from collections.abc import Iterable

import apsw
import numpy as np
import numpy.typing as npt
import sqlite_vec

from anabranch import Client

TOPIC = "notes-embedded"


class VectorStore:
    """Notes by id, with their embeddings.

    Args:
        path: Database, made if it is missing.
        size: Length of an embedding.
    """

    def __init__(self, path: str, size: int = 384) -> None:
        self._database = apsw.Connection(path)
        self._database.enable_load_extension(True)
        self._database.load_extension(sqlite_vec.loadable_path())
        self._database.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS notes USING vec0("
            f"id TEXT PRIMARY KEY, embedding FLOAT[{size}] distance_metric=cosine, +text TEXT)"
        )

    def put(self, events: Iterable[bytes]) -> None:
        """Store embedded notes, each in place of an earlier one of its id."""
        notes = [json.loads(event) for event in events]
        with self._database:
            for note in notes:
                self._database.execute("DELETE FROM notes WHERE id = ?", (note["id"],))
                vector = np.array(note["embedding"], np.float32).tobytes()
                self._database.execute(
                    "INSERT INTO notes (id, embedding, text) VALUES (?, ?, ?)", (note["id"], vector, note["text"])
                )

    def nearest(self, vector: npt.NDArray[np.float32], count: int = 3) -> list[tuple[str, str, float]]:
        """Return id, text and cosine distance of the nearest notes."""
        rows = self._database.execute(
            "SELECT id, text, distance FROM notes WHERE embedding MATCH ? AND k = ? ORDER BY distance",
            (vector.tobytes(), count),
        )
        return [(str(name), str(text), float(str(distance))) for name, text, distance in rows]


def follow(store: VectorStore, server: str) -> None:
    """Store notes until Ctrl-C; offsets are committed behind the notes, so none is lost."""
    from kafka import KafkaConsumer  # noqa: PLC0415 - not needed for a search

    consumer = KafkaConsumer(
        TOPIC,
        bootstrap_servers=server,
        group_id="vector-store",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    while True:
        for records in consumer.poll(timeout_ms=1000).values():
            store.put(record.value for record in records)
            print(f"stored {len(records)} notes")
        consumer.commit()


def main() -> None:
    """Store or search."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", default="127.0.0.1:9092", help="a broker of the job")
    parser.add_argument("database")
    parser.add_argument("question", nargs="?")
    arguments = parser.parse_args()
    store = VectorStore(arguments.database)
    if arguments.question is None:
        follow(store, arguments.server)
        return
    with Client(arguments.server) as client:
        [vector] = client.infer("minilm", {"text": [arguments.question]})["embedding"]
    for name, text, distance in store.nearest(vector):
        print(f"{distance:.2f}  {name}  {text}")


if __name__ == "__main__":
    main()
