from pathlib import Path

import pytest

from anabranch.demo.files import find_files, standard_library


def test_find_files_order_is_stable(tmp_path: Path) -> None:
    for name in ("b/x", "a/y", "z", "a/__pycache__/c", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_files(tmp_path, 0)
    assert [str(path.relative_to(tmp_path)) for path in found.files] == [
        ".hidden",
        "z",
        "a/y",
        "a/__pycache__/c",
        "b/x",
    ]
    assert (found.unread_folders, found.linked_folders, found.left_out) == (0, 0, 0)


def test_find_files_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "file").write_text("x")
    (inner / "up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(inner / "file")
    found = find_files(tmp_path, 0)
    assert [path.name for path in found.files] == ["link", "file"]
    assert found.linked_folders == 1


def test_find_files_unreadable_folder_is_counted(tmp_path: Path) -> None:
    found = find_files(tmp_path / "missing", 0)
    assert (found.files, found.unread_folders) == ([], 1)


def test_find_files_limit_leaves_files_out(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    found = find_files(tmp_path, 2)
    assert [path.name for path in found.files] == ["a", "b"]
    assert found.left_out == 1


@pytest.mark.slow
def test_find_files_standard_library_has_no_packages() -> None:
    found = find_files(None, 0)
    assert len(found.files) > 1_000
    parts = {part for path in found.files for part in path.relative_to(standard_library()).parts}
    assert not parts & {"site-packages", "__pycache__"}
