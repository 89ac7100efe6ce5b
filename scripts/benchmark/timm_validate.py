"""A validation on a CPU with the public API of timm, in the order of its `validate.py`.

    python scripts/benchmark/timm_validate.py FOLDER MODEL NUM_CLASSES WEIGHTS WORKERS BATCH RESULT [LOGITS]

RESULT gets `top1` as JSON, LOGITS the logits of all images (`.npy`) in the order of the folder.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    folder, name, num_classes, weights, workers, batch, result, *logits_file = sys.argv[1:]
    data: Any = importlib.import_module("timm.data")
    models: Any = importlib.import_module("timm.models")
    device = torch.device("cpu")
    model = models.create_model(name, num_classes=int(num_classes), checkpoint_path=weights).eval()
    config = data.resolve_data_config({}, model=model)
    loader = data.create_loader(
        data.create_dataset("", folder),
        config["input_size"],
        int(batch),
        num_workers=int(workers),
        device=device,
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )
    found, right = [], 0
    with torch.inference_mode():
        for images, labels in loader:
            found.append(model(images))
            right += int((found[-1].argmax(1) == labels).sum())
    logits = torch.cat(found)
    Path(result).write_text(json.dumps({"top1": 100 * right / len(logits)}))
    if logits_file:
        np.save(logits_file[0], logits.numpy())


if __name__ == "__main__":
    main()
