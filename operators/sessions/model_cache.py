"""Local copies of the files in a model store.

<store>/bundles/HASH.json       names, hashes and sizes of files that stay in one folder
<store>/files/HASH              a file
<cache>/HASH/NAME               a bundle on this machine, for all its tasks

A path `STORE/bundles/HASH.json#NAME` is a file of a bundle.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import msgspec

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.sessions.file_lock import file_lock
from anabranch.schemas.limits import FILE_CHUNK_BYTES, MODEL_CACHE_BYTES

#: Moves the cache, and bounds its size.
CACHE_VARIABLE, LIMIT_VARIABLE = "ANABRANCH_MODEL_CACHE", "ANABRANCH_MODEL_CACHE_BYTES"
_MARK = ".json#"
_TRIES = 3
_PAUSE_S = 1.0
#: A task may be about to open the files.
_IN_USE_S = 600.0
_FETCH_TIMEOUT_S = 600
#: Reads other file systems through Flink's.
_FETCHER = "anabranch.flink_job.model_repository.fetch"


class BundleFile(msgspec.Struct, frozen=True, array_like=True):
    """A file of a bundle, with its path in the folder."""

    name: str
    sha256: str
    size_bytes: int


def stored_path(store: str, bundle: str, name: str) -> str:
    """Return the path of a file in a bundle."""
    return f"{store}/bundles/{bundle}{_MARK}{name}"


def bundle_url(store: str, bundle: str) -> str:
    """Return the place of a bundle's list of files."""
    return f"{store}/bundles/{bundle}.json"


def file_url(store: str, sha256: str) -> str:
    """Return the place of a file."""
    return f"{store}/files/{sha256}"


def is_stored(path: str) -> bool:
    """Tell whether a path is in a store."""
    return _MARK in path


def local_file(url: str) -> Path | None:
    """Return the path of a `file:` URL; None for another file system."""
    if not url.startswith("file:"):
        return None if "://" in url else Path(url)
    return Path(unquote(url.removeprefix("file:").removeprefix("//")))


def local_path(path: str) -> Path:
    """Return a file on this machine, and copy its bundle at the first use.

    Raises:
        ModelLoadFailed: The store cannot be read, or has other files than it should.
    """
    if not is_stored(path):
        return Path(path)
    url, _, name = path.partition(_MARK)
    store, bundle = url.rsplit("/bundles/", 1)
    problem: Exception | None = None
    for tried in range(_TRIES):
        if tried:
            time.sleep(_PAUSE_S)
        try:
            return _bundle(store, bundle) / name
        except (OSError, ValueError, msgspec.MsgspecError, subprocess.SubprocessError) as error:
            problem = error
    raise ModelLoadFailed(
        f"cannot copy {path} to this machine: {problem}; check the store and the free space"
    ) from None


@contextmanager
def naming_files(path: Path) -> Iterator[None]:
    """Let errors name files without the cache's folder, which tells users nothing."""
    try:
        yield
    except ModelLoadFailed as error:
        raise ModelLoadFailed(error.message.replace(f"{path.parent}/", "")) from None


def cache_folder() -> Path:
    """Return the folder of copies."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    with suppress(RuntimeError):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anabranch" / "models"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir()) / f"anabranch-models-{os.getuid()}"


def hash_of(path: Path, target: Path | None = None) -> str:
    """Return the SHA-256 of a file, and copy what was read."""
    digest = hashlib.sha256()
    with path.open("rb") as source, (target or Path(os.devnull)).open("wb") as copy:
        while chunk := source.read(FILE_CHUNK_BYTES):
            digest.update(chunk)
            if target is not None:
                copy.write(chunk)
    return digest.hexdigest()


def _bundle(store: str, bundle: str) -> Path:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    if cache.stat().st_uid != os.getuid():
        raise OSError(f"{cache} belongs to another user: set {CACHE_VARIABLE}")
    folder = cache / bundle
    with file_lock(cache / f"{bundle}.lock"):
        if not folder.is_dir():
            _copy_bundle(store, bundle, folder)
        os.utime(folder)
    return folder


def _copy_bundle(store: str, bundle: str, folder: Path) -> None:
    """Copy a bundle beside its place, then move it there."""
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder.parent) as made:
        whole = Path(made) / "bundle"
        whole.mkdir()
        listed = Path(made) / "files"
        _fetch([(bundle_url(store, bundle), listed)])
        _check(listed, bundle)
        files = msgspec.json.decode(listed.read_bytes(), type=list[BundleFile])
        _make_room(folder.parent, sum(file.size_bytes for file in files))
        targets = [(file, whole / file.name) for file in files]
        for _, target in targets:
            if not target.resolve().is_relative_to(whole.resolve()):
                raise ValueError(f"{target} is outside its bundle")
            target.parent.mkdir(parents=True, exist_ok=True)
        _fetch([(file_url(store, file.sha256), target) for file, target in targets])
        for file, target in targets:
            _check(target, file.sha256)
        whole.rename(folder)


def _check(path: Path, sha256: str) -> None:
    if hash_of(path) != sha256:
        raise ValueError(f"{path.name} in the store is damaged: its SHA-256 is not {sha256}")


def _fetch(pairs: list[tuple[str, Path]]) -> None:
    others: list[str] = []
    for url, target in pairs:
        path = local_file(url)
        if path is None:
            others += [url, str(target)]
            continue
        try:
            # Files of a store never change.
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    if others:
        _fetch_by_flink(others)


def _fetch_by_flink(urls_and_targets: list[str]) -> None:
    # In thread mode, the executable is Java.
    own = Path(sys.executable or "")
    python = str(own) if own.name.startswith("python") else shutil.which("python3") or "python"
    done = subprocess.run(
        [python, "-m", _FETCHER, *urls_and_targets],
        capture_output=True,
        text=True,
        timeout=_FETCH_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise OSError(done.stderr.strip().rpartition("\n")[2] or f"the copy ended with {done.returncode}")


def _make_room(cache: Path, size_bytes: int) -> None:
    """Remove bundles, the longest unused first; a running session keeps its files."""
    limit = int(os.environ.get(LIMIT_VARIABLE) or MODEL_CACHE_BYTES)
    bundles = sorted((path for path in cache.iterdir() if path.is_dir() and path.name[0] != "."), key=_used_at)
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in bundles}
    excess = sum(sizes.values()) + size_bytes - limit
    for path in bundles:
        if excess <= 0 or time.time() - _used_at(path) < _IN_USE_S:
            return
        excess -= sizes[path]
        shutil.rmtree(path, ignore_errors=True)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
