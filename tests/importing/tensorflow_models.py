"""Writes `net.keras` and `saved/`, a SavedModel, to a folder; run by an interpreter with TensorFlow."""

import sys
from pathlib import Path

import keras
import tensorflow as tf


class Recurrent(tf.Module):
    """A recurrent step with two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_normal((4, 4), (1, 2)))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 5, 4), tf.float32, "sequence"),
            tf.TensorSpec((None,), tf.int32, "length"),
        ]
    )
    def serve(self, sequence: tf.Tensor, length: tf.Tensor) -> dict[str, tf.Tensor]:
        """[rows, 5, 4], [rows] -> [rows, 4], [rows]."""
        state = tf.zeros_like(sequence[:, 0])
        for step in range(5):
            state = tf.tanh(sequence[:, step] + state @ self.weights)
        return {"state": state, "left": 5 - length}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [
            keras.Input((16, 16, 3), name="picture"),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    net.save(folder / "net.keras")
    module = Recurrent()
    tf.saved_model.save(module, str(folder / "saved"), signatures={"serving_default": module.serve})
