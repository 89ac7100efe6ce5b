#!/usr/bin/env bash
# The tests, from a fresh clone: sets up .venv and runs pytest. Under 20 minutes on 2 cores after the set-up.
#
#     bash scripts/test.sh [--full] [--gpu] [PYTEST ARGUMENTS]...
#
# --full also runs the long tests, such as every fault at every number of processes: under 60 minutes on 2 cores.
# --gpu also runs the tests that need a CUDA device.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"

# From anywhere, `tests/...` means the project's; pytest finds its settings there.
cd -- "$root"
exec "$python" -m pytest "$@"
