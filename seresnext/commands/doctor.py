"""`seresnext doctor`: what is wrong with a set of images, before a training."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from seresnext.arguments import Parser, add_device, folds_argument
from seresnext.errors import UsageError
from seresnext.files import check_output_file
from seresnext.paths import check_data_folder, path_argument, text_argument
from seresnext.process.packages import require_extra

LIST, PAGE, JSON = "exclude.csv", "index.html", "findings.json"


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    parser.epilog = f"""examples:
  seresnext doctor photos
  seresnext doctor photos --checkpoint seresnext50 --folds 4
  seresnext doctor photos --quick --output reports/photos

Writes {PAGE}, {JSON} and {LIST} into a folder. A training leaves the images of the list out with
--set data.exclude=doctor/{LIST}. docs/doctor.md describes the findings."""
    add = parser.add_argument
    files = "weights that judge the images, or that the trainings start from: as for `seresnext predict`"
    folds = "train K networks that judge the images they have not seen (default: 4, without a checkpoint)"
    add("data", type=text_argument, metavar="DATA", help="the folder of the images, with or without splits")
    add("--checkpoint", type=text_argument, metavar="FILE", help=files)
    add("--folds", type=folds_argument, metavar="K", help=folds)
    add("--quick", action="store_true", help="no network: only files, copies, classes, sizes and light")
    add("--output", type=path_argument, default=Path("doctor"), metavar="DIR", help="folder of the results (doctor)")
    add("--json", type=path_argument, metavar="FILE", help=f"another place for {JSON}")
    add_device(parser)


def run(options: Namespace) -> None:
    """Find wrong labels, copies, leaks and bad files in a set of images."""
    if options.quick and (options.checkpoint or options.folds):
        raise UsageError("--quick asks no network; leave out --quick, or --checkpoint and --folds")
    check_data_folder(options.data)
    require_extra("report", "cleanlab", "imagehash", "jinja2", "scipy", "sklearn")
    paths = options.output / PAGE, options.json or options.output / JSON, options.output / LIST
    for path in paths:
        check_output_file(path, "--json" if path == options.json else "--output")
    from seresnext.distributed import choose_device
    from seresnext.doctor.examine import describe, examine
    from seresnext.doctor.page import render
    from seresnext.files import write_json, write_output
    from seresnext.run.folder import lies_in

    if lies_in(options.output, Path(options.data)):
        raise UsageError(f"--output {options.output} lies among the images; choose a folder elsewhere")
    device = choose_device(options.device)
    result = examine(options.data, device, options.checkpoint, 0 if options.quick else options.folds)
    print("\n".join(describe(result)))
    page = render(result)
    write_output(paths[0], page)
    write_json(paths[1], result.to_json())
    write_output(paths[2], result.exclusion_list())
    print(f"page: {paths[0]}")
    if count := len(result.listed):
        print(f"{count:,} images are in {paths[2]}; look at the page, then train with --set data.exclude={paths[2]}")
