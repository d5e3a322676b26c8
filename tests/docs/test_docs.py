"""The documentation keeps to the code: links, names, snippets, generated pages and pictures."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from anabranch.flink_job.config import load
from anabranch.flink_job.model_repository.repository import _ModelFile
from anabranch.schemas import latency_breakdown
from tests.docs import checkers
from tests.docs.pages import PAGES, ROOT, all_blocks, prose, sentences

ADRS = sorted((ROOT / "docs/adr").glob("0*.md"))
WH_START = re.compile(r"(?:what|who|whoever|whatever|whose|which|where|how|when|whom|whether)\b", re.IGNORECASE)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_exist(page: Path) -> None:
    assert checkers.broken_links(page.parent, prose(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_backticks_exist(page: Path) -> None:
    assert checkers.unknown_names(page.parent, prose(page)) == []


@pytest.mark.parametrize(
    ("planted", "caught"),
    [
        ("`operators/core/nothing.py`", "operators/core/nothing.py"),
        ("`nothing.py`", "nothing.py"),
        ("`operators/nothing`", "operators/nothing"),
        ("`anabranch.nothing`", "anabranch.nothing"),
        ("`operators.core.metrics.Nothing`", "operators.core.metrics.Nothing"),
        ("`scheduling.nothing_ms`", "scheduling.nothing_ms"),
        ("`NothingRouter`", "NothingRouter"),
        ("`route_nothing()`", "route_nothing()"),
        ("`--nothing`", "--nothing"),
        ("`anabranch nothing`", "anabranch nothing"),
        ("`anabranch up --nothing`", "anabranch up --nothing"),
        ("`make nothing`", "make nothing"),
    ],
)
def test_checker_wrong_name_is_caught(planted: str, caught: str) -> None:
    assert checkers.unknown_names(ROOT, f"Right: `Client`, `operators/core`, `anabranch up`. Wrong: {planted}.") == [
        caught
    ]


def test_checker_broken_link_is_caught() -> None:
    text = '[right](docs/index.md#anabranch) [wrong](docs/nothing.md) <img src="docs/nothing.svg">'
    assert checkers.broken_links(ROOT, text) == ["docs/nothing.md", "docs/nothing.svg"]


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("anabranch up --task-managers 4", []),
        ("anabranch up --task-manager 4", ["--task-manager"]),
        (".venv/bin/anabranch ups", ["anabranch ups"]),
        ("VARIABLE=1 anabranch infer m --inptu x.npy", ["--inptu"]),
        ("make nothing", ["nothing"]),
    ],
)
def test_checker_wrong_command_is_caught(line: str, caught: list[str]) -> None:
    assert checkers.unknown_commands(line) == caught


@pytest.mark.parametrize(
    ("program", "caught"),
    [
        ("from anabranch import Client", []),
        ("from anabranch import Cleint", ["anabranch.Cleint"]),
        ("import anabranch.clinet", ["anabranch.clinet"]),
        ("from anabranch import Client\nwith Client() as c:\n    c.infre('m', {})", ["Client.infre"]),
        (
            "from anabranch import Client\nwith Client() as c:\n    c.infer('m', {}, dead_line=1)",
            ["Client.infer(dead_line)"],
        ),
    ],
)
def test_checker_wrong_program_is_caught(program: str, caught: list[str]) -> None:
    assert checkers.unknown_in_program(program) == caught


def test_architecture_names_all_modules_with_one_line_each() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    listed = checkers.modules_in_tables(text)
    tree = {
        str(path.relative_to(ROOT))
        for package in ("schemas", "operators", "partition", "flink_job", "anabranch", "bench")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(tree ^ set(listed)) == [], "run: python docs/generate.py"
    assert [module for module, words in listed.items() if not 10 <= len(words) <= 120] == []


@pytest.mark.slow
def test_architecture_stale_tables_are_mended() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    line = "| `router.py` | Decides for each request: queue, split, or send to stages |\n"
    stale = text.replace(line, "| `gone.py` | Is not there |\n")
    assert stale != text
    assert "operators/core/scheduling/router.py" not in checkers.modules_in_tables(stale)
    mended = checkers.modules_in_tables(_load("generate").module_tables(stale))
    assert mended.keys() == checkers.modules_in_tables(text).keys()


@pytest.mark.slow
def test_architecture_folder_without_table_is_refused() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().replace("#### `operators/core/scheduling`", "#### Scheduling")
    with pytest.raises(LookupError, match="no table for operators/core/scheduling"):
        _load("generate").module_tables(text)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_readme_figures_are_those_of_the_benchmark() -> None:
    summary = json.loads((ROOT / "bench/results/summary.json").read_text())
    rows = next(each["rows"] for each in summary if each["scenario"] == "throughput")
    rates = {row["system"]: row["metrics"]["rate_per_s"]["median"] for row in rows if row["workload"] == "ffnn 1"}
    systems = ("anabranch, thread, 1 task", "naive PyFlink map, thread, 1 task", "confluent-kafka worker")
    speed = (ROOT / "README.md").read_text().partition("## Speed")[2].partition("\n## ")[0]
    assert re.findall(r"\d+,\d{3}", speed) == [f"{rates[system]:,.0f}" for system in systems]


def test_python_blocks_compile_and_use_what_exists() -> None:
    blocks = all_blocks("python")
    assert len(blocks) > 5
    for block in blocks:
        compile(block.text, block.page, "exec")
        assert checkers.unknown_in_program(block.text) == [], block.page


def test_toml_blocks_load(tmp_path: Path) -> None:
    blocks = all_blocks("toml")
    assert len(blocks) > 5
    for block in blocks:
        path = tmp_path / "block.toml"
        path.write_text(block.text)
        if block.mark == "configuration":
            load(path)
        else:
            assert block.mark.startswith("model.toml"), block.page
            msgspec.toml.decode(block.text, type=_ModelFile)


def test_commands_and_options_exist() -> None:
    commands = [(block.page, line) for block in all_blocks("console") for line in block.commands]
    assert len(commands) > 25
    assert [(page, line) for page, line in commands if checkers.unknown_commands(line)] == []


def test_blocks_run_or_say_why_not() -> None:
    marks = [(block.page, block.mark) for language in ("console", "python") for block in all_blocks(language)]
    assert [page for page, mark in marks if mark != "run" and not mark.startswith("check, ")] == []
    assert len([mark for _, mark in marks if mark == "run"]) > 15


def test_pages_with_blocks_to_run_are_followed_by_test_run() -> None:
    marked = {block.page for language in ("console", "python") for block in all_blocks(language) if block.mark == "run"}
    followed = set(re.findall(r'follow\("([^"]+)"', (ROOT / "tests/docs/test_run.py").read_text()))
    assert followed == marked


@pytest.mark.parametrize("name", ["configuration.md", "model-toml.md", "cli.md", "errors.md", "metrics.md"])
def test_generated_page_is_fresh(name: str) -> None:
    generate = _load("generate")
    expected = f"{generate._GENERATED}\n{generate.PAGES[name]().rstrip()}\n"
    assert (ROOT / "docs/reference" / name).read_text() == expected, "run: python docs/generate.py"


@pytest.mark.parametrize("name", ["configuration.md", "model-toml.md"])
def test_generated_page_explains_every_key(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|(.*)\|$", (ROOT / "docs/reference" / name).read_text(), re.M)
    assert len(rows) > 20
    assert [key for key, _, _, meaning in rows if not meaning.strip()] == []


def test_generated_bounds_are_those_of_the_fields() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text()
    assert "| `max_parallelism` | integer from 1 to 32,768 | `128` |" in page
    assert '| `delivery` | `"at-least-once"`, `"exactly-once"` |' in page
    assert "| `max_rows` | integer from 1 | not set |" in page


def test_wire_page_names_all_parameters() -> None:
    sources = [ROOT / f"operators/core/{name}.py" for name in ("admission", "response_writer")]
    text = "".join(path.read_text() for path in sources)
    names = set(re.findall(r'parameters(?:\.get\(|\[|, |: dict\[str, Parameter\] = \{)"(\w+)"', text))
    assert names >= {"priority", "timeout", "partial", "explain", "missing_rows", "missing_members", "error_code"}
    names |= {f"{phase}{latency_breakdown.SUFFIX}" for phase in latency_breakdown.PHASES}
    page = (ROOT / "docs/reference/wire.md").read_text()
    assert sorted(name for name in names if f"`{name}`" not in page) == []


def test_remedies_cover_all_wire_errors() -> None:
    generate = _load("generate")
    assert {error.code for error in generate.wire_errors()} == set(generate.REMEDIES)


@pytest.mark.parametrize("page", ADRS, ids=lambda page: page.stem[:4])
def test_adr_is_in_madr_form_and_in_the_index(page: Path) -> None:
    title, _, status, date, *rest = page.read_text().splitlines()
    number = page.stem[:4]
    assert title.startswith(f"# {number}. ")
    assert re.match(r"- Status: (accepted|superseded|rejected)", status)
    date = next(line for line in (date, *rest) if line.startswith("- Date: "))
    headings = [line for line in rest if line.startswith("## ")]
    assert headings == ["## Context", "## Decision", "## Consequences", "## Alternatives"]
    row = next(
        line for line in (page.parent / "README.md").read_text().splitlines() if line.startswith(f"| [{number}]")
    )
    assert f"({page.name}) {title.removeprefix(f'# {number}. ')} |" in row
    assert date.removeprefix("- Date: ") in row
    assert f"adr/{page.name}" in (ROOT / "mkdocs.yml").read_text()


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


def _wh_starts(text: str) -> list[str]:
    return [sentence for sentence in sentences(text) if WH_START.match(sentence)]


def test_sentences_seldom_start_with_wh_words() -> None:
    pages = {page.relative_to(ROOT): prose(page) for page in [*PAGES, ROOT / "CHANGELOG.md"]}
    found = [f"{name}: {sentence}" for name, text in pages.items() for sentence in _wh_starts(text)]
    assert len(found) <= 0.02 * sum(len(sentences(text)) for text in pages.values()), found


@pytest.mark.parametrize(
    "planted",
    [
        "What waits is ordered.",
        "## How it works here",
        "- Tasks wait.\n- Whoever is busy hands batches on.",
        "1. *Where it fails*, it is logged.",
        "| a task | who takes longer is late |",
        "Tasks wait: which one takes a batch is open.",
    ],
)
def test_sentence_that_starts_with_a_wh_word_is_caught(planted: str) -> None:
    assert len(_wh_starts(f"Tasks take the most urgent batch, which is the first.\n\n{planted}\n")) == 1


def test_generated_monitoring_files_are_fresh() -> None:
    for name, text in _load("generate").monitoring().items():
        assert (ROOT / "deploy/monitoring" / name).read_text() == text, "run: python docs/generate.py"
