#!/usr/bin/env bash
# CIFAR-10 from parquet to verdict, within an hour on two CPU cores: pipelines/cifar10.sh PARQUET_FOLDER [OUT]
# Every stage skips itself when its output is complete, so the same line continues a run that was cut off.
set -euo pipefail

source=${1:?usage: pipelines/cifar10.sh PARQUET_FOLDER [OUT]}
out=${2:-runs/cifar10}
configs=$(cd "$(dirname "$0")/../configs" && pwd)

mpp-shard "$source" "$out/shards"
mpp verify "$out/shards"
mpp pretrain --config "$configs/pretrain/cifar10_small.yaml" shards="$out/shards" out="$out/comparison/pretrain/masked-seed0"
mpp reconstruct "$out/comparison/pretrain/masked-seed0" "$out/reconstructions.png"
mpp compare --config "$configs/compare/cifar10_small.yaml" shards="$out/shards" out="$out/comparison"
