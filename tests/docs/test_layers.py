"""The layers of docs/architecture.md: who imports whom."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the bottom to the top; a module may import from its own layer and from the layers below it.
LAYERS = (
    ("errors", "progress", "background_threads", "compatibility", "model_building", "files", "tokens"),
    ("data", "endpoints", "grading"),
    ("models",),
    ("decoding",),
    ("modes",),
    ("api", "custom_generate"),
    ("evaluation", "training"),
    ("selftrain",),
    ("commands", "demo"),
    ("cli", "__main__"),
)


@pytest.fixture(scope="module")
def imports():
    """Module -> the modules of the package that it imports, also inside functions."""
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in (ROOT / "reverse").rglob("*.py")}
    modules = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: find_imports(path, modules) - {name} for name, path in modules.items()}


def find_imports(path, modules):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else str(node.module))
    return found & set(modules)


def test_no_module_imports_upwards(imports):
    """Decoding would need a benchmark, or a library call a command."""
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    parts = {name: name.split(".")[1] for name in imports if "." in name}
    assert set(parts.values()) <= set(layer)
    upwards = [
        f"{name} imports {other}"
        for name, others in imports.items()
        for other in sorted(others)
        if name in parts and other in parts and layer[parts[name]] < layer[parts[other]]
    ]
    assert not upwards


def test_no_modules_import_each_other(imports):
    """The order in which modules are imported would decide whether they can be."""
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_two_modules_share_a_name(imports):
    """A traceback or a search would lead to the wrong file."""
    names = Counter(name.rsplit(".", 1)[-1] for name in imports if not is_package(name))
    assert [name for name, count in names.items() if count > 1 and name != "__main__"] == []


def is_package(name):
    return (ROOT / name.replace(".", "/") / "__init__.py").exists()
