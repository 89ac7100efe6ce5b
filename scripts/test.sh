#!/usr/bin/env bash
# Run the tests with pytest, from a fresh clone too: sets up .venv first.
#
#     bash scripts/test.sh [--full] [--gpu] [--shard I/N] [PYTEST ARGUMENTS]...
#
# Two processes share the test files. The everyday tests take at most 5 minutes on 2 cores. --full adds the long tests,
# such as every fault at every number of processes: at most 35 minutes. --gpu adds the tests that need a CUDA device, in
# one process. --shard 2/4 runs the second quarter of the test files.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"

# From anywhere, `tests/...` means the project's; pytest finds its settings there.
cd -- "$root"
processes=2
[[ " $* " != *" --gpu "* ]] || processes=0
exec "$python" -m pytest --numprocesses "$processes" --dist loadfile "$@"
