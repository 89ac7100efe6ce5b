"""Recipes as text: the printed recipe loads again and has the origin of every value."""

import importlib
import json
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from seresnext.recipe import Recipe, load_recipe, recipe_from_values, to_values
from seresnext.recipe.explain import all_keys
from seresnext.recipe.reader import read_yaml
from seresnext.recipe.show import diff, json_schema, print_recipe, recipe_hash, to_yaml

ROOT = Path(__file__).parents[2]

names = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())
sections = {
    "data": {"root": names, "train_split": names, "workers": st.integers(0, 9)},
    "optimizer": {"lr": st.floats(0, exclude_min=True, allow_infinity=False), "clip_norm": st.just(5)},
    "ema": {"decay": st.floats(0.1, 0.999), "warmup": st.booleans()},
    "runtime": {"compile": st.sampled_from(["auto", True, False])},
}
model = {"name": st.sampled_from(["seresnext26", "legacy_seresnext50_32x4d"])}
recipes = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(model, optional={"drop_rate": st.floats(0, 0.99), "weights": st.none() | names}),
        "length": st.builds("{}{}".format, st.integers(1, 10**9), st.sampled_from(["ep", "st"])),
        **{name: st.fixed_dictionaries({}, optional=keys) for name, keys in sections.items()},
    }
)


@settings(max_examples=60)
@given(recipes)
def test_round_trip_of_any_recipe(values: dict[str, Any]) -> None:
    full = to_values(recipe_from_values(values, "hypothesis"))
    root = read_yaml(to_yaml(full), str)
    assert root.plain() == full
    assert to_values(recipe_from_values(root.plain(), "hypothesis")) == full
    assert to_values(recipe_from_values(json.loads(json.dumps(full)), "hypothesis")) == full


def test_printed_origins() -> None:
    lines = print_recipe(load_recipe("seresnext50", ["optimizer.lr=0.4", "data.root=" + "x" * 300])).splitlines()
    written = (ROOT / "recipes/_base/imagenet.yaml").read_text().splitlines()
    momentum = next(i for i, line in enumerate(written, 1) if line.startswith("  momentum:"))
    for beginning, origin in (
        ("  momentum: 0.9 ", f"recipes/_base/imagenet.yaml:{momentum}"),
        ("  lr: 0.4 ", "--set"),
        ("  seed: 0 ", "default"),
        ("ema: null ", "default"),
    ):
        (line,) = [line for line in lines if line.startswith(beginning)]
        assert line.partition("# ")[2].endswith(origin)
    columns = {line.index("#") for line in lines[1:] if "#" in line and "xxx" not in line}
    assert len(columns) == 1
    assert columns.pop() < 60  # The long value does not move the other comments.


def test_diff() -> None:
    a = to_values(load_recipe("seresnext50").recipe)
    assert diff(a, a) == []
    changes = ["optimizer.lr=0.4", "ema={decay: 0.9}", "length=3st", "runtime.compile=true"]
    b = to_values(load_recipe("seresnext50", changes).recipe)
    assert diff(a, b) == [
        "length: 100ep -> 3st",
        "optimizer.lr: 0.6 -> 0.4",
        "ema: null -> {decay: 0.9, warmup: true}",
        "runtime.compile: auto -> true",
    ]
    assert diff({"x": {"old": 1}}, {"x": {"new": None}}) == ["x.old: 1 -> (absent)", "x.new: (absent) -> null"]
    assert diff({"x": 1}, {"x": True}) == ["x: 1 -> true"]


def test_hash_ignores_the_order_of_keys() -> None:
    values, other = (to_values(load_recipe("seresnext50", [f"optimizer.lr={lr}"]).recipe) for lr in ("6e-1", "0.61"))
    assert recipe_hash(values) == recipe_hash(dict(reversed(values.items())))
    assert recipe_hash(values) != recipe_hash(other)
    # Checkpoints store the hash, so the hash must stay: sha256sum of {"a":{"\\u00fc":true},"b":[1,2.5,null]}.
    assert recipe_hash({"b": [1, 2.5, None], "a": {"ü": True}}) == (
        "1d44e843f260da50c7436a2f8f04b511003558a7836855e9d615eacf8bc99d3e"
    )


def test_the_command_writes_the_published_schema(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seresnext", "recipe"]
    output = tmp_path / "new" / "s.json"
    subprocess.run([*command, "--output", output], check=True, capture_output=True, timeout=60)
    published = (ROOT / "recipes" / "schema.json").read_text(encoding="utf-8")
    assert output.read_text() == published, "run: python -m seresnext recipe"
    assert json.loads(published) == json_schema()


def test_schema_is_as_strict_as_the_loader() -> None:
    schema = json_schema()
    assert "base" in schema["properties"]
    assert "required" not in json.dumps(schema)
    assert schema["$defs"]["EvaluationSection"]["properties"]["every"]["default"] == "1ep"
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False
    assert all(field["description"] for part in schema["$defs"].values() for field in part["properties"].values())


def test_the_reference_has_a_row_for_every_key() -> None:
    reference = importlib.import_module("recipe_reference").recipe_reference()
    rows = reference.splitlines()[2:]
    keys = [row.split("`")[1] for row in rows]
    defaults = to_values(Recipe.model_validate({"model": {"name": "seresnext26"}}))
    values = {
        key: reduce(lambda section, name: section and section[name], key.split("."), defaults) for key in all_keys()
    }
    assert keys == ["base", *(key for key, value in values.items() if not isinstance(value, dict))]
    assert "| `optimizer.lr` | number > 0 | `0.6` |" in reference
    assert all(row.count("|") == 5 for row in rows)
