"""`python -m seresnext COMMAND`, the same as `seresnext COMMAND`."""

import sys
from typing import NoReturn

from seresnext.process.main import run_ranks
from seresnext.process.stop_request import StopRequest


def main(*words: str) -> NoReturn:
    """Run the command that `words` and the arguments of this process name, and end the process."""
    command, *arguments = [*words, *sys.argv[1:]]

    def run(stop: StopRequest) -> int:
        from seresnext import cli  # Imported late: `stop` must receive signals during the import of torch.

        return cli.train_main(arguments, stop=stop) if command == "train" else cli.validate_main(arguments)

    run_ranks(run, saves=command == "train")


if __name__ == "__main__":
    main()
