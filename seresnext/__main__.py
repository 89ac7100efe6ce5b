"""`python -m seresnext COMMAND`, the same as `seresnext COMMAND`."""

import sys
from typing import NoReturn

from seresnext.process.ranks import run_ranks
from seresnext.process.signals import StopRequest


def main(*command: str) -> NoReturn:
    """Run the command that `command` and the arguments of this process name, and end the process."""
    words = [*command, *sys.argv[1:]]

    def run(stop: StopRequest) -> int:
        from seresnext import cli  # Imported late: `stop` must receive signals during the import.

        return cli.main(words, stop)

    run_ranks(run, saves=words[:1] in (["train"], ["finetune"]))


if __name__ == "__main__":
    main()
