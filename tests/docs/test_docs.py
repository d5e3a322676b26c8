"""The documentation keeps to the code: links, names, snippets, generated pages and pictures."""

import hashlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import typer

from anabranch.cli import app
from anabranch.flink_job.config import load
from anabranch.flink_job.model_repository.repository import _ModelFile

ROOT = Path(__file__).parents[2]
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- test: ([^>]*?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
WH_START = re.compile(
    r"(?:^|[.:;!?] )(?:what|who|whoever|whatever|whose|which|where|how|when|whom|whether)\b", re.I | re.M
)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _blocks(language: str) -> list[tuple[str, str, str]]:
    found = [(page.name, *block) for page in PAGES for block in BLOCK.findall(page.read_text())]
    return [(page, mark, text) for page, mark, kind, text in found if kind == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", BLOCK.sub("", page.read_text()))
    local = [a or b for a, b in targets if not (a or b).startswith(("http", "#"))]
    assert [target for target in local if not (page.parent / target.split("#")[0]).exists()] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_python_blocks_compile() -> None:
    blocks = _blocks("python")
    assert len(blocks) > 5
    for page, _, text in blocks:
        compile(text, page, "exec")


def test_toml_blocks_load(tmp_path: Path) -> None:
    blocks = _blocks("toml")
    assert len(blocks) > 5
    for page, mark, text in blocks:
        path = tmp_path / "block.toml"
        path.write_text(text)
        if mark == "configuration":
            load(path)
        else:
            assert mark.startswith("model.toml"), page
            msgspec.toml.decode(text, type=_ModelFile)


def test_commands_and_options_exist() -> None:
    commands: Any = typer.main.get_command(app)
    seen = 0
    for page, _, text in _blocks("console"):
        for line in text.splitlines():
            words = re.sub(r"\s+#.*", "", line).removeprefix("$ ").replace(".venv/bin/", "").split()
            if words[:1] == ["anabranch"]:
                command = commands.commands.get(words[1])
                assert command is not None, f"{page}: {line}"
                options = {name for option in command.params for name in option.opts}
                assert {word for word in words if word.startswith("--")} <= options, f"{page}: {line}"
                seen += 1
    assert seen > 20


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for _, _, text in _blocks("console") for name in re.findall(r"^\$ make (\w+)", text, re.MULTILINE)}
    assert named <= targets


@pytest.mark.parametrize("name", ["configuration.md", "model-toml.md", "cli.md", "errors.md", "metrics.md"])
def test_generated_page_is_fresh(name: str) -> None:
    generate = _load("generate")
    expected = f"{generate._GENERATED}\n{generate.PAGES[name]().rstrip()}\n"
    assert (ROOT / "docs/reference" / name).read_text() == expected, "run: python docs/generate.py"


def test_remedies_cover_all_wire_errors() -> None:
    generate = _load("generate")
    assert {error.code for error in generate.wire_errors()} == set(generate.REMEDIES)


@pytest.mark.parametrize("source", sorted((ROOT / "docs/pictures").glob("*.dot")), ids=lambda path: path.stem)
def test_picture_is_fresh(source: Path) -> None:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs/pictures/render.py")
    assert spec
    assert spec.loader
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    assert f"sources: {render.source_hash(source)}" in source.with_suffix(".svg").read_text()


def test_quickstart_model_is_what_its_script_writes() -> None:
    from examples.quickstart import make_model  # noqa: PLC0415 - onnx takes a second

    written = make_model.build_model().SerializeToString(deterministic=True)
    stored = make_model.MODEL.read_bytes()
    assert hashlib.sha256(written).digest() == hashlib.sha256(stored).digest()
    assert len(stored) <= 4096


def test_docs_sentences_seldom_start_with_wh_words() -> None:
    prose = "\n".join(BLOCK.sub("", page.read_text()) for page in PAGES if "adr" not in page.parts)
    assert len(WH_START.findall(prose)) <= 0.02 * len(re.findall(r"[.:;!?](?:\s|$)", prose))
