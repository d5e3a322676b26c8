"""Downloads the jars of Flink and Kafka, and checks their SHA-256.

A lock file has one line per jar: SHA-256, folder, Maven coordinates (G:A:V, or G:A:V:C:P of an archive). `fetch`
downloads missing jars, `lock` resolves them again and rewrites `jars.lock`, `pin` writes another lock file. All need
only jgo, a Maven resolver in Python.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("jars.lock")
KAFKA_VERSION = "4.1.0"

# Contains its dependencies.
CONNECTOR = "org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2"
# A JRE has no compiler for the job's Java.
COMPILER = "org.eclipse.jdt:ecj:3.41.0"
KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Logging backend of the broker; resolved alone, it keeps the versions of Kafka's jars.
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3"

_PARALLEL_DOWNLOADS = 8
_TRIES = 3
_PROGRESS_INTERVAL_S = 2.0


class JarsError(Exception):
    """A jar could not be downloaded, or differs from the lock file."""


@dataclass(frozen=True)
class LockedJar:
    """One line of a lock file."""

    sha256: str
    folder: str
    coordinates: str

    @property
    def file_name(self) -> str:
        """Maven's name of the file."""
        _, artifact, version, *archive = self.coordinates.split(":")
        classifier, packaging = archive or ("", "jar")
        return f"{'-'.join(filter(None, (artifact, version, classifier)))}.{packaging}"


def read_lock(lock: Path = LOCK) -> list[LockedJar]:
    """Return the jars of a lock file."""
    lines = (line.split() for line in lock.read_text().splitlines() if line and not line.startswith("#"))
    return [LockedJar(*fields) for fields in lines]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(jars: list[LockedJar], target: Path) -> int:
    """Download missing jars, and remove all files that are not locked.

    Returns:
        The number of downloads.

    Raises:
        JarsError: A jar cannot be downloaded, or its SHA-256 differs.
    """
    for folder in {jar.folder for jar in jars}:
        (target / folder).mkdir(parents=True, exist_ok=True)
        expected = {jar.file_name for jar in jars if jar.folder == folder}
        for found in (target / folder).iterdir():
            if found.name not in expected:
                found.unlink()
    missing = [jar for jar in jars if not _is_intact(jar, target)]
    if not missing:
        return 0
    said_at = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=target) as cache,
        ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as executor,
    ):
        downloads = [executor.submit(_download, jar, target, Path(cache) / str(i)) for i, jar in enumerate(missing)]
        for done, download in enumerate(as_completed(downloads), start=1):
            try:
                download.result()
            except JarsError:
                executor.shutdown(cancel_futures=True)
                raise
            if time.monotonic() - said_at > _PROGRESS_INTERVAL_S:
                said_at = time.monotonic()
                print(f"  jars: {done} of {len(missing)}", flush=True)
    return len(missing)


def _is_intact(jar: LockedJar, target: Path) -> bool:
    path = target / jar.folder / jar.file_name
    return path.is_file() and sha256_of(path) == jar.sha256


def _download(jar: LockedJar, target: Path, cache: Path) -> None:
    # Tests read the lock file without jgo.
    from jgo.maven import MavenContext  # noqa: PLC0415

    for attempt in range(1, _TRIES + 1):
        # An empty cache, so that no broken file of an earlier try is used.
        context = MavenContext(repo_cache=cache / str(attempt), local_repos=[])
        try:
            path = _resolved(context, jar.coordinates)
            break
        except Exception as error:  # of jgo's HTTP library
            if attempt == _TRIES:
                raise JarsError(
                    f"cannot download {jar.coordinates}: {error}; check that Maven Central is reachable, and try again"
                ) from error
            time.sleep(attempt)
    found = sha256_of(path)
    if found != jar.sha256:
        raise JarsError(
            f"{jar.coordinates} has SHA-256 {found}, expected {jar.sha256}: do not use it; "
            "run `make lock` if the change is intended"
        )
    shutil.move(path, target / jar.folder / jar.file_name)


def _resolved(context: Any, coordinates: str) -> Path:
    group, artifact, version, *archive = coordinates.split(":")
    path: Path = context.project(group, artifact).at_version(version).artifact(*archive).resolve()
    return path


def lock(path: Path = LOCK) -> int:
    """Resolve and lock the jars; return their number."""
    from jgo.maven import MavenContext  # noqa: PLC0415

    lines = ["# Written by `make lock`: SHA-256, folder, Maven coordinates."]
    with tempfile.TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache), local_repos=[])
        connector, compiler, logging = map(context.create_dependency, (CONNECTOR, COMPILER, LOGGING))
        roots, transitive = context.resolver.resolve([context.create_dependency(KAFKA)])
        runtime = [jar for jar in transitive if jar.scope in ("compile", "runtime") and not jar.optional]
        zstd = [jar for jar in runtime if jar.artifactId == "zstd-jni"]
        folders = {"compiler": [compiler], "connector": [connector, *zstd], "kafka": [*roots, *runtime, logging]}
        for folder, dependencies in folders.items():
            coordinates = {f"{jar.groupId}:{jar.artifactId}:{jar.version}": jar for jar in dependencies}
            for name, jar in sorted(coordinates.items()):
                lines.append(f"{sha256_of(jar.artifact.resolve())}  {folder}  {name}")
    path.write_text("\n".join(lines) + "\n")
    return len(lines) - 1


def pin(path: Path, folder: str, coordinates: list[str]) -> int:
    """Lock jars without their dependencies; return their number."""
    from jgo.maven import MavenContext  # noqa: PLC0415

    lines = ["# Written by `make lock`: SHA-256, folder, Maven coordinates."]
    with tempfile.TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache), local_repos=[])
        digests = [sha256_of(_resolved(context, name)) for name in coordinates]
    lines += [f"{digest}  {folder}  {name}" for digest, name in zip(digests, coordinates, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return len(coordinates)


def main() -> None:
    """Run `fetch`, `lock` or `pin`; an error is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lock", help="resolve the versions again, and rewrite jars.lock")
    fetching = commands.add_parser("fetch", help="download the locked jars")
    fetching.add_argument("--to", type=Path, required=True)
    fetching.add_argument("--lock", type=Path, default=LOCK)
    pinning = commands.add_parser("pin", help="write another lock file, of the given jars only")
    pinning.add_argument("--lock", type=Path, required=True)
    pinning.add_argument("--folder", required=True)
    pinning.add_argument("coordinates", nargs="+")
    arguments = parser.parse_args()
    try:
        if arguments.command == "lock":
            print(f"  jars: {lock()} locked")
        elif arguments.command == "pin":
            print(f"  jars: {pin(arguments.lock, arguments.folder, arguments.coordinates)} locked")
        else:
            locked = read_lock(arguments.lock)
            print(f"  jars: {fetch(locked, arguments.to)} downloaded, {len(locked)} checked")
    except (JarsError, OSError) as error:
        sys.exit(f"setup: {error}")


if __name__ == "__main__":
    main()
