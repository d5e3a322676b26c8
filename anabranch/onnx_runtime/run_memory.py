"""Bounds the memory that the runs of a process take together, weights aside."""

import os
import threading
from pathlib import Path
from typing import Any

_SHRINK = "memory.enable_memory_arena_shrinkage"
_EXHAUSTED = "Available memory of"
_REFUSED = ("Failed to allocate memory", "bad_alloc")
_CGROUPS = Path("/sys/fs/cgroup")
_lock = threading.Lock()
_limit_bytes = 0


def limit_run_memory(runtime: Any, limit_bytes: int) -> int:
    """Make one arena for all sessions of this process; return its limit, which is that of the first call."""
    global _limit_bytes  # noqa: PLW0603 - ONNX Runtime has one environment for the process
    with _lock:
        if not _limit_bytes:
            memory = runtime.OrtMemoryInfo(
                "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
            )
            # As a session's own arena, it grows by doubling: by need, sizes that grow would leave a piece each.
            runtime.create_and_register_allocator(memory, runtime.OrtArenaCfg({"max_mem": limit_bytes}))
            _limit_bytes = limit_bytes
        return _limit_bytes


def half_of_memory(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return half of the memory that this machine or container has, in bytes."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        root = cgroups / controllers
        folder = root / path.lstrip("/")
        # A container may show its own group as the root.
        for group in {folder, *folder.parents, root}:
            if group.is_relative_to(root):
                limits += _limits_of(group)
    return min(limits) // 2


def _limits_of(group: Path) -> list[int]:
    found = []
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (group / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text):
            found.append(int(text))
    return found


def lacks_memory(error: Exception) -> bool:
    """Tell whether a run failed for lack of memory."""
    message = str(error)
    return _EXHAUSTED in message or any(text in message for text in _REFUSED)


def set_shrinking(options: Any) -> None:
    """Let a run with these options free the arena's unused memory at its end, also if it fails."""
    options.add_run_config_entry(_SHRINK, "cpu:0")
