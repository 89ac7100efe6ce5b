#!/usr/bin/env bash
# Run the tests with pytest, from a fresh clone too: sets up .venv first.
#
#     bash scripts/test.sh [--full] [--gpu] [--shard I/N] [PYTEST ARGUMENTS]...
#
# The everyday tests take at most 5 minutes on 2 cores. --full adds the long tests, such as every fault at every number
# of processes: at most 35 minutes. --gpu adds the tests that need a CUDA device, in one process. --shard 2/4 runs the
# second quarter of the test files. Many tests wait, so there is one process more than there are cores, and at most 8.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"

# From anywhere, `tests/...` means the project's; pytest finds its settings there.
cd -- "$root"
cores=$(nproc 2>/dev/null || echo 1)
processes=$((cores < 7 ? cores + 1 : 8))
[[ " $* " != *" --gpu "* ]] || processes=0
# Threads of OpenMP that wait actively take the cores from the other processes: the everyday tests then need 1.8 times as long.
export OMP_WAIT_POLICY=PASSIVE
exec "$python" -m pytest --numprocesses "$processes" --dist loadfile "$@"
