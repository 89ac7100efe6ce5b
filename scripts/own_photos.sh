#!/usr/bin/env bash
# The figures of docs/own-images.md: fine-tuning on 300 photographs of three classes of CIFAR-10, from weights that this
# project trains on the seven other classes, beside training from nothing. The 300 validation photographs of the three
# classes are new to all runs. Takes about ten minutes on 2 cores.
#
#     bash scripts/own_photos.sh CIFAR OUTPUT      (CIFAR holds train/CLASS/ and val/CLASS/, with 100 photographs or more)
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"

[ $# -eq 2 ] || { echo "usage: bash scripts/own_photos.sh CIFAR OUTPUT" >&2 && exit 2; }
cifar=$(realpath -- "$1") output=$(realpath -m -- "$2")
classes=(cat ship truck)
mkdir -p -- "$output/others" "$output/photos" "$output/new"
for split in train val; do
    mkdir -p -- "$output/others/$split"
    for folder in "$cifar/$split"/*/; do
        ln -sfn -- "${folder%/}" "$output/others/$split/$(basename -- "$folder")"
    done
done
for class in "${classes[@]}"; do
    rm -f -- "$output/others"/{train,val}/"$class"
    mkdir -p -- "$output/photos/$class"
    find "$cifar/train/$class" -type f | sort | sed -n 1,100p | xargs cp -t "$output/photos/$class"
    ln -sfn -- "$cifar/val/$class" "$output/new/$class"
done

seresnext() { "$python" -m seresnext "$@"; }
small=(--set model.name=seresnext26 --set data.image_size=64)
seresnext train --recipe cifar10 --data "$output/others" --output "$output/other-classes" --set model.num_classes=7
for weights in "$output/other-classes/checkpoints/best.safetensors" none; do
    run=$output/from-$([ "$weights" = none ] && echo nothing || echo weights)
    start=$SECONDS
    seresnext finetune "$output/photos" --output "$run" --weights "$weights" "${small[@]}"
    echo "$(basename -- "$run"): $((SECONDS - start)) s to the report"
    seresnext validate --checkpoint "$run" --data "$output/new" --split all
done
