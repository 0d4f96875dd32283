#!/usr/bin/env bash
# The image's default command: makes the demo's data, trains on them, reconstructs another person's; all in /data.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DATA=${DATA:-/data}
CONFIG=configs/brain64_msm.py:${VARIANT:-demo}

python tools/prepare_demo.py --size 64 --out "$DATA/store/brain64"
for mode in train eval; do
  python main.py --config="$CONFIG" --mode="$mode" --workdir="$DATA/demo" --cache="$DATA/cache" \
    --config.data.dir="$DATA/store/brain64"
done
echo "report: $DATA/demo/eval/report.html"
