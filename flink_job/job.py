"""Starts the job: in this process on a MiniCluster, or on a running cluster by its REST address."""

import atexit
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from pyflink.common import Configuration, JobClient
from pyflink.datastream import StreamExecutionEnvironment

from anabranch.flink_job import installation
from anabranch.flink_job.config import EXECUTION_MODE, UNALIGNED, Config, shares_memory
from anabranch.flink_job.errors import ConfigError
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.slots import slots_needed
from anabranch.flink_job.topology import build
from anabranch.operators.backends.base import Backend
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.runtime.flink_compat import (
    remote_environment,
    stop_with_savepoint,
    use_worker_processes,
)
from anabranch.schemas.model import Catalog

_FOREVER = str(2**31 - 1)
#: Process mode: how long a record waits for others on its way to Python, where 0 would mean 1000. Thread mode has no
#: bundles, but would wake every Python operator so often to look for one.
_BUNDLE_MS = "2"


class RunningJob:
    """A job that was submitted."""

    def __init__(self, client: JobClient) -> None:
        self._client = client

    @property
    def job_id(self) -> str:
        """Flink's id of the job, in hex."""
        return str(self._client.get_job_id())

    def status(self) -> str:
        """Flink's name of the job's state: such as `RUNNING` or `FAILED`."""
        return str(self._client.get_job_status().result()).rsplit(".", 1)[-1]

    def drain(self, savepoint_dir: str) -> None:
        """Stops the job once everything that it has read is answered; a restart goes on behind it.

        Args:
            savepoint_dir: URI of a folder for the savepoint that Flink takes meanwhile.

        Raises:
            Exception: The job does not run, or failed before it was done.
        """
        stop_with_savepoint(self._client, savepoint_dir)

    def cancel(self) -> None:
        """Stops the job at once: what it has read and not answered is forgotten, unless a checkpoint is restored."""
        self._client.cancel().result()

    def wait(self) -> None:
        """Waits for the end of a bounded job.

        Raises:
            Exception: The job failed, or was cancelled.
        """
        self._client.get_job_execution_result().result()


def read_models(config: Config) -> Catalog:
    """What a job of this configuration serves.

    Raises:
        ConfigError: The model repository cannot be used.
        ModelLoadFailed: A model cannot be read.
    """
    return read_repository(Path(config.models.repository), config.defaults)


def start(
    config: Config, flink_url: str | None = None, backend: Backend | None = None, catalog: Catalog | None = None
) -> RunningJob:
    """Builds and submits the job; the models are read here once, before anything is started.

    Args:
        flink_url: REST address of a running cluster; None starts a MiniCluster in this process.
        backend: What loads the models; ONNX Runtime by default.
        catalog: What `read_models` gave, if it was asked before.

    Raises:
        ConfigError: The configuration or the model repository cannot be used.
        ModelLoadFailed: A model cannot be read.
    """
    catalog = catalog or read_models(config)
    installation.activate()
    use_worker_processes()
    options = flink_options(config)
    slots = slots_needed(catalog, config.job.parallelism)
    env = _mini_cluster(options, slots) if flink_url is None else _remote(options, flink_url)
    env.set_parallelism(config.job.parallelism)
    env.set_max_parallelism(config.job.max_parallelism)
    # For whoever looks at the job: which models a task that serves holds.
    whole = ", ".join(f"{model.name}/{model.version}" for model in catalog.whole())
    env.get_config().set_global_job_parameters({"anabranch.models": whole})
    build(env, config, catalog, backend or OnnxBackend())
    return RunningJob(env.execute_async(config.job.name))


def flink_options(config: Config) -> dict[str, str]:
    """The Flink options of the job; `job.flink` has the last word."""
    job = config.job
    exactly_once = job.delivery == "exactly-once"
    return {
        **installation.python_settings(),
        EXECUTION_MODE: job.execution_mode,
        **({"python.fn-execution.bundle.time": _BUNDLE_MS} if job.execution_mode == "process" else {}),
        "execution.buffer-timeout.interval": f"{job.buffer_timeout_ms} ms",
        "execution.checkpointing.interval": f"{job.checkpoint_interval_ms} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE" if exactly_once else "AT_LEAST_ONCE",
        "execution.checkpointing.min-pause": f"{min(500, job.checkpoint_interval_ms)} ms",
        "execution.checkpointing.tolerable-failed-checkpoints": _FOREVER,
        # Whatever the cluster's own configuration says: see `shares_memory`.
        **({UNALIGNED: "false"} if shares_memory(config) else {}),
        **({"execution.checkpointing.dir": job.checkpoint_dir} if job.checkpoint_dir else {}),
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": _FOREVER,
        "restart-strategy.fixed-delay.delay": "1 s",
        # Our operators never change a record that they passed on, so the next one need not get a copy.
        "pipeline.object-reuse": "true",
        # A task takes from the exchange what the least busy neighbour would wait for longest.
        "taskmanager.network.adaptive-partitioner.enabled": "true",
        **job.flink,
    }


def _mini_cluster(options: dict[str, str], slots: int) -> StreamExecutionEnvironment:
    settings = Configuration()
    checkpoints = Path(tempfile.mkdtemp(prefix="anabranch-checkpoints-"))
    # The MiniCluster does not outlive this process, and its checkpoints are of no use without it.
    atexit.register(shutil.rmtree, checkpoints, ignore_errors=True)
    defaults = {
        "rest.port": "0",
        "rest.bind-address": "127.0.0.1",
        "taskmanager.numberOfTaskSlots": str(slots),
        # A checkpoint in the JobManager's memory holds 5 MB at most: less than one large request.
        "execution.checkpointing.dir": checkpoints.as_uri(),
    }
    for key, value in (defaults | options).items():
        settings.set_string(key, value)
    return StreamExecutionEnvironment.get_execution_environment(settings)


def _remote(options: dict[str, str], flink_url: str) -> StreamExecutionEnvironment:
    address = urlsplit(flink_url if "//" in flink_url else f"//{flink_url}")
    if not address.hostname or not address.port:
        raise ConfigError(f"{flink_url!r} is no REST address of a Flink cluster: write it as http://HOST:PORT")
    return remote_environment(address.hostname, address.port, options)
