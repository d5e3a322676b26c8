"""The class path of Flink's processes, as one folder of links."""

import contextlib
import hashlib
import shutil
import tempfile
from pathlib import Path

from anabranch.flink_job.installation.flink_distribution import flink_home
from anabranch.flink_job.installation.jars import codec_jars, connector_jar, share_dir
from anabranch.flink_job.installation.java_compiler import java_jar


def flink_lib_dir() -> Path:
    """Return a folder of links to Flink's jars, the Kafka connector, codecs and the job's Java.

    Its name is a digest, so that running processes keep theirs after an upgrade.
    """
    home = flink_home()
    jars = [
        *sorted((home / "lib").glob("*.jar")),
        *sorted((home / "opt").glob("flink-python*.jar")),
        connector_jar(),
        *codec_jars(),
        java_jar(),
    ]
    digest = hashlib.sha256("\n".join(str(jar) for jar in jars).encode()).hexdigest()[:12]
    folder = share_dir() / "flink-lib" / digest
    if not _is_complete(folder, jars):
        _link(folder, jars)
    return folder


def _is_complete(folder: Path, jars: list[Path]) -> bool:
    return all((folder / jar.name).is_file() for jar in jars)


def _link(folder: Path, jars: list[Path]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        made.chmod(0o755)
        for jar in jars:
            (made / jar.name).symlink_to(jar)
        if folder.exists():
            # Other processes may read it.
            for link in made.iterdir():
                link.replace(folder / link.name)
        else:
            # Another process may have been faster.
            with contextlib.suppress(OSError):
                made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
