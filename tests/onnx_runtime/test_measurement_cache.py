"""The user's cache; `tests/operators/test_calibration.py` has caches that are broken, shared, or nowhere."""

from pathlib import Path

import pytest

from anabranch.onnx_runtime.measurement_cache import cached_measurement


def ask(cache: Path, kind: str, *depends_on: object) -> list[int] | None:
    """Returns the cached value, and caches `[1]`."""
    with cached_measurement(kind, depends_on, list[int], {"XDG_CACHE_HOME": str(cache)}) as cached:
        before = cached.measured
        cached.measured = [1]
    return before


def test_measurement_is_cached_by_its_key(tmp_path: Path) -> None:
    assert ask(tmp_path, "a", "model", 8) is None
    assert ask(tmp_path, "a", "model", 8) == [1]
    others = [ask(tmp_path, "a", "model", 9), ask(tmp_path, "a", "other", 8), ask(tmp_path, "b", "model", 8)]
    assert others == [None, None, None]
    assert sorted(folder.name for folder in (tmp_path / "anabranch").iterdir()) == ["a", "b"]


def test_measurement_new_value_replaces_old(tmp_path: Path) -> None:
    assert ask(tmp_path, "a", "model") is None
    with cached_measurement("a", ["model"], list[int], {"XDG_CACHE_HOME": str(tmp_path)}) as cached:
        cached.measured = [7, 7]
    assert ask(tmp_path, "a", "model") == [7, 7]


def test_measurement_of_other_type_is_ignored(tmp_path: Path) -> None:
    with cached_measurement("a", ["model"], str, {"XDG_CACHE_HOME": str(tmp_path)}) as cached:
        cached.measured = "text"
    assert ask(tmp_path, "a", "model") is None


def test_measurement_failure_stores_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="half-way"),
        cached_measurement("a", ["model"], list[int], {"XDG_CACHE_HOME": str(tmp_path)}),
    ):
        raise ValueError("half-way")
    assert ask(tmp_path, "a", "model") is None


def test_measurement_default_folder_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with cached_measurement("a", ["model"], list[int], {}) as cached:
        cached.measured = [2]
    assert len(list((tmp_path / ".cache" / "anabranch" / "a").iterdir())) == 1
