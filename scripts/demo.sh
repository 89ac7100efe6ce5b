#!/usr/bin/env bash
# From a fresh clone to a trained model: sets up .venv, makes an image folder of 1,797 handwritten digits, trains
# SE-ResNeXt-26 on the digits with two processes, validates the result, draws the curves and writes a report. Takes less than 5 minutes on
# 2 cores after the set-up. Arguments go to `seresnext train`:
#
#     bash scripts/demo.sh [--output DIR] [--set KEY=VALUE]...
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"

output=runs/digits
data=data/digits
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --output=*) output=${1#*=} && : "${output:?"--output needs a folder"}" ;;
        --data=*) data=${1#*=} && : "${data:?"--data needs a folder"}" ;;
        --output) output=${2:?"--output needs a folder"} && shift ;;
        --data) data=${2:?"--data needs a folder"} && shift ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
# Folders of the caller are relative to the caller's folder, the default folders to the project.
[ "$output" = runs/digits ] || output=$(realpath -m -- "$output")
[ "$data" = data/digits ] || data=$(realpath -m -- "$data")
cd -- "$root"

# The two processes share the cores.
cores=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 1 ? cores / 2 : 1))}

trap 'exit 130' INT

"$python" -m seresnext prepare digits --output "$data"
"$python" -m seresnext.torchrun --standalone --nproc_per_node=2 \
    -m seresnext train --recipe digits --data "$data" --output "$output" ${arguments[@]+"${arguments[@]}"}
"$python" -m seresnext validate --checkpoint "$output/checkpoints/best.safetensors" --data "$data" \
    --json "$output/validation.json" --report "$output/report"
"$python" -m seresnext plot "$output"

"$python" - "$output" <<'END'
import json, sys
run = sys.argv[1]
with open(f"{run}/validation.json") as file:
    result = json.load(file)
print(f"""
The demo is done.
  accuracy     {result['top1']:.2f} % of {result['num_images']} validation images (top-1)
  run folder   {run}
  curves       {run}/curves.png
  report       {run}/report/index.html
  TensorBoard  .venv/bin/python -m tensorboard.main --logdir {run}/tensorboard""")
END
