"""Files of any file system that Flink knows, such as S3."""

import os
from collections.abc import Mapping
from typing import Any

from py4j.protocol import Py4JJavaError

from anabranch.flink_job import installation
from anabranch.flink_job.errors import ModelStoreUnusable
from anabranch.flink_job.state.state_directory import use_file_systems
from anabranch.operators.runtime.flink_compat import java_gateway


class FlinkFiles:
    """Copies and looks up files; starts PyFlink's JVM."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """Take Flink options of the file systems, besides those of `$FLINK_CONF_DIR`."""
        installation.activate()
        self._flink = java_gateway().jvm.org.apache.flink
        use_file_systems(options)

    def size_bytes(self, url: str) -> int | None:
        """Return the size of a file, or None without one."""
        status = self._guarded(url, lambda path: self._status(path.getFileSystem(), path))
        return None if status is None else int(status.getLen())

    def copy(self, source: str, target: str) -> None:
        """Copy a file beside its target, then rename it."""
        half = f"{target}.{os.getpid()}"
        copy = self._flink.util.FileUtils.copy
        self._guarded(half, lambda path: copy(self._path(source), path, False))
        self._guarded(half, lambda path: path.getFileSystem().rename(path, self._path(target)))

    def _status(self, files: Any, path: Any) -> Any:
        return files.getFileStatus(path) if files.exists(path) else None

    def _path(self, url: str) -> Any:
        return self._flink.core.fs.Path(url)

    def _guarded(self, url: str, action: Any) -> Any:
        try:
            return action(self._path(url))
        except Py4JJavaError as error:
            reason = str(error.java_exception.toString()).splitlines()[0]
            raise ModelStoreUnusable(f"{url} cannot be used: {reason}; check [models] store") from None
