"""Functions of a chain's steps are loaded once, from the file of the job's start."""

import hashlib
from pathlib import Path

import pytest

from anabranch.operators.backends.base import ModelLoadFailed
from anabranch.operators.sessions.step_functions import load_function
from anabranch.schemas.model import FunctionSpec


def written(folder: Path, text: str, name: str = "double") -> FunctionSpec:
    path = folder / "steps.py"
    path.write_text(text)
    return FunctionSpec(str(path), hashlib.sha256(text.encode()).hexdigest(), name)


def test_load_function_of_one_file_shares_a_module(tmp_path: Path) -> None:
    text = "runs = []\nruns.append(1)\ndef double(x):\n    return x * 2, runs\ndef again(x):\n    return x, runs\n"
    double = load_function(written(tmp_path, text))
    again = load_function(written(tmp_path, text, "again"))
    assert double(3) == (6, [1])
    assert again(3)[1] is double(3)[1]


def test_load_function_equal_files_keep_their_folders(tmp_path: Path) -> None:
    text = "from pathlib import Path\ndef double():\n    return Path(__file__).parent.name\n"
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    assert [load_function(written(folder, text))() for folder in folders] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_that_name\n", r"cannot load .*steps\.py: ModuleNotFoundError: .*nothing_of_that_name"),
        ("1 +\n", r"cannot load .*steps\.py: SyntaxError"),
        ("triple = 3\n", r"steps\.py has no function 'double'"),
        ("double = 3\n", r"steps\.py has no function 'double'"),
    ],
)
def test_load_function_unusable_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(ModelLoadFailed, match=reason):
            load_function(written(tmp_path, text))


def test_load_function_changed_file_is_refused(tmp_path: Path) -> None:
    function = written(tmp_path, "def double(x):\n    return x\n")
    Path(function.path).write_text("def double(x):\n    return 2 * x\n")
    with pytest.raises(ModelLoadFailed, match="restart the job"):
        load_function(function)


def test_load_function_that_exits_fails_its_request_only(tmp_path: Path) -> None:
    leave = load_function(written(tmp_path, "import sys\ndef double():\n    sys.exit(3)\n"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"double called sys\.exit\(3\)"):
            leave()
