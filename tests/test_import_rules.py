"""Which part may import which (docs/architecture.md): read from the source, lazy imports included."""

import ast
import graphlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "megarlhf"

ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"


def levels() -> list[set[str]]:
    """The packages of docs/architecture.md, those that may import most first.

    A package imports from its own and later levels; on one level, not in a circle.
    """
    text = ARCHITECTURE.read_text().split("## What depends on what")[1]
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    named = [{name.strip() for name in level.split(",")} for level in " ".join(lines).split(">")]
    return [{"__main__"}, *named, {"__init__"}]


LEVEL_OF = {package: number for number, level in enumerate(levels()) for package in level}
# The report stands aside: it knows nothing of the run.
REPORT_IMPORTS, REPORT_IS_FOR = {"errors"}, {"trainer", "plan"}

OWNERS = {
    "megatron": {"parallel", "models", "engine"},
    "vllm": {"rollout", "sync"},
    "ray": {"cluster"},
}
HEAVY = ("megatron", "vllm", "ray", "transformers")
LIGHT = ("config", "data", "algo", "rewards", "models/weights", "models/spec.py", "sync/plan.py")


@dataclass(frozen=True)
class Import:
    importer: str  # module, e.g. megarlhf.sync.plan
    imported: str
    at_import: bool  # neither in a function nor for type checkers only

    @property
    def packages(self) -> tuple[str, str]:
        return package_of(self.importer), package_of(self.imported)


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """``sync`` for megarlhf.sync.plan; another distribution's top-level name as it is."""
    top, *rest = module.split(".")
    return (rest[0] if rest else "__init__") if top == "megarlhf" else top


TREES = {name_of(file): ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")}


def lazy_nodes(tree: ast.AST) -> set[ast.AST]:
    """Everything in functions and under ``if TYPE_CHECKING``."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, functions)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"a relative import: {ast.unparse(node)}"
        below = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in TREES else node.module for name in below]
    return []


def read_imports() -> Iterator[Import]:
    for module, tree in TREES.items():
        lazy = lazy_nodes(tree)
        for node in ast.walk(tree):
            for name in imported_names(node):
                yield Import(module, name, node not in lazy)


IMPORTS = list(read_imports())
OURS = [found for found in IMPORTS if found.imported.split(".")[0] == "megarlhf"]


def test_the_reader_sees_lazy_and_guarded_imports():
    assert Import("megarlhf.rollout.engine", "vllm", False) in IMPORTS
    assert Import("megarlhf.cluster.ray_cluster", "ray", True) in IMPORTS
    assert Import("megarlhf.data.prompts", "transformers", False) in IMPORTS
    assert Import("megarlhf.engine.model_worker", "megarlhf.engine.checkpoint", True) in IMPORTS


def test_every_package_has_a_level():
    packages = {package_of(module) for module in TREES}
    assert packages - LEVEL_OF.keys() == {"report"}, (
        "give the new package its place in docs/architecture.md"
    )


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if imported == "report":
        return importer in REPORT_IS_FOR
    if importer == "report":
        return imported in REPORT_IMPORTS
    return LEVEL_OF.get(importer, 0) <= LEVEL_OF.get(imported, 0)


def test_imports_go_down():
    assert [found for found in OURS if not may_import(*found.packages)] == []


def order(edges: Iterator[tuple[str, str]]) -> None:
    graph = defaultdict(set)
    for importer, imported in edges:
        graph[importer].add(imported)
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_no_package_imports_in_a_circle():
    order(found.packages for found in OURS if len(set(found.packages)) == 2)


def test_no_module_is_imported_in_a_circle():
    order((found.importer, found.imported) for found in OURS if found.at_import)


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_by_its_owners(library):
    users = [found for found in IMPORTS if package_of(found.imported) == library]
    assert [found for found in users if found.packages[0] not in OWNERS[library]] == []
    assert {found.packages[0] for found in users} == OWNERS[library]


def loads(modules: list[str]) -> list[str]:
    """What of `HEAVY` a new process has loaded after it imported the modules."""
    code = (
        "import importlib, json, sys\n"
        f"for module in {modules}: importlib.import_module(module)\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_configuration_data_algorithms_and_layout_maps_need_only_torch():
    roots = [name_of(PACKAGE / path) for path in LIGHT]
    modules = [
        module
        for module in TREES
        if any(module == root or module.startswith(f"{root}.") for root in roots)
    ]
    assert len(modules) > len(roots)
    assert loads(sorted(modules)) == []


def test_the_driver_process_needs_neither_megatron_nor_vllm():
    assert loads(["megarlhf.trainer.start"]) == ["transformers"]  # Ray when it is to keep processes
    assert loads(["megarlhf.cluster.ray_cluster"]) == ["ray"]
    assert loads(["megarlhf.cluster.child"]) == []


def test_the_command_line_answers_before_anything_heavy_is_loaded():
    assert loads(["megarlhf.cli"]) == []


def test_every_helper_has_an_owner():
    names = {part for module in TREES for part in module.split(".")}
    assert names.isdisjoint({"util", "utils", "helpers", "misc"})


def test_every_file_says_what_it_is():
    assert [module for module, tree in TREES.items() if not ast.get_docstring(tree)] == []
