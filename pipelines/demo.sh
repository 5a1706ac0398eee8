#!/usr/bin/env bash
# The whole road on a CPU in minutes, on images that need no download: pipelines/demo.sh [OUT]
# Every stage skips itself when its output is complete, so the same line continues a demo that was cut off.
set -euo pipefail

mpp demo "${1:-runs/demo}"
