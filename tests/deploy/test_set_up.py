import re
import subprocess
from pathlib import Path

import pytest

from anabranch.flink_job.installation import jars_dir
from deploy.jars import LockedJar, read_lock, sha256_of

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "bench" / "systems"
LOCKS = [ROOT / "requirements.lock", *sorted((ROOT / "deploy").glob("*.lock")), *sorted(PEERS.rglob("*.lock"))]


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_help_is_what_make_says_by_itself() -> None:
    said = make()
    targets = "help setup demo test frameworks zoo lint format docs bench chaos clean lock"
    for target in targets.split():
        assert re.search(rf"^  make {target}\s+\S", said, re.MULTILINE)


def test_every_target_can_be_planned() -> None:
    for target in ("setup", "demo", "test", "frameworks", "zoo", "docs", "bench", "chaos", "clean", "lock"):
        make("--dry-run", target)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_name_no_host(lock: Path) -> None:
    assert not re.search(r"https?:|//|index-url|find-links", lock.read_text())


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock.name != "jars.lock"], ids=lambda lock: lock.name)
def test_every_package_is_pinned_and_hashed(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==\S+ (; .* )?\\\n    --hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_image_has_the_versions_that_are_tested() -> None:
    def pins(lock: Path) -> set[str]:
        return set(re.findall(r"^[a-z0-9._\[\],-]+==\S+", lock.read_text(), re.MULTILINE))

    assert pins(ROOT / "deploy" / "requirements.lock") <= pins(ROOT / "requirements.lock")


def test_jars_are_locked_once_each() -> None:
    jars = read_lock()
    names = [(jar.folder, jar.file_name) for jar in jars]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert [jar.coordinates for jar in jars if jar.folder == "connector"] == [
        "org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2"
    ]


def test_the_jars_here_are_the_locked_ones() -> None:
    for jar in read_lock():
        assert sha256_of(jars_dir() / jar.folder / jar.file_name) == jar.sha256
    files = {path.name for path in (jars_dir() / "kafka").iterdir()}
    assert files == {jar.file_name for jar in read_lock() if jar.folder == "kafka"}


def test_a_jars_name_is_mavens() -> None:
    assert LockedJar("0", "kafka", "org.slf4j:slf4j-api:1.7.36").file_name == "slf4j-api-1.7.36.jar"


def test_ci_sets_up_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    assert re.findall(r"^make (\w+)$", script.read_text(), re.MULTILINE) == ["setup", "test", "frameworks", "zoo"]
