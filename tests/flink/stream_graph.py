"""The graph of a job that is not started."""

from typing import Any

from anabranch.flink_job import installation, job
from anabranch.flink_job.config import Config
from anabranch.flink_job.topology import build
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.runtime import flink_compat


def stream_nodes(config: Config) -> list[Any]:
    """Returns Flink's `StreamNode` of each operator."""
    installation.activate()
    flink_compat.use_worker_processes()
    env = flink_compat.remote_environment("host.invalid", 8081, job.flink_options(config))
    env.set_parallelism(config.job.parallelism)
    build(env, config, job.read_models(config), OnnxBackend())
    graph: Any = env._generate_stream_graph(clear_transformations=True)
    return list(graph.getStreamNodes().toArray())
