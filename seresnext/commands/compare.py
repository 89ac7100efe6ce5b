"""`seresnext compare`: compare the predictions of two models for the same images."""

from __future__ import annotations

from argparse import Namespace

from seresnext.arguments import Parser, table_argument
from seresnext.files import write_json
from seresnext.paths import path_argument
from seresnext.printable import printable

_SHOWN = 10


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = """examples:
  seresnext validate --checkpoint runs/monday --table monday.parquet
  seresnext validate --checkpoint runs/friday --table friday.parquet
  seresnext compare monday.parquet friday.parquet"""
    add = parser.add_argument
    add("first", type=table_argument, metavar="A", help="a table of `seresnext validate --table`")
    add("second", type=table_argument, metavar="B", help="a table of the same images by another model")
    add("--json", type=path_argument, metavar="FILE", help="also write the result, with all changed images")


def run(options: Namespace) -> None:
    """Compare the predictions of two models for the same images."""
    from seresnext.evaluation.compare import compare
    from seresnext.evaluation.table import read_table

    first, second = (read_table(path) for path in (options.first, options.second))
    result = compare(first, second, (str(options.first), str(options.second)))
    low, high = result["interval"]
    for name, path, accuracy in zip("AB", (options.first, options.second), result["accuracies"], strict=True):
        print(f"{name}  top-1 {accuracy:7.3f} %  {path}")
    print(
        f"B - A    {result['difference']:+7.3f} percentage points, 95 % interval {low:+.3f} to {high:+.3f} "
        f"({result['num_images']:,} images)"
    )
    if result["classes"]:
        print("classes that changed most:")
        for label, difference, count in result["classes"][:_SHOWN]:
            print(f"  {difference:+8.2f} points  {printable(label)} ({count:,} images)")
    if result["changes"]:
        print("images that changed:")
        for change in result["changes"][:_SHOWN]:
            image, first, second = (printable(change[key]) for key in ("image", "first", "second"))
            print(f"  {image}: {first} -> {second}")
        if (more := len(result["changes"]) - _SHOWN) > 0:
            print(f"  and {more:,} more (--json FILE has all)")
    print(result["conclusion"])
    if options.json:
        write_json(options.json, result)
