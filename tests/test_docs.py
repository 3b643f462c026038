"""What README.md, docs/ and docstrings say is so: files, links, the tree, commands, arguments."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from megarlhf import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
UNDOCUMENTED = {"__init__.py", "__main__.py", "__pycache__"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pages
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose_of(page))
    ours = [link for link in links if not link.startswith("http")]
    assert [link for link in ours if not (page.parent / link).exists()] == []


@pages
def test_files_that_are_named_are_there_and_define_what_is_said(page):
    wrong = []
    for path, name in re.findall(r"`([\w/]+\.(?:py|sh|sbatch))(?:: (\w+))?`", prose_of(page)):
        if "/" in path:
            files = [base / path for base in (ROOT, ROOT / "megarlhf") if (base / path).is_file()]
        else:
            files = [f for top in ("megarlhf", "tests", "launch") for f in (ROOT / top).rglob(path)]
        defined = re.compile(rf"^\s*(?:async )?(?:def|class) {name}\b|^{name}\b", re.MULTILINE)
        if not any(not name or defined.search(file.read_text()) for file in files):
            wrong.append(f"{path}: {name}" if name else path)
    assert wrong == []


def test_every_folder_and_top_file_is_in_the_tree():
    text = (ROOT / "docs" / "architecture.md").read_text().split("## ")[1]
    named = re.findall(r"^ {4}( {2})?([\w.]+)/?(?:  |$)", text, re.MULTILINE)
    inside = {name for indent, name in named if indent}
    outside = {name for indent, name in named if not indent}
    package = {path.name for path in (ROOT / "megarlhf").iterdir()} - UNDOCUMENTED
    assert inside == package
    assert all((ROOT / name).is_dir() for name in outside)


def commands_of(page: Path) -> list[list[str]]:
    """The words behind ``megarlhf`` of every command in a page, launched or not."""
    found = []
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for before in ("megarlhf", "--"):
                behind = words[words.index(before) + 1 :] if before in words else []
                if behind:
                    found.append([word for word in behind if not word.startswith("$")])
                    break
    return found


COMMANDS = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")
    for page in PAGES
    for words in commands_of(page)
    if not {"...", "key=value", "FILE.yaml"} & set(words)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words, monkeypatch):
    """Options and settings exist and have values of their types; configurations are there."""
    monkeypatch.chdir(ROOT)
    arguments = cli._parse(words)
    command = getattr(arguments, "command", None)
    if command is not None:
        cli._load(command, arguments.config, arguments.overrides)


def documented(docstring: str) -> set[str]:
    """The names under ``Args:``."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    return set(re.findall(r"^    (\w+):", section[1], re.MULTILINE)) if section else set()


def test_docstrings_name_only_arguments_that_there_are():
    wrong = []
    for file in (ROOT / "megarlhf").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            taken = {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
            fields = {field.target.id for field in getattr(node, "body", []) if is_field(field)}
            if unknown := documented(ast.get_docstring(node) or "") - taken - fields:
                wrong.append(f"{file.name}:{node.lineno} {node.name}: {', '.join(unknown)}")
    assert wrong == []


def is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
