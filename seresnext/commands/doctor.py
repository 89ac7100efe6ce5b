"""`seresnext doctor`: wrong labels, copies and bad files in a set of images."""

from argparse import Namespace
from pathlib import Path

from seresnext.arguments import Parser, add_device, folds_argument, side_argument
from seresnext.errors import UsageError
from seresnext.files import check_output_file
from seresnext.paths import check_data_folder, path_argument, text_argument
from seresnext.process.packages import require_extra


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
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


def run(options: Namespace) -> None:
    """Find wrong labels, copies and bad files in a set of images."""
    if options.quick and (options.checkpoint or options.folds):
        raise UsageError("--quick uses no network; leave out --quick, or --checkpoint and --folds")
    check_data_folder(options.data)
    require_extra("report", "cleanlab", "imagehash", "jinja2", "scipy", "sklearn")
    page, json, table = (options.output / name for name in ("index.html", "findings.json", "exclude.csv"))
    for path in (page, json, table):
        check_output_file(path, "--output")
    from seresnext.distributed import choose_device
    from seresnext.doctor.examine import examine
    from seresnext.doctor.findings import exclusion_list
    from seresnext.doctor.network import FOLDS, Networks
    from seresnext.doctor.page import render
    from seresnext.files import write_json, write_output
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
