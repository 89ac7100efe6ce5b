#!/usr/bin/env bash
# Installs everything into .venv, and nothing outside. demo.sh and test.sh do the same before they begin.
#
#     bash scripts/setup.sh
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
echo "ready: source $venv/bin/activate"
