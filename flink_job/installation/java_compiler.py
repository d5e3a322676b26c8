"""Compiles Java sources into cached jars."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from anabranch.flink_job.errors import CompilationFailed
from anabranch.flink_job.installation.flink_distribution import flink_home
from anabranch.flink_job.installation.jars import connector_jar, find_jars, share_dir
from anabranch.flink_job.installation.java_runtime import find_java


def java_jar() -> Path:
    """Return the jar of the job's Java."""
    flink = flink_home()
    tables = (flink / "lib").glob("flink-table-api-java-uber*.jar")
    libraries = [connector_jar(), *sorted((flink / "opt").glob("flink-python*.jar")), *sorted(tables)]
    return compile_java("anabranch", Path(__file__).parents[1] / "java", libraries)


def compile_java(name: str, folder: Path, libraries: list[Path]) -> Path:
    """Return the jar of Java sources; compile it if necessary.

    Args:
        name: Start of the jar's name.
        folder: Java sources, and `META-INF/services`.
        libraries: Jars besides Flink's.

    Raises:
        InstallationError: A part is missing, or the sources do not compile.
    """
    sources = sorted(folder.glob("*.java"))
    compiler = find_jars("compiler", "ecj-*.jar")[-1]
    class_path = [*sorted((flink_home() / "lib").glob("flink-dist-*.jar")), *libraries]
    services = sorted((folder / "META-INF" / "services").glob("*"))
    texts = [f"{path.name}\n{path.read_text()}" for path in (*sources, *services)]
    content = "\n".join([*(jar.name for jar in (compiler, *class_path)), *texts])
    jar = share_dir() / "java" / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.jar"
    if not jar.is_file():
        jar.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=jar.parent) as scratch:
            classes = Path(scratch) / "classes"
            options = ["-17", "-proc:none", "-classpath", os.pathsep.join(map(str, class_path)), "-d", str(classes)]
            done = subprocess.run(
                [str(find_java() / "bin" / "java"), "-jar", str(compiler), *options, *map(str, sources)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                found = (done.stderr or done.stdout).strip()
                raise CompilationFailed(
                    f"{folder} does not compile: run `make setup` for the versions that it needs. {found}"
                )
            for path in services:
                target = classes / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            archive = Path(shutil.make_archive(str(Path(scratch) / "archive"), "zip", classes))
            archive.replace(jar)
    return jar
