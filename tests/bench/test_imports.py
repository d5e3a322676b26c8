"""Importing the benchmark starts nothing; and what starts it needs no PyFlink, which only systems do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

PROBE = """
import importlib, pkgutil, sys, threading
import psutil
import bench
import bench.__main__
from bench.scenarios.base import all_scenarios
assert len(all_scenarios()) > 10
assert "pyflink" not in sys.modules
for module in pkgutil.walk_packages(bench.__path__, "bench."):
    if not module.name.endswith(("__main__", "mlserver_runtime")):  # that one is MLServer's to import
        importlib.import_module(module.name)
assert threading.active_count() == 1, threading.enumerate()
assert not psutil.Process().children()
assert not psutil.Process().net_connections()
"""


@pytest.mark.slow
def test_import_all_modules_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
