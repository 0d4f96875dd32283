#!/usr/bin/env bash
# Trains on all GPUs of this machine in one process, and starts again after whatever ends it but success or a mistake.
# No --coordinator: one process sees all 8 GPUs. SIGTERM or Ctrl-C stops for good, with the step saved.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DATA=${DATA:-$HOME/msm}
PYTHON=${PYTHON:-.venv/bin/python}
CONFIG=${CONFIG:-configs/fastmri256_msm_r4.py}

stopping=
trap 'stopping=yes; kill -TERM "$child" 2> /dev/null' TERM INT
for ((start = 0; start < 1000; start++)); do
  "$PYTHON" main.py --config="$CONFIG" --mode=train --workdir="$DATA/runs/train" \
    --config.data.dir="$DATA/store" "$@" &
  child=$!
  wait "$child"; status=$?
  while kill -0 "$child" 2> /dev/null; do wait "$child"; status=$?; done
  [ -z "$stopping" ] && [ "$status" -ne 0 ] && [ "$status" -ne 2 ] || exit "$status"
  echo "ended with status $status: starting again in ${WAIT:-10} s" >&2
  sleep "${WAIT:-10}"
done
exit 1
