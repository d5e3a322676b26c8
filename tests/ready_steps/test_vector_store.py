"""The example's vector store."""

import json
from pathlib import Path

import numpy as np

from examples.embeddings.vector_store import VectorStore


def test_vector_store_finds_the_nearest_and_keeps_one_of_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 8)).astype(np.float32)
    events = [
        json.dumps({"id": f"n{number}", "text": f"note {number}", "embedding": vector.tolist()}).encode()
        for number, vector in enumerate(vectors)
    ]
    path = str(tmp_path / "notes.db")
    VectorStore(path, 8).put(events)
    # A replay stores them again.
    VectorStore(path, 8).put(events[20:])
    question = rng.standard_normal(8).astype(np.float32)
    cosines = vectors @ question / np.linalg.norm(vectors, axis=1) / np.linalg.norm(question)
    found = VectorStore(path, 8).nearest(question, 60)
    assert [name for name, _, _ in found] == [f"n{number}" for number in np.argsort(-cosines)]
    np.testing.assert_allclose([distance for _, _, distance in found], 1 - np.sort(cosines)[::-1], atol=1e-5)
    assert found[0][1] == f"note {np.argmax(cosines)}"
