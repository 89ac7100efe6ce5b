"""Write the table of all files of the package into docs/code.md: one line a file, from the docstring of the module.

python scripts/code_map.py
"""

import ast
import tomllib
from pathlib import Path

import _python  # noqa: F401

from seresnext.process.exit import run_script

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "code.md"


def code_map() -> str:
    """Return a Markdown table of all modules in the order of the import floors, the highest floor first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors, inner = (" | ".join(contract["layers"]).split(" | ") for contract in contracts[:2])

    def place(module: Path) -> tuple[int, int, bool, str]:
        outer, *rest = module.with_suffix("").parts
        floor = floors.index(outer) if outer in floors else -1
        inner_floor = inner.index(rest[0]) if outer == "data" and rest[0] in inner else -1
        return floor, inner_floor, module.stem != "__init__", str(module)

    package = ROOT / "seresnext"
    rows = ["| file | content |", "|---|---|"]
    for module in sorted((path.relative_to(package) for path in package.rglob("*.py")), key=place):
        docstring = ast.get_docstring(ast.parse((package / module).read_text(encoding="utf-8"))) or ""
        rows.append(f"| `{str(module).removesuffix('__init__.py') or module}` | {docstring.splitlines()[0]} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Replace the table at the end of the page."""
    head, mark, _ = PAGE.read_text(encoding="utf-8").rpartition("| file | content |")
    assert mark, "the page has no table"
    PAGE.write_text(head + code_map(), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
