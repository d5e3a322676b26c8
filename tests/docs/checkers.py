"""What a page may not get wrong: links, and the names of files, modules, commands, options and identifiers."""

import ast
import importlib
import inspect
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

import anabranch
from anabranch import Client
from anabranch.cli import app
from tests.docs.pages import ROOT

_LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FILE_ENDING = re.compile(r"\.(?:py|toml|md|svg|json|yml|java|lock|sh|npy|onnx|dot|ini|properties|yaml)$")
_IDENTIFIER = re.compile(r"_?[A-Za-z][A-Za-z0-9_]*(?:\(\))?")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?:\(\))?")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_PACKAGES = ("schemas", "operators", "partition", "flink_job")
#: Files that a user has, and that this repository need not have.
_USERS_FILES = {
    "model.toml", "model.onnx", "plan.json", "steps.py", "stack.json", "machines.toml", "ask.py", "log4j.properties",
    "config.yaml", "plan.svg", "x.npy", "anabranch.toml", "tokenizer.json", "modules.json", "1_Pooling/config.json",
    "preprocessor_config.json", "config.json",
}  # fmt: skip
#: Names of Flink, Python, ONNX and Linux, and of designs that a decision rejected.
_OTHER_NAMES = {
    "RowData", "PackRequests", "GlobalWindows", "CodeGenOperatorFactory", "ProcessingTimeServiceUtil",
    "CompilerThreadPriority", "OutputFlusher", "PythonWorker", "numRestarts", "Long.MAX_VALUE",
    "AbstractEmbeddedPythonFunctionOperator.invokeFinishBundle", "Shape",
    "Slice", "onnx.utils.extract_model", "extract_model", "multiprocessing.shared_memory",
    "sched_autogroup_enabled", "nice", "src/anabranch/", "anabranch_schemas", "KIND", "site/", "saved_model/",
}  # fmt: skip
#: Options of other programs.
_OTHER_OPTIONS = {"--scale", "--build", "--strict", "--only", "--quick", "--rounds", "--require-hashes"}


def broken_links(folder: Path, text: str) -> list[str]:
    """The local targets of links that do not exist, as seen from a folder."""
    targets = [a or b for a, b in _LINK.findall(text)]
    local = [target for target in targets if not target.startswith(("http", "#", "mailto:"))]
    return [target for target in local if not (folder / target.split("#")[0]).exists()]


def unknown_names(folder: Path, text: str) -> list[str]:
    """The names in backticks that neither the repository nor the code has."""
    return [name for name in _CODE.findall(text) if not _is_known(folder, name.strip())]


def unknown_commands(line: str) -> list[str]:
    """The commands, options and make targets of a command line that do not exist."""
    words = line.replace(".venv/bin/", "").split()
    words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]
    if words[:1] == ["make"]:
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return [word for word in words[1:2] if word not in targets]
    if words[:1] != ["anabranch"]:
        return []
    command = _command_line()
    for position, word in enumerate(words[1:], 1):
        if not hasattr(command, "commands") or word.startswith("-"):
            break
        if word not in command.commands:
            return [] if word.isupper() else [f"{' '.join(words[: position + 1])}"]
        command = command.commands[word]
    options = {name for option in command.params for name in option.opts} | {"--help"}
    return [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options]


def modules_in_tables(text: str) -> dict[str, str]:
    """The modules that the tables of ARCHITECTURE.md name, with what they are for."""
    found = {}
    folder = ""
    for line in text.splitlines():
        if heading := re.match(r"#{3,4} `([\w/]+)`", line):
            folder = heading[1]
        elif row := re.match(r"\| `(\w+\.py)` \| (.*) \|$", line):
            found[f"{folder}/{row[1]}"] = row[2].strip()
    return found


def unknown_in_program(text: str) -> list[str]:
    """The imports, methods of the client and arguments in a program that do not exist."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if not _imports(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if not _imports(node.module) or not hasattr(importlib.import_module(node.module), alias.name)
            ]
    clients = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and "Client" in ast.dump(item.context_expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in clients:
            found += [] if hasattr(Client, node.attr) else [f"Client.{node.attr}"]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and hasattr(Client, node.func.attr):
            known = inspect.signature(getattr(Client, node.func.attr)).parameters
            wrong = [word.arg for word in node.keywords if word.arg and word.arg not in known]
            found += [f"Client.{node.func.attr}({word})" for word in wrong]
    return found


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _is_known(folder: Path, name: str) -> bool:
    if name.startswith(("anabranch ", "make ")):
        return not unknown_commands(name)
    if _OPTION.match(name):
        return set(_OPTION.findall(name)) <= _options() | _OTHER_OPTIONS
    if " " not in name and name not in _OTHER_NAMES:
        return _is_known_word(folder, name)
    return True


def _is_known_word(folder: Path, name: str) -> bool:
    if _FILE_ENDING.search(name) or re.fullmatch(r"[\w.-]+/[\w./-]*", name):
        return _is_file(folder, name)
    if _DOTTED.fullmatch(name):
        return _is_dotted_name(name.removesuffix("()"))
    if _IDENTIFIER.fullmatch(name):
        return name.removesuffix("()") in _words()
    return True


def _is_file(folder: Path, name: str) -> bool:
    if Path(name).name in _USERS_FILES or re.search(r"[A-Z*<]{3,}|[*<]", name) or name.startswith((".", "~", "/")):
        return True
    if (folder / name).exists() or (ROOT / name).exists():
        return True
    return any(f"/{path}".endswith(f"/{name.rstrip('/')}") for path in _files_and_folders())


def _is_dotted_name(name: str) -> bool:
    first = name.removeprefix("anabranch.")
    if name.startswith("anabranch.") or first.split(".")[0] in _PACKAGES:
        parts = first.split(".")
        for end in range(len(parts), 0, -1):
            path = ROOT / ("anabranch" if parts[0] not in _PACKAGES else "") / "/".join(parts[:end])
            for module in (path.with_suffix(".py"), path / "__init__.py"):
                if module.exists():
                    # A name of the module: defined or exported in it, or a module's attribute.
                    return all(re.search(rf"\b{part}\b", module.read_text()) for part in parts[end:])
        return name.startswith("anabranch.") and hasattr(anabranch, parts[0])
    return all(part in _words() for part in name.split("."))


@cache
def _files_and_folders() -> frozenset[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return frozenset(files) | {str(parent) for file in files for parent in Path(file).parents}


@cache
def _words() -> frozenset[str]:
    """Every identifier of the code; documentation does not count."""
    found: set[str] = set()
    for file in _files_and_folders():
        path = ROOT / file
        is_code = path.suffix in {".py", ".java", ".toml", ".yml", ".pyi"} or path.name in {"Makefile", "Dockerfile"}
        if is_code and path.is_file() and not file.startswith(("tests/docs", "docs/")):
            found |= set(re.findall(r"[A-Za-z_]\w*", path.read_text()))
    return frozenset(found)


@cache
def _options() -> frozenset[str]:
    def of(command: Any) -> Iterator[str]:
        yield from (name for option in command.params for name in option.opts)
        for child in getattr(command, "commands", {}).values():
            yield from of(child)

    return frozenset(of(_command_line())) | {"--help"}


@cache
def _command_line() -> Any:
    return typer.main.get_command(app)
