"""The files of a recipe: found by path or name, read with their bases, laid over each other."""

from __future__ import annotations

from pathlib import Path

from seresnext.errors import RecipeError, expand_home
from seresnext.printable import shorten
from seresnext.recipe.explain import near_miss
from seresnext.recipe.reader import MAX_BYTES, Node, Unreadable, decode_bytes, read_yaml

_PROJECT_RECIPES = Path(__file__).parents[2] / "recipes"
_MAX_BASES_DEEP = 20


def recipe_folders() -> list[Path]:
    """Where recipes are looked up by name: `recipes/` here, then beside the package."""
    folders = [Path("recipes"), _PROJECT_RECIPES]
    return [folder for i, folder in enumerate(folders) if folder.resolve() not in [f.resolve() for f in folders[:i]]]


def recipe_names() -> list[str]:
    """The names that `load_recipe` knows."""
    return sorted({path.stem for folder in recipe_folders() for path in folder.glob("*.yaml")})


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe: the path itself, or the name in `recipes/`, each with or without `.yaml`."""
    name = str(name_or_path)
    if name.startswith("~"):
        name = str(expand_home(name))
    spelled = [name] if name.endswith((".yaml", ".yml")) else [name + ".yaml", name]
    candidates = [Path(text) for text in spelled]
    if "/" not in name:
        candidates[1:1] = [folder / spelled[0] for folder in recipe_folders()]
    if found := next((path for path in candidates if _is_file(path)), None):
        return found
    names = recipe_names()
    close = near_miss(Path(name).name.removesuffix(".yaml"), names)
    hint = f"did you mean {close}? " if close else ""
    listed = f"recipes: {', '.join(names)}" if names else "there is no recipes/ folder here"
    raise RecipeError([f"no recipe {shorten(name)!r}: neither a file nor a name in recipes/; {hint}{listed}"])


def display(path: Path) -> str:
    """The path as an author knows it: from the current folder where it is inside."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(path)


class RecipeFiles:
    """Reads files with their bases, each file once. Notes problems; a file that cannot be read is None."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._merged: dict[Path, Node | None] = {}

    def read(self, path: Path, chain: tuple[Path, ...] = ()) -> Node | None:
        key = path.resolve()
        if key not in self._merged:
            self._merged[key] = self._read(path, (*chain, key))
        return self._merged[key]

    def _read(self, path: Path, chain: tuple[Path, ...]) -> Node | None:
        label = display(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise Unreadable(f"{label}: larger than {MAX_BYTES:,} bytes; this is not a recipe")
            try:
                text = decode_bytes(data)
            except Unreadable as problem:
                raise Unreadable(f"{label}:{problem}") from None
            root, problems = read_yaml(text, lambda line: f"{label}:{line}")
        except OSError as error:
            self._problems.append(f"{label}: cannot be read: {error.strerror}")
            return None
        except Unreadable as problem:
            self._problems.append(str(problem))
            return None
        self._problems += problems
        if root is None or not isinstance(root.value, dict):
            found = "is empty" if root is None or root.value is None else "is not a mapping of sections"
            self._problems.append(
                f"{label if root is None else root.origin}: {found}; a recipe begins like 'model: ...'"
            )
            return None
        return self._with_bases(path, root, chain)

    def _with_bases(self, path: Path, root: Node, chain: tuple[Path, ...]) -> Node | None:
        own = Node({key: node for key, node in root.value.items() if key != "base"}, root.origin)
        if "base" not in root.value:
            return own
        base = root.value["base"]
        listed = base.value if isinstance(base.value, list) else [base]
        merged: Node | None = Node({}, root.origin)
        for item in listed:
            below = self._base(path, base, item, chain)
            merged = None if merged is None or below is None else merge(merged, below)
        return None if merged is None else merge(merged, own)

    def _base(self, path: Path, base: Node, item: Node, chain: tuple[Path, ...]) -> Node | None:
        if item.broken:
            return None
        if not isinstance(item.value, str) or not item.value:
            found = item.written or "no name"
            self._problems.append(f"{base.origin}: base: expected a file name or a list of them, found {found}")
            return None
        target = path.parent / expand_home(item.value)
        if not _is_file(target):
            self._problems.append(f"{base.origin}: base: {self._missing(path, target, item.value)}")
            return None
        if target.resolve() in chain:
            names = " -> ".join(display(step) for step in (*chain, target))
            self._problems.append(f"{base.origin}: base: {display(target)} is based on itself: {names}")
            return None
        if len(chain) > _MAX_BASES_DEEP:
            self._problems.append(f"{base.origin}: base: more than {_MAX_BASES_DEEP} files deep")
            return None
        return self.read(target, chain)

    def _missing(self, path: Path, target: Path, written: str) -> str:
        there = sorted(file.name for file in target.parent.glob("*.yaml")) if target.parent.is_dir() else []
        close = near_miss(target.name, there)
        hint = f"did you mean {Path(written).with_name(close)}? " if close else ""
        return f"no file {shorten(written)}; {hint}the name is relative to the folder of {display(path)}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def merge(below: Node, above: Node) -> Node:
    """`above` laid over `below`: sections key by key, anything else replaced."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, above.origin, broken=above.broken)
