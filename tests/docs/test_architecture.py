"""The map of the code: every room is on it, and every place that it names exists."""

from __future__ import annotations

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

from helpers.markdown import section
from helpers.scripts import ROOT, load_script

PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "python" / "dataflex"
make_figures = load_script("docs/figures/make_figures.py")
generated = load_script("docs/_ext/generated.py")


def packages() -> set[str]:
    return {file.parent.name for file in PACKAGE.glob("*/__init__.py")}


def test_every_room_is_in_the_figure_and_in_the_table() -> None:
    figure = (ROOT / "docs" / "figures" / "architecture.svg").read_text(encoding="utf-8")
    modules = {file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__")}
    assert set(re.findall(r">(\w+)</text>", figure)) == packages() | modules
    assert set(re.findall(r"^\| `(\w+)` \|", generated.rooms("", PAGE), re.MULTILINE)) == packages()


def test_every_room_says_what_lives_there_what_flows_and_what_it_may_import() -> None:
    rows = generated.rooms("", PAGE).splitlines()[2:]
    assert [row for row in rows if any(not cell.strip() for cell in row.strip("|").split(" | "))] == []
    assert [row for row in rows if "come in" not in row and "comes in" not in row and "Nothing flows" not in row] == []


def test_the_top_of_the_package_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    assert len(packages()) <= 22


def test_no_file_is_longer_than_400_lines() -> None:
    files = [*PACKAGE.rglob("*.py"), *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    assert {str(file) for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 400} == set()


def test_arrows_follow_from_the_imports_and_lead_downwards() -> None:
    imports = make_figures.room_imports()
    arrows = make_figures.needed_arrows(imports)
    levels = make_figures.floors(arrows)
    assert all(levels[room] > levels[inner] for room, direct in imports.items() for inner in direct)
    assert imports["selectors"] >= {"gradients", "retrieval", "rewards", "rollouts"}
    assert "errors" not in arrows["selectors"]  # follows from what is between


def imported_modules(file: Path, modules: set[str]) -> set[str]:
    """The modules of dataflex that a file imports, for types included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else node.module for name in named}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Types included; the package's own ``__init__``, which names everything, is imported by nothing."""
    files = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }
    del files["dataflex"]
    graph = {name: imported_modules(file, set(files)) - {name} for name, file in files.items()}
    assert sum(map(len, graph.values())) > 500
    assert list(TopologicalSorter(graph).static_order())  # a CycleError names the modules


def test_the_contract_of_imports_counts_types_and_knows_every_room() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [contract] = config["contracts"]
    assert "exclude_type_checking_imports" not in config
    assert contract["exhaustive"]
    layers = set(re.findall(r"\w+", " ".join(contract["layers"])))
    assert layers >= packages()


def test_the_places_of_the_table_exist() -> None:
    rows = section(PAGE, "I want to change ...").splitlines()
    places = [place for row in rows if row.startswith("|") for place in re.findall(r"`([\w./]+/[\w./]*)`", row)]
    assert len(places) > 40
    assert [place for place in places if not (ROOT / place).exists()] == []
