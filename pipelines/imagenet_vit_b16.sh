#!/usr/bin/env bash
# The paper's ViT-B/16 on ImageNet, on one machine with 8 GPUs: pipelines/imagenet_vit_b16.sh IMAGENET_FOLDER [OUT]
# IMAGENET_FOLDER holds train/CLASS/*.JPEG and val/CLASS/*.JPEG. The same line continues: sharding and pretraining where
# they were cut off, a fine-tuning from its beginning.
set -euo pipefail

source=${1:?usage: pipelines/imagenet_vit_b16.sh IMAGENET_FOLDER [OUT]}
out=${2:-runs/imagenet}
root=$(cd "$(dirname "$0")/.." && pwd)
launch=(accelerate launch --config_file "$root/configs/accelerate/one_node_8_gpus.yaml")

mpp-shard "$source" "$out/shards" resize=512
mpp verify "$out/shards"
"${launch[@]}" "$root/mpp/pretrain.py" --config "$root/configs/pretrain/vit_b16_imagenet.yaml" \
    shards="$out/shards" out="$out/masked"
"${launch[@]}" "$root/mpp/pretrain.py" --config "$root/configs/pretrain/vit_b16_imagenet_supervised.yaml" \
    shards="$out/shards" out="$out/supervised"
for arm in masked supervised; do
    [ -s "$out/transfer/$arm/results.jsonl" ] || "${launch[@]}" "$root/mpp/transfer.py" \
        --config "$root/configs/transfer/imagenet.yaml" shards="$out/shards" test_split=validation \
        backbone="$out/$arm" out="$out/transfer/$arm"
done
