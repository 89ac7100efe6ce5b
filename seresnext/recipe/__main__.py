"""`python -m seresnext.recipe`: write the schema that editors use. With `--reference`: print the table of keys."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from seresnext.process.exit import run_script
from seresnext.recipe.show import json_schema, recipe_reference


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m seresnext.recipe", description=__doc__)
    parser.add_argument("--reference", action="store_true", help="print every key as a Markdown table instead")
    parser.add_argument("--output", type=Path, default=Path("recipes/schema.json"), help="where to write the schema")
    arguments = parser.parse_args()
    if arguments.reference:
        print(recipe_reference(), end="")
        return
    arguments.output.write_text(json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_script(main)
