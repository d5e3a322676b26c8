"""The pages of the documentation, and the blocks of code in them."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRONT = [
    ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- test: ([^>]*?) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: The page's path, relative to the repository.
        mark: The text of the comment `<!-- test: ... -->` before the block; empty without one.
    """

    page: str
    mark: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a console block, without prompt and comment."""
        lines = [re.sub(r"\s+#.*", "", line) for line in self.text.splitlines()]
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    name = str(page.relative_to(ROOT))
    return [Block(name, *found) for found in _BLOCK.findall(page.read_text())]


def lines_of_own_job(number: int) -> list[str]:
    """Runs a Python block of the page on jobs of one's own; returns the lines that it prints."""
    python = [block for block in blocks(ROOT / "docs/how-to/own-job.md") if block.language == "python"]
    assert len(python) == 2
    command = [sys.executable, "-c", python[number].text]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)
    return ran.stdout.splitlines()


def all_blocks(language: str) -> list[Block]:
    """The blocks of all pages in a language."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def prose(page: Path) -> str:
    """The text of a page without its blocks."""
    return _BLOCK.sub("", page.read_text())


def sentences(text: str) -> list[str]:
    """The sentences of a page without blocks: of paragraphs, headings, list items and table cells."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^\|(.*)\|$", lambda row: "\n\n".join(["", *row[1].split("|"), ""]), text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:[-*+]|\d+\.|#+|>|!!!.*|:\s)\s*", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"[*_]{1,2}(?=\w)|(?<=[\w.])[*_]{1,2}", "", text)
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    parts = [part for paragraph in paragraphs for part in re.split(r"(?<=[.;:!?])\s+", paragraph)]
    return [part for part in parts if len(part.split()) > 2]
