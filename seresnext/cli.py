"""The commands of `seresnext COMMAND`: arguments in, exit code out.

Each command is a row of COMMANDS. The import of torch takes seconds in each process, so the functions here import late,
and checks that need no torch come first: arguments, recipe, missing data.
"""

import gc
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seresnext import __version__
from seresnext.arguments import Parser
from seresnext.commands import finetune, prepare, tools, train, validate
from seresnext.errors import Failure, UsageError
from seresnext.process.exit import INTERRUPTED, exit_code_of, write_error_file
from seresnext.process.packages import LIGHT_PACKAGES, PACKAGES, require_packages
from seresnext.process.ranks import exiting_at_interrupt, has_one_machine, is_first_rank, print_failure
from seresnext.process.signals import StopRequest


@dataclass(frozen=True)
class Command:
    """A command: the arguments, the work, and the packages that the work needs.

    A command is of one process, or `is_ranked`: `run(options, stop)` then works without torch, and returns the job of
    a rank, or None if the command is done. `recorded_run` returns the run folder that gets the status of a failure.
    """

    add_arguments: Callable[[Parser], None]
    run: Callable[..., Any]
    interrupted: str = "interrupted"  # printed after Ctrl-C
    packages: Sequence[str] = PACKAGES
    is_ranked: bool = False
    recorded_run: Callable[[Namespace], Path | None] = lambda options: None


# The first line of the docstring of `run` describes the command in the help.
COMMANDS: dict[str, Command] = {
    "train": Command(train.add_arguments, train.prepare, is_ranked=True, recorded_run=train.recorded_run),
    "finetune": Command(finetune.add_arguments, finetune.prepare, is_ranked=True, recorded_run=finetune.recorded_run),
    "check": Command(train.check_arguments, train.check, is_ranked=True),
    "validate": Command(validate.add_arguments, validate.prepare, is_ranked=True),
    "report": Command(validate.report_arguments, validate.report, is_ranked=True),
    "doctor": Command(tools.doctor_arguments, tools.doctor, "interrupted; nothing was written"),
    "compare": Command(tools.compare_arguments, tools.compare),
    "predict": Command(tools.predict_arguments, tools.predict),
    "export": Command(tools.export_arguments, tools.export),
    "card": Command(tools.card_arguments, tools.card),
    "verify": Command(tools.verify_arguments, tools.verify),
    "prepare digits": Command(prepare.digits_arguments, prepare.digits),
    "prepare cifar10": Command(prepare.cifar10_arguments, prepare.cifar10),
    "prepare imagenet": Command(prepare.imagenet_arguments, prepare.imagenet, "interrupted; nothing was written"),
    "prepare shards": Command(prepare.shards_arguments, prepare.shards, "interrupted; the same command continues"),
    "average": Command(tools.average_arguments, tools.average),
    "runs": Command(tools.runs_arguments, tools.runs, packages=LIGHT_PACKAGES),
    "plot": Command(tools.plot_arguments, tools.plot),
    "models": Command(tools.models_arguments, tools.models),
    "recipe": Command(tools.recipe_arguments, tools.recipe, packages=LIGHT_PACKAGES),
}


def main(words: Sequence[str], stop: StopRequest) -> int:
    """Run the command that the words of a command line name, to the end or until `stop` has a request.

    Returns the exit code: 0 done, or stopped after a save; otherwise see errors.py.
    """
    count = 2 if words[:1] == ["prepare"] else 1
    name, arguments = " ".join(words[:count]), words[count:]
    command = COMMANDS.get(name)
    if command and command.is_ranked:
        return _run_ranks(name, command, arguments, stop)
    gc.enable()
    if command is None:
        return exit_code_of(lambda: _print_commands(name))
    return exit_code_of(lambda: _run_alone(name, command, arguments), command.interrupted)


def _parse(name: str, command: Command, words: Sequence[str], options: Namespace) -> Namespace:
    parser = Parser(prog=f"seresnext {name}", description=_summary(command))
    command.add_arguments(parser)
    return parser.parse(words, options)


def _summary(command: Command) -> str:
    return str(command.run.__doc__).partition("\n")[0]


def _print_commands(name: str) -> None:
    listing = "\n".join(f"  {name:<{max(map(len, COMMANDS))}}  {_summary(row)}" for name, row in COMMANDS.items())
    if name == "--version":
        print(f"seresnext {__version__}")
    elif name in ("-h", "--help", "prepare -h", "prepare --help"):
        print(f"usage: seresnext COMMAND ...\n\n{listing}\n\n`seresnext COMMAND --help` describes the arguments.")
    else:
        problem = f"there is no command {name!r}" if name else "the command is missing"
        raise UsageError(f"{problem}; give one of the commands\n{listing}")


def _run_alone(name: str, command: Command, arguments: Sequence[str]) -> None:
    options = _parse(name, command, arguments, Namespace())
    require_packages(command.packages)
    command.run(options)


def _run_ranks(name: str, command: Command, arguments: Sequence[str], stop: StopRequest) -> int:
    """Prepare a job on each rank, without torch. Then do the job on all ranks together. Return the exit code."""
    options, has_world, job, unprepared = Namespace(), False, None, None
    try:
        with exiting_at_interrupt():
            try:
                _parse(name, command, arguments, options)
                job = command.run(options, stop)
                if job is None:
                    return 0
            except Failure as failure:
                if has_one_machine():
                    raise
                unprepared = failure  # Other machines may have no failure, and must not wait for this machine.
            require_packages()
            import seresnext.run.train
            import seresnext.run.validate  # noqa: F401
            from seresnext.distributed import open_world
        gc.freeze()  # The garbage collector can ignore the imported objects.
        with open_world("auto" if job is None else options.device) as world:
            has_world = True
            with world.agreeing():
                if unprepared:
                    raise unprepared
            assert job is not None
            job(world)
    except Failure as failure:
        print_failure(failure, has_world, is_stopping=lambda: stop.has_come)
        folder = command.recorded_run(options)
        # os.path.isdir raises nothing.
        if folder and os.path.isdir(folder) and not failure.is_recorded and is_first_rank():  # noqa: PTH112
            with suppress(ImportError):  # This Python may lack torch.
                from seresnext.run.folder import record_refusal

                record_refusal(folder, str(failure))
        return failure.exit_code
    except KeyboardInterrupt:
        if is_first_rank():
            print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:  # After --help.
        return int(end.code or 0)
    except Exception:
        write_error_file(traceback.format_exc())
        raise
    return 0
