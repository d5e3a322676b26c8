import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ANABRANCH = Path(sys.executable).with_name("anabranch")
FILES = 40

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several types, an empty one, and links."""
    made = tmp_path / "files"
    made.mkdir()
    for number in range(FILES):
        kind = (
            f"import os\n\n\ndef f{number}(x):\n    return os.getcwd() + x\n",
            f'{{"number": {number}, "a": [1, 2]}}\n',
        )
        (made / f"{number:02}").write_text(kind[number % 2] * 5)
    (made / "empty").touch()
    (made / "round").symlink_to(made)
    (made / "broken").symlink_to(made / "nowhere")
    return made


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return subprocess.Popen(
        [str(ANABRANCH), "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary), "COLUMNS": "200"},
        start_new_session=True,
    )


def left_behind(tmp_path: Path) -> list[str]:
    """Returns processes and files of a demo."""
    found = [str(path) for path in (tmp_path / "tmp").iterdir() if path.name.startswith("anabranch")]
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(tmp_path / "tmp") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.cmdline()}")
        except psutil.Error:
            continue
    return found


def assert_nothing_left(tmp_path: Path) -> None:
    # PyFlink's JVM ends shortly after its parent.
    give_up_s = time.monotonic() + 10
    while (found := left_behind(tmp_path)) and time.monotonic() < give_up_s:
        time.sleep(0.1)
    assert not found


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


@pytest.mark.stack
def test_demo_command_every_answer_is_right(tmp_path: Path, folder: Path) -> None:
    figures_path = tmp_path / "figures.json"
    process = start(tmp_path, "--input", str(folder), "--figures", str(figures_path))
    output = "".join(lines_of(process))
    assert process.wait() == 0, output
    assert_nothing_left(tmp_path)
    figures = json.loads(figures_path.read_text())
    assert figures["requests"] == figures["answered"] > FILES + 1
    assert figures["http_requests"] == FILES
    assert figures["mismatches"] == 0
    assert figures["errors_sent"] == figures["errors_answered"] >= 10
    # As many as take 100 ms each, and of 16 rows at most.
    assert figures["shards"] >= figures["large_rows"] / 16 == 64
    assert figures["tasks"] == 2
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["throughput_rps"] > 0
    assert figures["magika_agreements"] == figures["magika_compared"] == FILES
    assert (figures["files"], figures["files_by_rule"], figures["files_unread"]) == (FILES + 1, 1, 1)
    assert figures["types"] == {"python": FILES // 2, "jsonl": FILES // 2, "empty": 1}
    for expected in ("Starting a Kafka broker", "http://127.0.0.1:", "1 links to folders", "Every answer is right."):
        assert expected in output


@pytest.mark.parametrize(
    ("after", "number"),
    [
        pytest.param("Starting a Kafka broker", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("Submitting the job", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("The job answers", signal.SIGINT, marks=pytest.mark.recovery),
    ],
)
def test_demo_command_interrupted_leaves_nothing(
    tmp_path: Path, folder: Path, after: str, number: signal.Signals
) -> None:
    process = start(tmp_path, "--input", str(folder))
    output = ""
    for line in lines_of(process):
        output += line
        if after in line:
            time.sleep(0.5)
            # A terminal signals the whole session; an impatient user presses twice.
            os.killpg(process.pid, number)
            time.sleep(0.2)
            os.killpg(process.pid, number)
            after = "never again"
    assert process.wait() == 130, output
    assert "Interrupted; everything that was started is stopped." in output
    assert "Traceback" not in output
    assert_nothing_left(tmp_path)


@pytest.mark.long
def test_demo_command_killed_leaves_no_process(tmp_path: Path, folder: Path) -> None:
    process = start(tmp_path, "--input", str(folder))
    for line in lines_of(process):
        if "The job answers" in line:
            process.kill()
    process.wait()
    give_up_s = time.monotonic() + 10
    while time.monotonic() < give_up_s and len(left_behind(tmp_path)) > 1:
        time.sleep(0.1)
    # A killed process cannot remove its folder.
    assert [Path(found).parent for found in left_behind(tmp_path)] == [tmp_path / "tmp"]


@pytest.mark.stack
def test_demo_command_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "empty").touch()
    process = start(tmp_path, "--input", str(tmp_path / "files"))
    output = "".join(lines_of(process))
    assert process.wait() == 1
    assert "has no file that needs Magika's model: name another folder with --input" in output
    assert "Traceback" not in output
    assert_nothing_left(tmp_path)


@pytest.mark.slow
def test_demo_command_missing_folder_is_refused() -> None:
    result = subprocess.run([str(ANABRANCH), "demo", "--input", "nowhere"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "'nowhere' does not exist" in result.stderr
