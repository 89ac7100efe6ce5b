import io

import torch
from PIL import Image

from seresnext.data.loading.loader import open_batches, train_keys
from seresnext.data.order import Order
from seresnext.data.synthetic import SyntheticImages, SyntheticReader


def test_an_image_has_the_same_pixels_in_every_epoch_and_process():
    reader, order = SyntheticReader(12, 2), Order(12, 4, 4, seed=0)
    seen: dict[int, torch.Tensor] = {}
    for workers in (0, 2):
        source = SyntheticImages(reader, image_size=32, channels=3, seed=5)
        keys = train_keys(order, range(1), 0, 6)
        with open_batches(source, keys, workers=workers, timeout=30, pin_memory=False) as batches:
            for batch in batches:
                assert batch.images.dtype == torch.uint8
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                assert batch.labels.tolist() == (batch.indices % 2).tolist()
                for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
                    assert torch.equal(seen.setdefault(index, image), image)
    assert len({image.numpy().tobytes() for image in seen.values()}) == len(seen) == 12


def test_another_seed_has_other_pixels_and_torchs_randomness_is_left_alone():
    before = torch.random.get_rng_state()
    key = Order(4, 4, 4, seed=0).micro_batch(0, 0)
    one, other = (SyntheticImages(SyntheticReader(4, 2), 8, 3, seed).make(key).images for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_photographs_have_the_sizes_of_imagenet():
    reader = SyntheticReader(1_281_167, 1000)
    photographs = {reader.read(index) for index in range(32)}
    assert len(photographs) == 16
    assert 90_000 < sum(map(len, photographs)) / 16 < 130_000
    assert {Image.open(io.BytesIO(data)).size for data in photographs} == {(500, 375)}
    assert (len(reader), len(reader.classes), int(reader.labels.max())) == (1_281_167, 1000, 999)
