"""The commands of one process for images, tables, weights, runs and recipes."""

import json
from argparse import Namespace
from pathlib import Path

from seresnext.arguments import (
    Parser,
    add_device,
    count_argument,
    folds_argument,
    path_argument,
    side_argument,
    table_argument,
    text_argument,
    workers_argument,
)
from seresnext.errors import UsageError, printable, shown_path
from seresnext.files import check_data_folder, check_output_file, write_json, write_output
from seresnext.process.packages import require_extra

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
    schema = Path("recipes/schema.json")
    parser.add_argument("--output", type=path_argument, default=schema, help="default: %(default)s")


def recipe(options: Namespace) -> None:
    """Write the JSON schema of recipes, which editors use."""
    from seresnext.recipe.show import json_schema

    write_output(options.output, json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {options.output}")


def predict_arguments(parser: Parser) -> None:
    """Declare the arguments of `predict`."""
    parser.epilog = "docs/predict.md has examples and the formats."
    add = parser.add_argument
    images = "an image, a folder (images at any depth), a quoted pattern, or - for a list of paths on standard input"
    files = "a checkpoint, a run folder, a published .pth, the name of a model, or hf-hub:ORG/NAME"
    add("images", type=_not_address, nargs="+", metavar="PATH", help=images)
    add("--checkpoint", type=_not_address, required=True, metavar="FILE", help=files)
    add("--top", type=count_argument, default=5, metavar="N", help="the number of classes (default: 5)")
    add("--format", choices=("table", "jsonl", "csv", "parquet"), help="default: the ending of --output, else table")
    add("--output", type=path_argument, metavar="FILE", help="a file in place of standard output")
    add("--features", type=path_argument, metavar="FILE", help="also write features: float32 N C; .npy or .parquet")
    add("--stage", choices=("layer1", "layer2", "layer3", "layer4"), help="default: the input of the classifier")
    add("--batch-size", type=count_argument, metavar="N", help="images of one forward pass")
    add("--workers", type=workers_argument, metavar="N", help="loader workers (default: up to 4)")
    add("--max-pixels", type=count_argument, metavar="N", help="a larger image is bad (default: as in training)")
    add_device(parser)


def predict(options: Namespace) -> None:
    """Classify images with a trained or published model."""
    from seresnext.run.predict import predict

    predict(options)


def _not_address(text: str) -> str:
    path_argument(text)
    return text_argument(text)


def export_arguments(parser: Parser) -> None:
    """Declare the arguments of `export`."""
    parser.epilog = "docs/export.md has examples, the kinds, and how other tools load them."
    add = parser.add_argument
    add("--checkpoint", required=True, type=path_argument, metavar="FILE", help="a run, checkpoint, .pth or name")
    add("--to", required=True, choices=("weights", "hub", "timm", "onnx", "exported", "folded"), help="timm: as hub")
    add("--output", required=True, type=path_argument, metavar="DIR", help="a new folder")
    add("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    add("--golden", type=path_argument, metavar="DIR", help="at most 8 images (default: drawn images)")
    add("--evaluation", type=path_argument, metavar="FILE", help="accuracy and temperature: validate's --json FILE")
    add("--push", type=text_argument, metavar="ORG/NAME", help="upload the folder to the Hugging Face Hub")


def export(options: Namespace) -> None:
    """Write a model for timm, the Hugging Face Hub, ONNX or torch.export, and check the copy."""
    from seresnext.export.create import export

    export(options)


def card_arguments(parser: Parser) -> None:
    """Declare the arguments of `card`."""
    add = parser.add_argument
    add("--checkpoint", required=True, type=path_argument, metavar="FILE", help="a run, checkpoint, .pth or name")
    add("--weights", choices=("ema", "model"), help="which weights (default: those that chose `best`)")
    add("--evaluation", type=path_argument, metavar="FILE", help="accuracy and temperature: validate's --json FILE")
    add("--output", type=path_argument, metavar="FILE", help="write the card to this file (default: print)")


def card(options: Namespace) -> None:
    """Write the model card of a checkpoint, with the metadata of the Hugging Face Hub."""
    from seresnext.export.create import describe

    describe(options)


def verify_arguments(parser: Parser) -> None:
    """Declare the arguments of `verify`."""
    parser.add_argument("folder", type=path_argument, metavar="DIR", help="the folder of an export")


def verify(options: Namespace) -> None:
    """Check the files of an export, and the logits of its golden images."""
    from seresnext.export.verify import verify

    manifest, result = verify(options.folder)
    print(f"{shown_path(options.folder)}: {manifest.kind}, {manifest.model}\nverified: {result}")


def doctor_arguments(parser: Parser) -> None:
    """Declare the arguments of `doctor`."""
    parser.epilog = "DIR gets index.html, findings.json and exclude.csv. docs/doctor.md has examples and the findings."
    add = parser.add_argument
    files = "weights that judge the images, or that the trainings start from: as for `seresnext predict`"
    folds = "train K networks, which judge the images left out for each (2 to 20; default: 4, none with --checkpoint)"
    add("data", type=text_argument, metavar="DATA", help="a folder of images, or a list of images (.csv, .jsonl)")
    add("--checkpoint", type=text_argument, metavar="FILE", help=files)
    add("--folds", type=folds_argument, metavar="K", help=folds)
    add("--image-size", type=side_argument, metavar="N", help="side in the trainings (default: that of FILE, or 64)")
    add("--quick", action="store_true", help="without networks: files, copies, classes, sizes and light only")
    add("--output", type=path_argument, default=Path("doctor"), metavar="DIR", help="folder of the results (doctor)")
    add_device(parser)


def doctor(options: Namespace) -> None:
    """Find wrong labels, copies and bad files in a set of images."""
    if options.quick and (options.checkpoint or options.folds):
        raise UsageError("--quick uses no network; leave out --quick, or --checkpoint and --folds")
    check_data_folder(options.data)
    require_extra("report", "cleanlab", "imagehash", "jinja2", "scipy", "sklearn")
    page, json, table = (options.output / name for name in ("index.html", "findings.json", "exclude.csv"))
    for path in (page, json, table):
        check_output_file(path, "--output")
    from seresnext.distributed import choose_device
    from seresnext.doctor.examine import examine, render
    from seresnext.doctor.findings import exclusion_list
    from seresnext.doctor.network import FOLDS, Networks
    from seresnext.models import open_weights
    from seresnext.run.folder import lies_in

    if lies_in(page, Path(options.data)):
        raise UsageError(f"--output {options.output} lies among the images; choose a folder elsewhere")
    folds = options.folds or (0 if options.quick or options.checkpoint else FOLDS)
    weights = open_weights(options.checkpoint) if options.checkpoint else None
    networks = Networks(choose_device(options.device), weights, folds, options.image_size)
    result, listed, images = examine(options.data, networks)
    for finding in result["findings"]:
        print(f"  {finding['title']:<28} {len(finding['rows']):>8,}")
    write_json(json, result)
    write_output(table, exclusion_list(listed))
    # The last, because the page reads images again, and fails if one is gone.
    write_output(page, render(result, images, networks.decoding))
    for text in result["method"]:
        print(text)
    print(f"{len(listed):,} images are in {table}; look at {page}, then train with --set data.exclude={table}")
