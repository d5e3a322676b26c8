"""Hooks of mkdocs: the reference pages are written before each build."""

import runpy
from pathlib import Path
from typing import Any


def on_pre_build(**_: Any) -> None:
    """Write the reference pages from the code."""
    runpy.run_path(str(Path(__file__).with_name("generate.py")))["main"]()
