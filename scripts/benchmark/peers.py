"""The training loaders of torchvision, timm, NVIDIA DALI and FFCV, set up as in their ImageNet recipes.

Random resized crop to 224 (area 0.08 to 1, ratio 3/4 to 4/3), horizontal flip, bilinear. As a program, this module
serves epochs to a benchmark from another environment, because some peers cannot share an environment with this project.

    python scripts/benchmark/peers.py PEER FOLDER WORKERS BATCH

The program prints `ready`, and for each line of input runs an epoch and prints `[images, seconds]`.
"""

import atexit
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Epoch = Callable[[], Iterator[int]]
"""Begins an epoch, and yields the number of images of each batch."""


def torchvision_loader(folder: Path, workers: int, batch: int) -> Epoch:
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    dataset = datasets.ImageFolder(folder, pipeline)
    loader = torch.utils.data.DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda: (len(labels) for _, labels in loader)


def timm_loader(folder: Path, workers: int, batch: int) -> Epoch:
    import torch

    data: Any = importlib.import_module("timm.data")
    torch.set_num_threads(1)
    loader = data.create_loader(
        data.create_dataset("", str(folder), split="train"),
        (3, 224, 224),
        batch,
        is_training=True,
        use_prefetcher=True,
        num_workers=workers,
        device=torch.device("cpu"),
        interpolation="bilinear",
        persistent_workers=True,
        color_jitter=None,
    )
    return lambda: (len(labels) for _, labels in loader)


def dali_loader(folder: Path, workers: int, batch: int) -> Epoch:
    dali: Any = importlib.import_module("nvidia.dali")
    fn, types = importlib.import_module("nvidia.dali.fn"), dali.types

    @dali.pipeline_def
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(file_root=str(folder), random_shuffle=True)
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0]
        )
        images = fn.resize(images, size=[224, 224], interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    built = pipeline(batch_size=batch, num_threads=workers, device_id=None, seed=1)
    built.build()
    total = sum(1 for _ in folder.glob("*/*"))

    def batches() -> Iterator[int]:
        for _ in range(total // batch):
            built.run()
            yield batch

    def epoch() -> Iterator[int]:
        # DALI made these batches during the turns of other loaders. The clock starts later.
        for _ in range(3):
            built.run()
        return batches()

    return epoch


def ffcv_loader(folder: Path, workers: int, batch: int) -> Epoch:
    fields: Any = importlib.import_module("ffcv.fields")
    decoders: Any = importlib.import_module("ffcv.fields.decoders")
    loaders: Any = importlib.import_module("ffcv.loader")
    steps: Any = importlib.import_module("ffcv.transforms")
    writers: Any = importlib.import_module("ffcv.writer")
    from torchvision.datasets import ImageFolder

    beton = Path(tempfile.mkdtemp()) / "train.beton"
    atexit.register(shutil.rmtree, beton.parent)
    # FFCV reads a converted copy: same resolution, quality 90, smaller files than for the other loaders.
    content = {"image": fields.RGBImageField(write_mode="jpg", jpeg_quality=90), "label": fields.IntField()}
    writers.DatasetWriter(str(beton), content, num_workers=workers).from_indexed_dataset(ImageFolder(folder))
    crop = decoders.RandomResizedCropRGBImageDecoder((224, 224))
    loader = loaders.Loader(
        str(beton),
        batch_size=batch,
        num_workers=workers,
        order=loaders.OrderOption.RANDOM,
        os_cache=True,
        pipelines={
            "image": [crop, steps.RandomHorizontalFlip(), steps.ToTensor(), steps.ToTorchImage()],
            "label": [decoders.IntDecoder(), steps.ToTensor()],
        },
    )
    return lambda: (len(images) for images, _ in loader)


PEERS = {"torchvision": torchvision_loader, "timm": timm_loader, "dali": dali_loader, "ffcv": ffcv_loader}


def main() -> None:
    peer, folder, workers, batch = sys.argv[1:]
    # Output of the libraries goes to stderr, not into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    epoch = PEERS[peer](Path(folder), int(workers), int(batch))
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        batches = epoch()
        started = time.perf_counter()
        images = sum(batches)
        print(json.dumps([images, time.perf_counter() - started]), file=answers, flush=True)


if __name__ == "__main__":
    main()
