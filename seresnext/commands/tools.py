"""The commands of one process that read tables, weights, runs and recipes."""

import json
from argparse import Namespace
from pathlib import Path

from seresnext.arguments import Parser, table_argument
from seresnext.files import write_json, write_output
from seresnext.paths import path_argument
from seresnext.printable import printable

_SHOWN = 10


def compare_arguments(parser: Parser) -> None:
    """Declare the arguments of `compare`."""
    add = parser.add_argument
    add("first", type=table_argument, metavar="A", help="a table of `seresnext validate --table`")
    add("second", type=table_argument, metavar="B", help="a table of the same images by another model")
    add("--json", type=path_argument, metavar="FILE", help="also write the result, with all changed images")


def compare(options: Namespace) -> None:
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
            image, before, after = (printable(change[key]) for key in ("image", "first", "second"))
            print(f"  {image}: {before} -> {after}")
        if (more := len(result["changes"]) - _SHOWN) > 0:
            print(f"  and {more:,} more (--json FILE has all)")
    print(result["conclusion"])
    if options.json:
        write_json(options.json, result)


def average_arguments(parser: Parser) -> None:
    """Declare the arguments of `average`."""
    add = parser.add_argument
    add("checkpoints", type=path_argument, nargs="+", metavar="CHECKPOINT")
    add("--output", type=path_argument, required=True, metavar="FILE", help="a new file, *.safetensors")
    add("--weights", choices=("auto", "model", "ema"), default="auto", help="default: those that chose `best`")


def average(options: Namespace) -> None:
    """Average the weights of checkpoints of one recipe into one file."""
    from seresnext.run.average import average_checkpoints

    average_checkpoints(options)


def runs_arguments(parser: Parser) -> None:
    """Declare the arguments of `runs`."""
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="a folder that holds runs, such as runs")
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="also write all values, with the recipes")


def runs(options: Namespace) -> None:
    """Print a table of the runs below a folder: state, best validation, time, and how their recipes differ."""
    from seresnext.report.runs import describe_run, find_runs, print_runs

    found = [describe_run(run) for run in find_runs(options.folder)]
    print_runs(options.folder, found)
    if options.json:
        write_json(options.json, found)


def plot_arguments(parser: Parser) -> None:
    """Declare the arguments of `plot`."""
    output = "default: curves.png, in the folder of a single run"
    parser.add_argument("runs", type=path_argument, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--output", type=path_argument, metavar="FILE.png", help=output)


def plot(options: Namespace) -> None:
    """Draw the loss and accuracy curves of one run or several runs as a picture."""
    from seresnext.report.plot import plot_runs

    plot_runs(options.runs, options.output)


def models_arguments(parser: Parser) -> None:
    """Declare the arguments of `models`."""
    parser.add_argument("--index", action="store_true", help="print the model index of the published models as YAML")


def models(options: Namespace) -> None:
    """Print the table of the models."""
    from seresnext.models.index import print_index, print_models

    print_index() if options.index else print_models()


def recipe_arguments(parser: Parser) -> None:
    """Declare the arguments of `recipe`."""
    add = parser.add_argument
    add("--reference", action="store_true", help="print every key as a Markdown table instead")
    add("--output", type=path_argument, default=Path("recipes/schema.json"), help="default: %(default)s")


def recipe(options: Namespace) -> None:
    """Write the JSON schema of recipes, which editors use, or print the reference of all keys."""
    from seresnext.recipe.show import json_schema, recipe_reference

    if options.reference:
        print(recipe_reference(), end="")
        return
    write_output(options.output, json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {options.output}")
