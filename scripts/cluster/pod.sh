#!/usr/bin/env bash
# The command of a pod of train_job.yaml: one torchrun, which reads the machines, the processes and the address from
# variables PET_*. Arguments go to train.py. OUTPUT is the run folder, on a volume that all pods share.
#
# Kubernetes starts a pod again unless the pod ends with 0. A run that was preempted, because a machine is drained, is saved
# and ends with 0 on all machines. So this script ends with 0 only if the run is finished.
set -euo pipefail
output=${OUTPUT:?set OUTPUT to the run folder}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

# Kubernetes signals this script alone. bash runs a trap only while bash waits for a background command.
python -m seresnext.torchrun --max-restarts=3 --shutdown-timeout 100 train.py --output "$output" "$@" &
launcher=$!
trap 'kill -TERM "$launcher" 2>/dev/null || true' TERM
code=0
while kill -0 "$launcher" 2>/dev/null; do
    wait "$launcher" && code=0 || code=$?
done
[ "$code" = 0 ] || exit "$code"
state=$(sed -n 's/^ *"state": "\(.*\)",$/\1/p' "$output/status.json")
echo "the run is $state"
[ "$state" = finished ]
