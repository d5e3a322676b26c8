"""Starts the job on a MiniCluster or on a running cluster."""

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from py4j.protocol import Py4JJavaError
from pyflink.common import CompletableFuture, Configuration, JobClient
from pyflink.datastream import StreamExecutionEnvironment

from anabranch.flink_job import installation
from anabranch.flink_job.config import EXECUTION_MODE, UNALIGNED, Config, shares_memory
from anabranch.flink_job.errors import ConfigError, JobFailed
from anabranch.flink_job.job_identity import IDENTITY_PARAMETER, encode_identity, identity_of
from anabranch.flink_job.model_repository.repository import read_repository
from anabranch.flink_job.model_repository.store import StoredModels, store_models
from anabranch.flink_job.model_summary import (
    JOB_PARAMETER,
    LEFT_OUT_PARAMETER,
    MANIFEST_PARAMETER,
    encode_left_out,
    encode_summaries,
    summarize,
)
from anabranch.flink_job.slots import slots_needed
from anabranch.flink_job.state.saved_state import RETAINED_CHECKPOINTS, STATE_PARAMETER, STOPPED, SavedState
from anabranch.flink_job.topology import build
from anabranch.operators.backends.base import Backend
from anabranch.operators.backends.onnx import OnnxBackend
from anabranch.operators.runtime.flink_compat import (
    mini_cluster_url,
    remote_environment,
    root_cause,
    stop_with_savepoint,
    use_own_operators,
    use_worker_processes,
)
from anabranch.operators.sessions.crash_guard import GuardedBackend
from anabranch.schemas.model import Catalog

#: Compares all readers, not the next four.
_ALL_READERS = {"taskmanager.network.adaptive-partitioner.max-traverse-size": "32768"}
_FOREVER = str(2**31 - 1)
#: PyFlink takes 0 for 1000.
_BUNDLE_MS = "2"
_POLL_S = 0.2


class RunningJob:
    """A submitted job; `flink_url` is the REST address of its cluster."""

    def __init__(self, client: JobClient, flink_url: str) -> None:
        self._client = client
        self.flink_url = flink_url

    @property
    def job_id(self) -> str:
        """Flink's id, in hex."""
        return str(self._client.get_job_id())

    def status(self) -> str:
        """Return Flink's name of the state, such as `RUNNING`."""
        return str(self._client.get_job_status().result()).rsplit(".", 1)[-1]

    def drain(self, savepoint_dir: str, sleep: Callable[[float], None] = time.sleep) -> str:
        """Answer the requests read so far, then stop; return the savepoint in `savepoint_dir`."""
        return str(_await(stop_with_savepoint(self._client, savepoint_dir), sleep))

    def cancel(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Stop at once, and answer no more requests."""
        _await(self._client.cancel(), sleep)

    def wait(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait for the end of a job; raise JobFailed."""
        _await(self._client.get_job_execution_result(), sleep)


def _await(future: CompletableFuture, sleep: Callable[[float], None]) -> object:
    while not future.done():
        sleep(_POLL_S)
    try:
        return future.result()
    except Py4JJavaError as error:
        raise JobFailed(f"Flink: {root_cause(error)}") from None


def read_models(config: Config) -> Catalog:
    """Read the configured models; raise ConfigError without any."""
    return read_repository(Path(config.models.repository), config.defaults)


def start(
    config: Config,
    flink_url: str | None = None,
    backend: Backend | None = None,
    catalog: Catalog | StoredModels | None = None,
    state: SavedState | None = None,
) -> RunningJob:
    """Build and submit the job.

    Args:
        flink_url: REST address of a cluster; None starts a MiniCluster.
        backend: ONNX Runtime by default.
        catalog: Result of `read_models` or `store_models`.
        state: Checkpoint or savepoint to start from; see `state_directory.starting_point`.
    """
    stored = catalog if isinstance(catalog, StoredModels) else store_models(catalog or read_models(config), config)
    catalog = stored.catalog
    installation.activate()
    use_worker_processes()
    use_own_operators()
    slots = slots_needed(catalog, config.job.parallelism)
    crash_dir, folder = config.job.crash_dir, None
    if flink_url is None:
        folder = _temporary_folder()
        crash_dir = crash_dir if config.job.checkpoint_dir else str(folder / "crashes")
    env = environment(config, flink_options(config, state), slots, flink_url, folder)
    # Flink's web page shows it.
    whole = ", ".join(f"{model.name}/{model.version}" for model in catalog.whole())
    summaries = encode_summaries(summarize(catalog))
    parameters = {
        "anabranch.models": whole,
        JOB_PARAMETER: summaries,
        MANIFEST_PARAMETER: stored.manifest,
        IDENTITY_PARAMETER: encode_identity(identity_of(config)),
        LEFT_OUT_PARAMETER: encode_left_out(catalog.left_out),
        STATE_PARAMETER: config.job.state_url,
    }
    env.get_config().set_global_job_parameters(parameters)
    build(env, config, catalog, GuardedBackend(backend or OnnxBackend(config.job.max_run_memory_mb), crash_dir))
    client = env.execute_async(config.job.name)
    return RunningJob(client, flink_url or mini_cluster_url(client))


def environment(
    config: Config, options: dict[str, str], slots: int, flink_url: str | None = None, folder: Path | None = None
) -> StreamExecutionEnvironment:
    """Return the environment of a cluster, or of a MiniCluster with that many slots.

    Args:
        folder: The MiniCluster's temporary files.
    """
    if flink_url is None:
        env = _mini_cluster(options, slots, folder or _temporary_folder())
    else:
        env = _remote(options, flink_url)
    env.set_parallelism(config.job.parallelism)
    env.set_max_parallelism(config.job.max_parallelism)
    return env


def flink_options(config: Config, state: SavedState | None = None) -> dict[str, str]:
    """Return the Flink options of the job, which starts from `state`."""
    job = config.job
    tolerated = job.tolerated_checkpoints
    exactly_once = job.delivery == "exactly-once"
    return {
        **installation.python_settings(),
        EXECUTION_MODE: job.execution_mode,
        **({"python.fn-execution.bundle.time": _BUNDLE_MS} if job.execution_mode == "process" else {}),
        "execution.buffer-timeout.interval": f"{job.buffer_timeout_ms} ms",
        "execution.checkpointing.interval": f"{job.checkpoint_interval_ms} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE" if exactly_once else "AT_LEAST_ONCE",
        "execution.checkpointing.min-pause": f"{min(500, job.checkpoint_interval_ms)} ms",
        "execution.checkpointing.timeout": f"{job.checkpoint_timeout_ms} ms",
        "execution.checkpointing.tolerable-failed-checkpoints": _FOREVER if tolerated < 0 else str(tolerated),
        **({UNALIGNED: "false"} if shares_memory(config) else {}),
        **(_kept_state(job.state_url) if job.checkpoint_dir else {}),
        **(_start_from(state) if state else {}),
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": _FOREVER,
        "restart-strategy.fixed-delay.delay": "1 s",
        # Flink refuses an operator without an identity, whose state could not be restored.
        "pipeline.auto-generate-uids": "false",
        # Operators never change an emitted record.
        "pipeline.object-reuse": "true",
        # Prefers less busy tasks.
        "taskmanager.network.adaptive-partitioner.enabled": "true",
        **(_ALL_READERS if config.exchange.credits == "on" else {}),
        **job.flink,
    }


def _kept_state(url: str) -> dict[str, str]:
    return {
        "execution.checkpointing.dir": url,
        "execution.checkpointing.savepoint-dir": f"{url}/{STOPPED}",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.num-retained": str(RETAINED_CHECKPOINTS),
    }


def _start_from(state: SavedState) -> dict[str, str]:
    return {"execution.state-recovery.path": state.path, "execution.state-recovery.claim-mode": state.claim_mode}


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="anabranch-job-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _mini_cluster(options: dict[str, str], slots: int, folder: Path) -> StreamExecutionEnvironment:
    settings = Configuration()
    defaults = {
        "rest.port": "0",
        "rest.bind-address": "127.0.0.1",
        "taskmanager.numberOfTaskSlots": str(slots),
        # The JobManager's memory holds at most 5 MB.
        "execution.checkpointing.dir": (folder / "checkpoints").as_uri(),
    }
    for key, value in (defaults | options).items():
        settings.set_string(key, value)
    return StreamExecutionEnvironment.get_execution_environment(settings)


def _remote(options: dict[str, str], flink_url: str) -> StreamExecutionEnvironment:
    address = urlsplit(flink_url if "//" in flink_url else f"//{flink_url}")
    if not address.hostname or not address.port:
        raise ConfigError(f"{flink_url!r} is not the REST address of a Flink cluster: write http://HOST:PORT")
    return remote_environment(address.hostname, address.port, options)
