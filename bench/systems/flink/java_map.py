"""A peer: a Flink job in Java with one session run per record, as in Crayfish.

    Kafka value --> [ RichMapFunction: parse, OrtSession.run, serialise ] --> Kafka key and value

It has our settings of Flink and Kafka, on a MiniCluster in one JVM, with a session on one thread for each task. It
reads the common wire or Crayfish's JSON (`bench.systems.flink.crayfish_wire`).
"""

import os
import subprocess
import tempfile
from pathlib import Path

from anabranch.flink_job import installation
from bench.harness.messages import ServeCommand
from bench.systems.registry import CRAYFISH
from deploy import jars

_JAVA = Path(__file__).parent / "java"
_LOCK = Path(__file__).with_name("jars.lock")
_TOOLS = jars.LOCK.parents[1] / ".tools"
_JARS = _TOOLS / "peers" / "jars"
#: Packages that Flink's own scripts open.
_OPENED = ("java.lang", "java.net", "java.nio", "java.util")


def bring() -> None:
    """Fetch the jars that the job needs, and compile it.

    Raises:
        JarsError: A jar is not available, or not the locked one.
        InstallationError: Flink, Java or its compiler is missing, or does not fit the sources.
    """
    fetching = [_TOOLS / "jgo" / "bin" / "python", jars.__file__, "fetch", "--lock", _LOCK, "--to", _JARS]
    try:
        done = subprocess.run([str(word) for word in fetching], capture_output=True, text=True, check=False)
    except OSError as error:
        raise jars.JarsError(f"no jgo to fetch jars with ({error}): run `make setup`") from error
    if done.returncode:
        raise jars.JarsError(done.stderr.strip())
    _job_jar()


def run(command: ServeCommand) -> None:
    """Become the job's JVM, which runs until it is stopped."""
    from bench.systems.anabranch_job import config_of, peer_options  # noqa: PLC0415 - PyFlink comes with it, and `needs` does without

    options = {
        "rest.port": "0",
        "rest.bind-address": "127.0.0.1",
        "taskmanager.numberOfTaskSlots": str(command.parallelism),
        "execution.checkpointing.dir": Path(tempfile.mkdtemp(prefix="bench-checkpoints-")).as_uri(),
    } | {name: value for name, value in peer_options(config_of(command)).items() if not name.startswith("python.")}
    java = installation.find_java() / "bin" / "java"
    class_path = [*installation.flink_lib_dir().glob("*.jar"), *_libraries(), _job_jar()]
    arguments = [
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
        f"-Dlog4j.configurationFile={installation.flink_home() / 'conf' / 'log4j-console.properties'}",
        f"-Dlog.file={Path(os.environ.get('FLINK_LOG_DIR', tempfile.gettempdir())) / 'java-flink.log'}",
        # ONNX Runtime unpacks its library there.
        f"-Djava.io.tmpdir={tempfile.gettempdir()}",
        "-cp",
        os.pathsep.join(map(str, class_path)),
        "anabranch.bench.OnnxJob",
        "crayfish" if command.kind == CRAYFISH.kind else "protobuf",
        command.bootstrap_servers,
        command.requests_topic,
        command.responses_topic,
        command.group_id,
        command.repository,
        str(command.parallelism),
        *(f"{name}={value}" for name, value in options.items()),
    ]
    os.execv(java, [str(java), *arguments])  # noqa: S606 - its process id is the system's


def _job_jar() -> Path:
    return installation.compile_java("bench-peers", _JAVA, [installation.connector_jar(), *_libraries()])


def _libraries() -> list[Path]:
    return [_JARS / jar.folder / jar.file_name for jar in jars.read_lock(_LOCK)]
