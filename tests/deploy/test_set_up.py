import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from anabranch.flink_job.installation import jars_dir
from deploy.jars import LockedJar, read_lock, sha256_of

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "bench" / "systems"
LOCKS = [ROOT / "requirements.lock", *sorted((ROOT / "deploy").glob("*.lock")), *sorted(PEERS.rglob("*.lock"))]
FIND_PYTHON = ROOT / "deploy" / "find_python.sh"
TARGETS = [
    *("help", "setup", "demo", "test", "unit", "system", "package", "frameworks", "zoo"),
    *("lint", "format", "docs", "bench", "chaos", "clean", "lock"),
]


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_without_target_prints_help() -> None:
    said = make()
    for target in TARGETS:
        assert re.search(rf"^  make {target}\s+\S", said, re.MULTILINE)


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in {"help", "lint", "format"}])
def test_make_target_can_be_planned(target: str) -> None:
    make("--dry-run", target)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_names_no_host(lock: Path) -> None:
    assert not re.search(r"https?:|//|index-url|find-links", lock.read_text())


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock.name != "jars.lock"], ids=lambda lock: lock.name)
def test_lock_pins_and_hashes_every_package(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==\S+ (; .* )?\\\n    --hash=sha256:[0-9a-f]{64}", entry), entry


def test_image_lock_has_the_tested_versions() -> None:
    def pins(lock: Path) -> set[str]:
        return set(re.findall(r"^[a-z0-9._\[\],-]+==\S+", lock.read_text(), re.MULTILINE))

    assert pins(ROOT / "deploy" / "requirements.lock") <= pins(ROOT / "requirements.lock")


def test_jars_lock_has_no_duplicates() -> None:
    jars = read_lock()
    names = [(jar.folder, jar.file_name) for jar in jars]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) for jar in jars)
    assert [jar.coordinates for jar in jars if jar.folder == "connector"] == [
        "com.github.luben:zstd-jni:1.5.6-10",
        "org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2",
    ]
    # The job decompresses with the version that Kafka is tested with.
    assert {jar.coordinates for jar in jars if "zstd" in jar.coordinates} == {"com.github.luben:zstd-jni:1.5.6-10"}


def test_installed_jars_match_the_lock() -> None:
    for jar in read_lock():
        assert sha256_of(jars_dir() / jar.folder / jar.file_name) == jar.sha256
    files = {path.name for path in (jars_dir() / "kafka").iterdir()}
    assert files == {jar.file_name for jar in read_lock() if jar.folder == "kafka"}


def test_jar_file_name_follows_maven() -> None:
    assert LockedJar("0", "kafka", "org.slf4j:slf4j-api:1.7.36").file_name == "slf4j-api-1.7.36.jar"


def fake_python(folder: Path, name: str, version: tuple[int, int]) -> Path:
    """Writes a command that claims to be another version of Python."""
    script = folder / name
    claim = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0); sys.executable = {str(script)!r}; "
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{claim}$2"\n')
    script.chmod(0o755)
    return script


def find_python(folder: Path, uv: str = "false", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder), "PYENV_ROOT": str(folder / "pyenv")}
    return subprocess.run(
        ["/bin/sh", FIND_PYTHON, uv, str(folder / "fetched")],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def hide_system_pythons(folder: Path) -> None:
    """Puts commands that fail, as pyenv's shims of versions that are not selected do, before the system's."""
    for name in ("python3.12", "python3.11", "python3"):
        fake_python(folder, name, (3, 9))


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.12": (3, 12), "python3.11": (3, 11)}, "python3.12"),
        ({"python3.11": (3, 11)}, "python3.11"),
        ({"python3": (3, 11)}, "python3"),
        ({"python3.11": (3, 11), "python3": (3, 14)}, "python3.11"),
        ({"python3.12": (3, 14), "python3": (3, 12)}, "python3"),
    ],
)
def test_find_python_prefers_system(tmp_path: Path, there: dict[str, tuple[int, int]], taken: str) -> None:
    hide_system_pythons(tmp_path)
    for name, version in there.items():
        fake_python(tmp_path, name, version)
    found = find_python(tmp_path)
    assert (found.stdout, found.returncode) == (f"{tmp_path / taken}\n", 0)


def test_find_python_takes_the_named_one(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3.12", (3, 12))
    mine = fake_python(tmp_path, "mine", (3, 11))
    assert find_python(tmp_path, PYTHON=str(mine)).stdout == f"{mine}\n"


def test_find_python_looks_into_pyenv(tmp_path: Path) -> None:
    hide_system_pythons(tmp_path)
    folder = tmp_path / "pyenv" / "versions" / "3.11.9" / "bin"
    folder.mkdir(parents=True)
    fake_python(folder, "python", (3, 11))
    assert find_python(tmp_path).stdout == f"{folder / 'python'}\n"


def test_find_python_fetches_one(tmp_path: Path) -> None:
    hide_system_pythons(tmp_path)
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$UV_PYTHON_INSTALL_DIR $UV_PYTHON_DOWNLOADS $*"\n')
    uv.chmod(0o755)
    installed, found = find_python(tmp_path, str(uv)).stdout.splitlines()
    assert installed == f"{tmp_path / 'fetched'} automatic python install --quiet --no-bin 3.12"
    assert found == f"{tmp_path / 'fetched'} automatic python find --managed-python 3.12"


def test_find_python_without_any_says_what_to_install(tmp_path: Path) -> None:
    hide_system_pythons(tmp_path)
    found = find_python(tmp_path)
    assert (found.stdout, found.returncode) == ("", 1)
    last = found.stderr.splitlines()[-1]
    assert last.endswith("install python3.12 or python3.11")


def test_find_python_finds_this_one() -> None:
    found = find_python(Path(os.devnull), PYTHON=sys.executable)
    assert found.stdout == f"{sys.executable}\n"


def test_ci_script_sets_up_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    steps = re.findall(r"^make (\w+)", script.read_text(), re.MULTILINE)
    assert steps == ["setup", "test", "stack", "recovery", "package", "peers", "frameworks", "zoo"]


def test_pre_commit_runs_what_lint_runs() -> None:
    hooks = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    entries = {hook["entry"].replace(" --force-exclude", "") for hook in hooks if "stages" not in hook}
    recipe = make("--dry-run", "--always-make", "lint")
    linted = re.findall(r"^(\.venv/bin/(?:ruff|mypy)\b[^\n]*)", recipe, re.MULTILINE)
    assert {re.sub(r" --quiet| \.$", "", line) for line in linted} == entries
    assert [hook["entry"] for hook in hooks if hook.get("stages") == ["pre-push"]] == ["make unit"]


def test_pre_commit_configuration_is_valid() -> None:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pre_commit",
        "validate-config",
        ROOT / ".pre-commit-config.yaml",
    ]
    subprocess.run(command, check=True)
