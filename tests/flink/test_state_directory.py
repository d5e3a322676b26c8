"""A job's saved states are found, passed over and removed through Flink's file systems."""

import os
from pathlib import Path

import pytest

from anabranch.flink_job import installation
from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import StateUnusable
from anabranch.flink_job.state import state_directory
from anabranch.flink_job.state.state_directory import StateDirectory, starting_point
from anabranch.operators.runtime.flink_compat import java_gateway

JOB, OLDER_JOB = "a" * 32, "b" * 32


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config().replace(job={"name": "fraud 1", "checkpoint_dir": f"file://{tmp_path}/chk ü"})


def write(
    config: Config, name: str, at_s: int, *, valid: bool = True, empty: bool = False, max_parallelism: int = 128
) -> str:
    """Writes a checkpoint or savepoint whose metadata Flink can read, unless it should not."""
    folder = Path(config.job.state_url.removeprefix("file://")) / name
    folder.mkdir(parents=True)
    metadata = folder / "_metadata"
    if empty:
        return str(folder)
    if valid:
        installation.activate()
        jvm = java_gateway().jvm
        checkpoint = jvm.org.apache.flink.runtime.checkpoint
        nothing, operators = jvm.java.util.ArrayList(), jvm.java.util.ArrayList()
        identity = jvm.org.apache.flink.runtime.jobgraph.OperatorID()
        operators.add(checkpoint.OperatorState("serve", "serve", identity, 2, max_parallelism))
        stream = jvm.java.io.FileOutputStream(str(metadata))
        content = checkpoint.metadata.CheckpointMetadata(1, operators, nothing)
        checkpoint.Checkpoints.storeCheckpointMetadata(content, stream)
        stream.close()
    else:
        metadata.write_bytes(b"half of it")
    os.utime(metadata, (at_s, at_s))
    return f"file:{folder}"


def test_starting_point_without_directory_is_none(config: Config) -> None:
    assert starting_point(config) is None


def test_starting_point_is_the_newest_completed_state(config: Config) -> None:
    write(config, f"{OLDER_JOB}/chk-90", 1000)
    newest = write(config, f"{JOB}/chk-3", 2000)
    write(config, f"{JOB}/chk-4", 0, empty=True)
    write(config, f"{JOB}/shared", 0, empty=True)
    state = starting_point(config)
    assert state is not None
    assert (state.path, state.kind, state.number, state.claim_mode) == (newest, "checkpoint", 3, "CLAIM")
    stopped = write(config, "stopped/savepoint-1", 3000)
    assert getattr(starting_point(config), "path", None) == stopped


def test_starting_point_unreadable_state_is_passed_over(config: Config) -> None:
    good = write(config, f"{JOB}/chk-3", 2000)
    write(config, f"{JOB}/chk-4", 3000, valid=False)
    assert getattr(starting_point(config), "path", None) == good


def test_starting_point_with_unreadable_states_only_is_refused(config: Config) -> None:
    write(config, f"{JOB}/chk-4", 3000, valid=False)
    with pytest.raises(StateUnusable, match=r"chk-4 cannot be read: .*--from PATH.*--fresh"):
        starting_point(config)


def test_state_of_another_max_parallelism_is_refused(config: Config) -> None:
    write(config, f"{JOB}/chk-4", 3000, max_parallelism=64)
    with pytest.raises(StateUnusable, match=r"chk-4 was taken with job\.max_parallelism = 64, found 128: .*--fresh"):
        starting_point(config)


def test_state_of_the_other_execution_mode_is_refused(config: Config) -> None:
    assert starting_point(config) is None
    write(config, f"{JOB}/chk-4", 2000)
    process = config.replace(job={"execution_mode": "process"})
    with pytest.raises(StateUnusable, match=r"has state of job\.execution_mode = 'thread', found 'process': .*--fresh"):
        starting_point(process)
    assert starting_point(config) is not None
    assert starting_point(process, fresh=True) is None
    write(config, f"{JOB}/chk-5", 2**31)
    assert starting_point(process) is not None
    with pytest.raises(StateUnusable, match="= 'process', found 'thread'"):
        starting_point(config)


def test_fresh_start_passes_over_older_states_for_good(config: Config) -> None:
    write(config, f"{JOB}/chk-3", 2000)
    assert starting_point(config, fresh=True) is None
    assert starting_point(config) is None
    later = write(config, f"{JOB}/chk-5", 2**31)
    assert getattr(starting_point(config), "path", None) == later


def test_state_of_the_users_choice_is_left_untouched(config: Config, tmp_path: Path) -> None:
    chosen = write(config, f"{JOB}/chk-3", 2000)
    newer = write(config, f"{JOB}/chk-4", 3000)
    for path in (chosen, f"{chosen}/", f"{chosen}/_metadata"):
        state = starting_point(config, path=path)
        assert state is not None
        assert (state.path, state.claim_mode) == (chosen, "NO_CLAIM")
    assert Path(newer.removeprefix("file:")).exists()
    with pytest.raises(StateUnusable, match="nothing has no _metadata, expected a completed checkpoint"):
        starting_point(config, path=f"file://{tmp_path}/nothing")


def test_starting_point_removes_what_ended_jobs_left(config: Config) -> None:
    root = Path(config.job.state_url.removeprefix("file://"))
    write(config, f"{OLDER_JOB}/chk-1", 1000)
    write(config, f"{OLDER_JOB}/shared", 0, empty=True)
    write(config, f"{OLDER_JOB}/taskowned", 0, empty=True)
    write(config, "stopped/savepoint-1", 1500)
    write(config, "savepoints/savepoint-2", 1600)
    write(config, f"{JOB}/chk-7", 2000)
    write(config, f"{JOB}/chk-8", 3000)
    write(config, f"{JOB}/chk-9", 0, empty=True)
    starting_point(config)
    left = {str(path.relative_to(root)) for path in root.glob("*/*")}
    assert left == {"savepoints/savepoint-2", f"{JOB}/chk-7", f"{JOB}/chk-8"}
    assert not (root / OLDER_JOB).exists()


def test_unknown_file_system_is_refused_in_one_line(config: Config) -> None:
    unknown = config.replace(job={"checkpoint_dir": "gopher://bucket/x"})
    with pytest.raises(StateUnusable, match=r"^gopher://bucket/x/fraud 1 cannot be used: .*check job\.checkpoint_dir$"):
        StateDirectory(unknown).states()


def test_file_systems_are_loaded_once(config: Config) -> None:
    StateDirectory(config)
    loaded = state_directory.use_plugins.cache_info().misses
    StateDirectory(config)
    StateDirectory(config.replace(job={"name": "other"}))
    assert state_directory.use_plugins.cache_info().misses == loaded
