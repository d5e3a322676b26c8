"""Programs of Debian's Prometheus."""

import shutil
import subprocess
from pathlib import Path


def prometheus_folder(folder: Path) -> Path:
    """Returns the folder of `prometheus` and `promtool`, unpacked in a folder if the machine has none."""
    if found := shutil.which("promtool"):
        return Path(found).parent
    subprocess.run(["apt-get", "download", "prometheus"], cwd=folder, check=True, capture_output=True)
    [package] = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return folder / "usr/bin"
