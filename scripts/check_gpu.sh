#!/usr/bin/env bash
# Check the project on a GPU and write a report in Markdown. The parts and options are in scripts/check_gpu.py.
#
#     [PYTHON=python3] bash scripts/check_gpu.sh [--report FILE] [--device cpu] [PART...]
#
# PYTHON is a Python that has the packages of the extra `test`; nothing is installed then. Otherwise .venv is set up.
set -euo pipefail
scripts=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
else
    # shellcheck source=scripts/_environment.sh
    source "$scripts/_environment.sh"
fi
exec "$python" "$scripts/check_gpu.py" "$@"
