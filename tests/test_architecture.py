"""The house stands: imports go down, no circles, every module is tested, no name shadows another package's."""

import ast
import graphlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"sources": 1, "shards": 2, "stream": 3, "model": 4, "training": 5, "evaluation": 6, "report": 7}
GROUND = {
    "mpp",
    "mpp.errors",
    "mpp.config",
    "mpp.disk",
    "mpp.faults",
    "mpp.plain_yaml",
    "mpp.processes",
    "mpp.redaction",
}
ENTRY = 8

FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "mpp").rglob("*.py"))
}


def _floor(module: str) -> int:
    return 0 if module in GROUND else FLOORS.get(module.split(".")[1], ENTRY)


def _imports(module: str) -> Iterator[str]:
    """Yield the modules of mpp that a module names, those imported inside functions too."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name not in FILES and "." in name:
                name = name.rpartition(".")[0]
            if name in FILES:
                yield name


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_its_own_folder_and_lower_floors(module: str) -> None:
    for name in _imports(module):
        same_folder = FILES[name].parent == FILES[module].parent and _floor(name) not in (0, ENTRY)
        assert same_folder or _floor(name) < _floor(module) or {name, module} <= GROUND, f"{module} imports {name}"


@pytest.mark.parametrize("module", FILES)
def test_nobody_imports_an_entry_point(module: str) -> None:
    assert [name for name in _imports(module) if _floor(name) == ENTRY] == []


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: set(_imports(module)) - {module} for module in FILES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(FILES)


@pytest.mark.parametrize("module", [module for module, file in FILES.items() if file.name != "__init__.py"])
def test_every_module_has_its_test_file(module: str) -> None:
    file = FILES[module].relative_to(ROOT / "mpp")
    assert (ROOT / "tests" / file.with_name(f"test_{file.name}")).is_file()


@pytest.mark.parametrize(
    "name", sorted({file.relative_to(ROOT / "mpp").parts[0] for file in FILES.values()} - {"__init__.py"})
)
def test_no_name_in_mpp_shadows_a_package(name: str) -> None:
    taken = sys.stdlib_module_names | importlib.metadata.packages_distributions().keys()
    assert name.removesuffix(".py") not in taken, "scripts in mpp/ put that folder first on the import path"


def test_every_module_says_in_its_first_line_what_it_is_for() -> None:
    assert [module for module, file in FILES.items() if not ast.get_docstring(ast.parse(file.read_text()))] == []
