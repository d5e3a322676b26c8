"""Docstrings and comments of the product keep to the house style, package by package."""

import ast
import functools
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "operators", "partition", "flink_job", "anabranch", "bench", "examples", "deploy")
WH_START = re.compile(r"(?:what|who|whoever|whatever|whose|which|where|how|when|whom|whether)\b", re.IGNORECASE)
MAX_WH_STARTS = 0.02
MAX_WORDS_PER_LINE = 1.0
MAX_TEST_NAME_CHARACTERS = 60
#: `test`, and a unit, a condition and a result.
LEAST_TEST_NAME_PARTS = 4


@dataclass
class Prose:
    """Docstrings and comments of a package, and its number of lines."""

    docstrings: list[str] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    lines: int = 0

    def add(self, source: str) -> None:
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
        self.docstrings += filter(None, map(ast.get_docstring, nodes))
        self.comments += comments_of(source)
        self.lines += source.count("\n")

    def words_per_line(self) -> float:
        return sum(len(text.split()) for text in (*self.docstrings, *self.comments)) / self.lines

    def wh_starts_of_docstrings(self) -> float:
        return share(self.docstrings)

    def wh_starts_of_sentences(self) -> float:
        return share([found for text in (*self.docstrings, *self.comments) for found in sentences(text)])


def comments_of(source: str) -> Iterator[str]:
    """Yields each comment, with the lines of one that goes on joined."""
    joined: list[str] = []
    last_line = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = re.sub(r"\s*#?\s*(?:noqa|type:).*", "", token.string.lstrip("#: ").strip())
        if token.type != tokenize.COMMENT or not text:
            continue
        if token.start[0] != last_line + 1 and joined:
            yield " ".join(joined)
            joined = []
        joined.append(text)
        last_line = token.start[0]
    if joined:
        yield " ".join(joined)


def sentences(text: str) -> list[str]:
    flat = re.sub(r"\s+", " ", re.sub(r"\n\s*\n", ". ", text))
    return [part for part in re.split(r"(?<=[.;:!?])\s+(?=[A-Z`\"])", flat) if len(part.split()) >= 3]


def share(texts: list[str]) -> float:
    return sum(WH_START.match(text) is not None for text in texts) / max(1, len(texts))


def sources(package: str) -> list[Path]:
    # The links below `anabranch` are not followed.
    return [path for path in sorted((ROOT / package).rglob("*.py")) if not path.name.endswith("_pb2.py")]


@functools.cache
def prose_of(package: str) -> Prose:
    found = Prose()
    for path in sources(package):
        found.add(path.read_text())
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_package_sentences_seldom_start_with_wh_words(package: str) -> None:
    assert prose_of(package).wh_starts_of_docstrings() <= MAX_WH_STARTS
    assert prose_of(package).wh_starts_of_sentences() <= MAX_WH_STARTS


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_one_word_of_prose_per_line(package: str) -> None:
    # To two places, as the limit is given.
    assert round(prose_of(package).words_per_line(), 2) <= MAX_WORDS_PER_LINE


def test_product_class_names_are_unique() -> None:
    paths = [path for package in PACKAGES for path in sources(package)]
    trees = (ast.parse(path.read_text()) for path in paths)
    # Classes inside functions and classes, too.
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert len(names) > 200
    assert [name for name, number in names.items() if number > 1] == []


def is_clear(test_name: str) -> bool:
    return len(test_name) <= MAX_TEST_NAME_CHARACTERS and len(test_name.split("_")) >= LEAST_TEST_NAME_PARTS


def test_names_of_tests_say_unit_condition_and_result() -> None:
    trees = {path: ast.parse(path.read_text()) for path in sources("tests")}
    names = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    assert [name for name in names if not is_clear(name.rpartition("::")[2])] == []
    assert not is_clear("test_it_works")
    assert not is_clear(f"test_window_closes_{'very_' * 10}late")


def test_prose_planted_wh_starts_are_measured() -> None:
    prose = Prose()
    prose.add('"""What waits, most urgent first."""\n# Where it is\n# no record, nothing comes of it. It is dropped.\n')
    assert prose.wh_starts_of_docstrings() == 1
    assert prose.wh_starts_of_sentences() == 2 / 3
    assert prose.words_per_line() == 17 / 3
