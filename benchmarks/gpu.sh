#!/bin/bash
# Everything that has to be seen on a GPU: `bash benchmarks/gpu.sh`, at most ten minutes, no network; see gpu.py.
cd "$(dirname "$0")/.." && HF_HUB_OFFLINE=1 exec python benchmarks/gpu.py "$@"
