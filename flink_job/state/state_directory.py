"""The directory of a job's states, through Flink's file systems; `saved_state` has its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from py4j.protocol import Py4JError, Py4JJavaError

from anabranch.flink_job import installation
from anabranch.flink_job.config import Config, execution_mode
from anabranch.flink_job.errors import StateUnusable
from anabranch.flink_job.state.saved_state import SAVEPOINTS, STOPPED, SavedState, newest_first, surplus
from anabranch.operators.runtime.flink_compat import java_gateway

_METADATA = "_metadata"
_FRESH = "fresh"
_MODELS = "models"
_MODES = ("thread", "process")
_KINDS: dict[str, Literal["stopped", "savepoint"]] = {STOPPED: "stopped", SAVEPOINTS: "savepoint"}
_CHECKPOINT = re.compile(r"chk-(\d+)")
#: Flink's own folders beside the checkpoints of a job.
_JOB_FOLDERS = {"shared", "taskowned"}


class StateDirectory:
    """Finds, marks and removes the saved states of one job."""

    def __init__(self, config: Config) -> None:
        """Start PyFlink's JVM; `job.flink` may hold options of the file system."""
        installation.activate()
        self.url = config.job.state_url
        self._max_parallelism = config.job.max_parallelism
        self._mode = execution_mode(config)
        self._jvm = java_gateway().jvm
        self._paths = self._jvm.org.apache.flink.core.fs
        use_file_systems(config.job.flink)

    def starting_point(self) -> SavedState | None:
        """Return the newest usable state, or None; raise StateUnusable."""
        states = newest_first(self.states(), self._fresh_since_ms())
        if states:
            self._check_mode()
        problem: StateUnusable | None = None
        for state in states:
            try:
                self.check(state)
            except StateUnusable as error:
                problem = problem or error
            else:
                return state
        if problem is not None:
            raise problem
        return None

    def state_at(self, path: str) -> SavedState:
        """Return a state of the user's choice, which stays untouched; raise StateUnusable."""
        path = path.rstrip("/").removesuffix(f"/{_METADATA}")
        found = self._status(f"{path}/{_METADATA}")
        if found is None:
            raise StateUnusable(
                f"{path} has no {_METADATA}, expected a completed checkpoint or savepoint: check the path"
            )
        match = _CHECKPOINT.fullmatch(path.rsplit("/", 1)[-1])
        number = int(match.group(1)) if match else 0
        state = SavedState(path=path, kind="savepoint", taken_at_ms=found[0], number=number, size_bytes=found[1])
        self.check(state)
        return state

    def check(self, state: SavedState) -> None:
        """Read the metadata of a state; raise StateUnusable."""
        try:
            path = self._paths.Path(f"{state.path}/{_METADATA}")
            stream = self._jvm.java.io.DataInputStream(path.getFileSystem().open(path))
            try:
                loader = self._jvm.Thread.currentThread().getContextClassLoader()
                checkpoints = self._jvm.org.apache.flink.runtime.checkpoint.Checkpoints
                metadata = checkpoints.loadCheckpointMetadata(stream, loader, state.path)
            finally:
                stream.close()
            bounds = {int(each.getMaxParallelism()) for each in metadata.getOperatorStates().toArray()}
        except Py4JError as error:
            raise StateUnusable(
                f"{state.path} cannot be read: {_reason(error)}; "
                "name another state with --from PATH, or start with --fresh"
            ) from None
        if bounds and self._max_parallelism not in bounds:
            raise StateUnusable(
                f"{state.path} was taken with job.max_parallelism = {max(bounds)}, found {self._max_parallelism}: "
                "write the old value, or start with --fresh"
            )

    def states(self) -> list[SavedState]:
        """Return all checkpoints and savepoints, completed or not."""
        found: list[SavedState] = []
        for folder in self._folders(self.url):
            name = folder.rsplit("/", 1)[-1]
            for inner in self._folders(folder):
                match = _CHECKPOINT.fullmatch(inner.rsplit("/", 1)[-1])
                if name not in _KINDS and match is None:
                    continue
                taken_at_ms, size_bytes = self._status(f"{inner}/{_METADATA}") or (0, 0)
                found.append(
                    SavedState(
                        path=inner,
                        kind=_KINDS.get(name, "checkpoint"),
                        taken_at_ms=taken_at_ms,
                        number=int(match.group(1)) if match else 0,
                        size_bytes=size_bytes,
                    )
                )
        return found

    def mark_fresh(self) -> None:
        """Pass over all present states from now on."""
        self._guarded(lambda: self._write_mark(_FRESH))

    def note_mode(self) -> None:
        """Remember the execution mode; the modes store state differently."""
        if not self._has_mark(self._mode):
            self._guarded(lambda: self._write_mark(self._mode))
        for mode in _MODES:
            if mode != self._mode and self._has_mark(mode):
                self._delete(f"{self.url}/{mode}", recursive=False)

    def note_models(self, manifest: str) -> str:
        """Remember the manifest of the models; return the one before, or an empty string."""
        before = self._read(_MODELS) if self._has_mark(_MODELS) else ""
        if before != manifest:
            self._guarded(lambda: self._write_mark(_MODELS, manifest.encode()))
        return before

    def clean(self, start: SavedState) -> list[str]:
        """Remove the surplus states of ended jobs; return their paths."""
        removed = [state.path for state in surplus(self.states(), start)]
        for path in removed:
            self._delete(path, recursive=True)
        for folder in self._folders(self.url):
            if folder.rsplit("/", 1)[-1] not in _KINDS:
                self._delete_if_empty(folder)
        return removed

    def _delete_if_empty(self, folder: str) -> None:
        inner = self._folders(folder)
        if all(each.rsplit("/", 1)[-1] in _JOB_FOLDERS and not self._list(each) for each in inner):
            self._delete(folder, recursive=True)

    def _check_mode(self) -> None:
        others = [mode for mode in _MODES if mode != self._mode and self._has_mark(mode)]
        if others and not self._has_mark(self._mode):
            raise StateUnusable(
                f"{self.url} has state of job.execution_mode = {others[0]!r}, found {self._mode!r}: "
                "write the old value, or start with --fresh"
            )

    def _has_mark(self, name: str) -> bool:
        return self._status(f"{self.url}/{name}") is not None

    def _read(self, name: str) -> str:
        path = self._paths.Path(f"{self.url}/{name}")
        stream = path.getFileSystem().open(path)
        try:
            return bytes(stream.readAllBytes()).decode()
        finally:
            stream.close()

    def _write_mark(self, name: str, content: bytes = b"\x01") -> None:
        path = self._paths.Path(f"{self.url}/{name}")
        overwrite = self._paths.FileSystem.WriteMode.OVERWRITE
        stream = path.getFileSystem().create(path, overwrite)
        stream.write(content)
        stream.close()

    def _fresh_since_ms(self) -> int:
        found = self._status(f"{self.url}/{_FRESH}")
        return found[0] if found else 0

    def _status(self, path: str) -> tuple[int, int] | None:
        """Return modification time and size of a file."""
        try:
            java_path = self._paths.Path(path)
            status = java_path.getFileSystem().getFileStatus(java_path)
        except Py4JJavaError as error:
            if _is_missing(error):
                return None
            raise self._unreadable(error) from None
        return int(status.getModificationTime()), int(status.getLen())

    def _list(self, folder: str) -> list[Any]:
        try:
            java_path = self._paths.Path(folder)
            return list(java_path.getFileSystem().listStatus(java_path) or ())
        except Py4JJavaError as error:
            if _is_missing(error):
                return []
            raise self._unreadable(error) from None

    def _folders(self, folder: str) -> list[str]:
        return [str(each.getPath().toString()) for each in self._list(folder) if each.isDir()]

    def _delete(self, path: str, *, recursive: bool) -> None:
        java_path = self._paths.Path(path)
        self._guarded(lambda: java_path.getFileSystem().delete(java_path, recursive))

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Py4JJavaError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Py4JError) -> StateUnusable:
        return StateUnusable(f"{self.url} cannot be used: {_reason(error)}; check job.checkpoint_dir")


def use_file_systems(options: Mapping[str, str]) -> None:
    """Load Flink's file systems, such as S3, with options besides those of `$FLINK_CONF_DIR`."""
    configured: dict[str, str] = {}
    if os.environ.get("FLINK_CONF_DIR"):
        loaded = java_gateway().jvm.org.apache.flink.configuration.GlobalConfiguration.loadConfiguration().toMap()
        configured = {str(key): str(loaded[key]) for key in loaded}
    use_plugins(tuple(sorted((configured | dict(options)).items())))


@cache
def use_plugins(options: tuple[tuple[str, str], ...]) -> None:
    """Load Flink's plugins once: py4j would confuse the classes of two loaders."""
    flink = java_gateway().jvm.org.apache.flink
    configuration = flink.configuration.Configuration()
    for key, value in options:
        configuration.setString(key, value)
    plugins = flink.core.plugin.PluginUtils.createPluginManagerFromRootFolder(configuration)
    flink.core.fs.FileSystem.initialize(configuration, plugins)


def starting_point(config: Config, *, fresh: bool = False, path: str = "") -> SavedState | None:
    """Return the state that a job starts from, and remove surplus states; raise StateUnusable."""
    directory = StateDirectory(config)
    if path:
        return directory.state_at(path)
    state = None
    if fresh:
        directory.mark_fresh()
    else:
        state = directory.starting_point()
    if state is not None:
        directory.clean(state)
    directory.note_mode()
    return state


def note_models(config: Config, manifest: str) -> str:
    """See `StateDirectory.note_models`."""
    return StateDirectory(config).note_models(manifest)


def _is_missing(error: Py4JJavaError) -> bool:
    return "FileNotFoundException" in str(error.java_exception.getClass().getName())


def _reason(error: Py4JError) -> str:
    if isinstance(error, Py4JJavaError):
        return str(error.java_exception.toString()).splitlines()[0]
    return str(error).splitlines()[0]
