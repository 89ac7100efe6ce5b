"""Fuzz the readers: read damaged inputs, each with a number, and list the inputs that escape.

    python scripts/fuzz.py [--inputs 60000] [--seed 0] [--only READER,...] [--keep DIR] [--json FILE]
    python scripts/fuzz.py --only READER --number N [--seed 0]      # one input again, with the traceback

The inputs are recipes, checkpoints (also with a recomputed digest), files of weights, archives, shards, indices, images
and the files of a run folder. A refusal is the error that the reader documents, with a clear message. An escape is any
other exception, a crash, 10 seconds without an end, memory out of proportion to the input, a warning of Python, a
message of excessive length or with a Python address, or a result that an independent check finds wrong. Exits with 1 if
an input escaped, else with 0. Needs no GPU, no data and no network; takes about 5 minutes on one core.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import _python  # noqa: F401
from fuzzing import images, texts, weights
from fuzzing.harness import Reader, Row, fuzz, make_input, printable, write_files

from seresnext.arguments import path_argument
from seresnext.errors import Failure, UsageError
from seresnext.process.exit import run_script

READERS: dict[str, Reader] = {**texts.READERS, **weights.READERS, **images.READERS}
_LISTED = 20  # Escapes of a reader that are printed; the file of --json has all.


class Escaped(Failure):
    """Inputs escaped."""


def main() -> None:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=60_000, metavar="N", help="of all readers (default: 60000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the damage (default: 0)")
    parser.add_argument("--only", metavar="READER,...", help=f"some of {', '.join(READERS)}")
    parser.add_argument("--number", type=int, metavar="N", help="read one input of one reader, and print its files")
    parser.add_argument("--keep", type=path_argument, metavar="DIR", help="write the inputs that escaped to DIR")
    parser.add_argument(
        "--json", type=path_argument, metavar="FILE", help="also write the table and all escapes to FILE"
    )
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        raise UsageError(f"--only {unknown[0]}: there is no such reader; the readers are {', '.join(READERS)}")
    if options.number is not None and len(names) > 1:
        raise UsageError("--number needs one reader; name the reader with --only")
    share = -(-options.inputs // len(names))
    numbers = range(share) if options.number is None else range(options.number, options.number + 1)
    rows = []
    print(f"{'reader':<16}{'inputs':>8}{'accepted':>10}{'refused':>10}{'escapes':>9}{'seconds':>9}{'memory':>9}")
    for name in names:
        rows.append(fuzz(name, READERS[name], numbers, options.seed))
        print(_line(rows[-1]), flush=True)
    total = Row("all", seconds=sum(row.seconds for row in rows), grown=max(row.grown for row in rows))
    for row in rows:
        total.inputs, total.accepted = total.inputs + row.inputs, total.accepted + row.accepted
        total.refused, total.escapes = total.refused + row.refused, total.escapes + row.escapes
    print(_line(total))
    if options.json:
        options.json.write_text(
            json.dumps({"seed": options.seed, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    for row in rows:
        _report(row, options.seed, options.keep, whole=options.number is not None)
    if total.escapes:
        raise Escaped(
            f"{len(total.escapes):,} of {total.inputs:,} inputs escaped; read one again with --seed {options.seed} "
            "--only READER --number N"
        )


def _line(row: Row) -> str:
    numbers = f"{row.inputs:>8}{row.accepted:>10}{row.refused:>10}{len(row.escapes):>9}{row.seconds:>9.1f}"
    return f"{row.reader:<16}{numbers}{row.grown / 2**20:>5.0f} MiB"


def _report(row: Row, seed: int, keep: Path | None, whole: bool) -> None:
    """Print the escapes of a reader and write the inputs to `keep`; `whole` prints the inputs and tracebacks too."""
    reader = READERS[row.reader]
    seeds = reader.seeds()
    for count, escape in enumerate(row.escapes):
        if count < _LISTED:
            print(f"{row.reader} {escape.number}: {escape.reason}")
        if keep:
            folder = keep / f"{row.reader}-{escape.number}"
            folder.mkdir(parents=True)
            write_files(folder, make_input(reader, seeds, row.reader, seed, escape.number))
        if whole:
            for name, content in make_input(reader, seeds, row.reader, seed, escape.number).items():
                print(f"{printable(name)}: {len(content)} bytes: {content[:2000]!a}")
            print(printable(escape.details).replace(" / ", "\n"))
    if len(row.escapes) > _LISTED:
        print(f"{row.reader}: and {len(row.escapes) - _LISTED} more")


if __name__ == "__main__":
    run_script(main)
