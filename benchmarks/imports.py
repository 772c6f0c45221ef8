"""The import rules of the package, read from its source: one folder has one level, and imports run downwards.

python -m benchmarks.imports        # prints what breaks the rules; nothing, and exit status 0, where they hold
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "vtoken"

# lowest first; a folder imports from itself and from lower levels, late imports inside functions included
LEVELS = [
    ["version"],
    ["errors"],
    ["output"],
    ["kernels"],
    ["data"],
    ["video"],
    ["reference"],
    ["encoders"],
    ["methods"],
    ["tokenizers", "thinners", "pruners", "mergers", "inside", "pathways"],
    ["families"],
    ["engine"],
    ["qa"],
    ["jobs"],
    ["thinkjepa", "scorer"],
    ["bench"],
    ["demos"],
    ["serve"],
    ["hosts"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: i for i, level in enumerate(LEVELS) for name in level}


def modules() -> dict[str, Path]:
    """Dotted name of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, source: str, is_package: bool) -> Iterator[str]:
    """Modules (or names in modules) of vtoken that a module imports, late imports and those for types included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "vtoken")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, *filter(None, [base])])
            if base.split(".")[0] == "vtoken":
                yield from (f"{base}.{a.name}" for a in node.names)


def part(module: str) -> str:
    """``vtoken.pruners.evs`` -> ``pruners``; the package itself is ``""``."""
    return module.split(".")[1] if "." in module else ""


def upward(name: str, source: str, is_package: bool) -> list[str]:
    """Imports of one module that point to a higher level, or to another folder of its own level."""
    own = part(name)
    if own not in LEVEL:
        return []  # the package's own names are lazy
    found = []
    for target in imported(name, source, is_package):
        other = part(target)
        if other in LEVEL and other != own and LEVEL[other] >= LEVEL[own]:
            found.append(f"{name} imports {target}")
    return found


def all_upward() -> list[str]:
    """Upward imports of the whole package."""
    return [line for name, path in modules().items() for line in upward(name, _read(path), _is_package(path))]


def graph() -> dict[str, set[str]]:
    """The modules of vtoken that each module imports."""
    known, found = modules(), {}
    for name, path in known.items():
        targets = imported(name, _read(path), _is_package(path))
        found[name] = {t if t in known else t.rpartition(".")[0] for t in targets} & known.keys() - {name}
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Circles in a graph of imports, until none is left when the imports inside those found are taken out."""
    left, found = dict(imports), []
    while True:
        try:
            list(graphlib.TopologicalSorter(left).static_order())
            return found
        except graphlib.CycleError as error:
            circle = error.args[1][:-1]  # the first module is named again at the end
            found.append(circle)
            left |= {one: left[one] - set(circle) for one in circle}


def top_modules() -> set[str]:
    """Files directly in ``vtoken/``."""
    return {path.name for path in PACKAGE.glob("*.py")}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def main() -> int:
    unknown = sorted({part(m) for m in modules()} - {""} - LEVEL.keys())
    lines = [f"{name} has no level" for name in unknown] + all_upward()
    lines += ["circle: " + " -> ".join(c) for c in circles(graph())]
    print("\n".join(lines), end="\n" if lines else "")
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main())
