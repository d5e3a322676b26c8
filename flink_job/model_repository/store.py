"""Copies served models into a store of files by hash, from which every TaskManager loads them.

`anabranch.operators.sessions.model_cache` has its layout. `manifests/HASH.json` lists the bundles of a repository.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from anabranch.flink_job.config import Config
from anabranch.flink_job.errors import ModelStoreUnusable
from anabranch.flink_job.flows.flow_chains import with_chains
from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.sessions.model_cache import (
    BundleFile,
    file_url,
    hash_of,
    is_stored,
    local_file,
    stored_path,
)
from anabranch.ready_steps.options import files_of
from anabranch.schemas.model import Catalog, FunctionSpec, LeftOut, ModelSpec, StageSpec

#: A job's name does not begin with a dot.
_FOLDER = ".models"


class _Files(Protocol):
    def size_bytes(self, url: str) -> int | None: ...

    def copy(self, source: str, target: str) -> None: ...


class StoredModels(msgspec.Struct, frozen=True):
    """Models in a store.

    Attributes:
        catalog: With paths in the store.
        manifest: URL of the list of their bundles.
        copied_bytes: Size of files that the store did not have.
    """

    catalog: Catalog
    manifest: str
    copied_bytes: int


def store_of(config: Config) -> str:
    """Return the URL of a job's store; empty for a folder that ends with this process."""
    beside = f"{config.job.checkpoint_dir.rstrip('/')}/{_FOLDER}" if config.job.checkpoint_dir else ""
    url = config.models.store.rstrip("/") or beside
    # TaskManagers run in another folder.
    return url if ":" in url or not url else str(Path(url).absolute())


def store_models(catalog: Catalog, config: Config) -> StoredModels:
    """Copy the files of all models, and those of flows' steps, as far as the store lacks them.

    Raises:
        ModelStoreUnusable: The store cannot be written.
        ConfigError: A flow's step cannot be made.
    """
    url = store_of(config)
    if not url:
        folder = tempfile.mkdtemp(prefix="anabranch-models-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        url = Path(folder).as_uri()
    return ModelStore(url, config.job.flink).add(with_chains(catalog, config.flow, "the configuration"))


class ModelStore:
    """A store at a URL of Flink's file systems; `options` are Flink's for it."""

    def __init__(self, url: str, options: dict[str, str]) -> None:
        self.url = url
        self._files: _Files = _LocalFiles()
        #: Of temporary files, which a local store renames.
        self._folder = local_file(url)
        if self._folder is None:
            # Starts PyFlink's JVM.
            from anabranch.flink_job.model_repository.flink_files import FlinkFiles  # noqa: PLC0415

            self._files = FlinkFiles(options)
        else:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ModelStoreUnusable(f"cannot make {self._folder}: {error.strerror}; set [models] store") from None
        self._bundles: dict[tuple[Path, tuple[str, ...]], str] = {}
        self._copied_bytes = 0

    def add(self, catalog: Catalog) -> StoredModels:
        """Copy models, and leave out those that change meanwhile."""
        models: dict[str, dict[str, ModelSpec]] = {}
        left_out = []
        for versions in catalog.models.values():
            for model in versions.values():
                try:
                    models.setdefault(model.name, {})[model.version] = self._add(model)
                except ModelLoadFailed as error:
                    left_out.append(LeftOut(model.name, model.version, error.message))
        stored = replace(catalog, models=models)
        stored = stored.without(left_out) if left_out else stored
        taken = [model for versions in stored.models.values() for model in versions.values()]
        listed = sorted((model.name, model.version, *_names(model)) for model in taken)
        manifest = self._add_text("manifests", msgspec.json.encode(listed))
        return StoredModels(stored, manifest, self._copied_bytes)

    def _add(self, model: ModelSpec) -> ModelSpec:
        return replace(
            model,
            path=self._add_model(model.path, model.sha256) if model.path else "",
            session=msgspec.structs.replace(
                model.session, custom_ops=tuple(self._add_library(each) for each in model.session.custom_ops)
            ),
            stages=tuple(self._add_stage(stage) for stage in model.stages),
        )

    def _add_library(self, library: str) -> str:
        path = Path(library)
        is_file = path.is_absolute() and not is_stored(library)
        return self._add_bundle(path.parent, [path.name], path.name, None) if is_file else library

    def _add_stage(self, stage: StageSpec) -> StageSpec:
        return replace(
            stage,
            path=self._add_model(stage.path, stage.sha256),
            before=self._add_function(stage.before),
            after=self._add_function(stage.after),
        )

    def _add_model(self, path: str, sha256: str) -> str:
        if is_stored(path):
            return path
        file = Path(path)
        return self._add_bundle(file.parent, [file.name, *external_data(file)], file.name, sha256)

    def _add_function(self, function: FunctionSpec | None) -> FunctionSpec | None:
        if function is None or not function.path or is_stored(function.path):
            return function
        file = Path(function.path)
        if function.ready is not None:
            names = [file.name, *files_of(function.ready)]
        else:
            # A module may read files beside its own.
            names = [str(path.relative_to(file.parent)) for path in _visible_files(file.parent)]
        return replace(function, path=self._add_bundle(file.parent, names, file.name, function.sha256))

    def _add_bundle(self, folder: Path, names: list[str], main: str, sha256: str | None) -> str:
        key = (folder, tuple(sorted(set(names))))
        bundle = self._bundles.get(key)
        if bundle is None:
            files = [self._add_file(folder / name, name, sha256 if name == main else None) for name in key[1]]
            url = self._add_text("bundles", msgspec.json.encode(files))
            bundle = self._bundles[key] = url.rsplit("/", 1)[-1].removesuffix(".json")
        return stored_path(self.url, bundle, main)

    def _add_file(self, path: Path, name: str, expected: str | None) -> BundleFile:
        try:
            sha256, size = hash_of(path), path.stat().st_size
            if expected is not None and sha256 != expected:
                raise ModelLoadFailed(f"{path} changed while it was read: run again when it is complete")
            url = file_url(self.url, sha256)
            if self._files.size_bytes(url) != size:
                self._copy(path, url, sha256)
                self._copied_bytes += size
        except OSError as error:
            raise ModelLoadFailed(f"cannot copy {path} to {self.url}: {error.strerror}") from None
        return BundleFile(name, sha256, size)

    def _copy(self, path: Path, url: str, sha256: str) -> None:
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=self._folder) as folder:
            # The copy is what was hashed, also if the file changes now.
            copy = Path(folder) / "file"
            if hash_of(path, copy) != sha256:
                raise ModelLoadFailed(f"{path} changed while it was read: run again when it is complete")
            self._files.copy(f"file://{copy}", url)

    def _add_text(self, kind: str, text: bytes) -> str:
        sha256 = hashlib.sha256(text).hexdigest()
        url = f"{self.url}/{kind}/{sha256}.json"
        if self._files.size_bytes(url) != len(text):
            with tempfile.TemporaryDirectory(prefix=".copy-", dir=self._folder) as folder:
                path = Path(folder) / "text"
                path.write_bytes(text)
                self._files.copy(f"file://{path}", url)
        return url


class _LocalFiles:
    def size_bytes(self, url: str) -> int | None:
        try:
            return _path(url).stat().st_size
        except OSError:
            return None

    def copy(self, source: str, target: str) -> None:
        """Move a temporary file of the same file system."""
        half, path = Path(source.removeprefix("file://")), _path(target)
        path.parent.mkdir(exist_ok=True)
        half.chmod(0o444)
        with half.open("rb") as file:
            os.fsync(file.fileno())
        half.replace(path)


def _path(url: str) -> Path:
    path = local_file(url)
    if path is None:
        raise ModelStoreUnusable(f"{url} is not a folder of this machine: name one in [models] store")
    return path


def _names(model: ModelSpec) -> Iterator[str]:
    """Yield the bundles and files of a model."""
    functions = [each for stage in model.stages for each in (stage.before, stage.after) if each is not None]
    for path in (model.path, *(stage.path for stage in model.stages), *(each.path for each in functions)):
        yield path.rpartition("/bundles/")[2]


def external_data(path: Path) -> list[str]:
    """Return the files of a model's weights, by path in its folder."""
    if all(other.name == path.name for other in path.parent.iterdir()):
        return []
    import onnx  # noqa: PLC0415 - slow, and most models have one file

    from anabranch.partition.graph.external_data import is_external, tensors_in_nodes  # noqa: PLC0415 - the same

    model = onnx.load(str(path), load_external_data=False)
    functions = (tensor for function in model.functions for tensor in tensors_in_nodes(function.node))
    tensors = (*model.graph.initializer, *tensors_in_nodes(model.graph.node), *functions)
    found = {
        entry.value
        for tensor in tensors
        if is_external(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    unsafe = [name for name in found if name.startswith("/") or ".." in Path(name).parts]
    if unsafe:
        raise ModelLoadFailed(f"{path} has weights outside its folder, {unsafe[0]}: move them beside the model")
    return sorted(found)


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_dir():
            yield from _visible_files(path)
        else:
            yield path
