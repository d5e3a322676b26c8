import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, build

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_one_package(wheel: Path) -> None:
    assert {name.split("/")[0] for name in files_of(wheel)} == {"anabranch", "anabranch-0.1.0.dist-info"}


def test_wheel_holds_every_source_file(wheel: Path) -> None:
    suffixes = {".py", ".pyi", ".java", ".proto", ".typed", ".css", ".js"}
    folders = {name: ROOT / "anabranch" / name for name in ("schemas", "operators", "partition", "flink_job")}
    expected = {f"anabranch/{path.relative_to(ROOT / 'anabranch')}" for path in (ROOT / "anabranch").rglob("*")}
    for name, folder in folders.items():
        assert folder.is_symlink()
        expected |= {f"anabranch/{name}/{path.relative_to(folder.resolve())}" for path in folder.resolve().rglob("*")}
    held = files_of(wheel)
    assert {name for name in expected if Path(name).suffix in suffixes} == {
        name for name in held if Path(name).suffix in suffixes
    }
    assert held["anabranch/schemas/wire/codec.py"] == (ROOT / "schemas" / "wire" / "codec.py").read_bytes()
    assert held["anabranch/py.typed"] == b""


def test_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    assert files_of(build(source, tmp_path / "wheel", "--wheel")) == files_of(wheel)
