"""Readers of data: ImageNet's archives, shards, the file of an index, images of all formats."""

import functools
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
from fuzzing.formats import mutate_jpeg, mutate_npy, mutate_png, mutate_tar
from fuzzing.harness import OTHER_ENTRIES, Files, Reader, WrongResult, bytes_of, of_one_file
from fuzzing.mutations import mutate_bytes, mutate_json
from PIL import Image

from seresnext.data.augment.crop import ResizeCenterCrop
from seresnext.data.decode.kinds import HAS_HEIC
from seresnext.data.decode.pillow import Decoding, decode
from seresnext.data.decode.regions import HAS_NVIMGCODEC, Crop, Encoded, RegionDecoder
from seresnext.data.readers import Reader as Split
from seresnext.data.readers.imagenet import DEVKIT, TRAIN, VAL, ImagenetReader
from seresnext.data.readers.imagenet_classes import imagenet_classes
from seresnext.data.readers.index import Index, NotAnIndex, join_names, write_index
from seresnext.data.shards.format import Manifest, index_bytes, list_shard
from seresnext.data.shards.reader import ShardReader
from seresnext.errors import DataError

DECODING = Decoding(1_000_000, exif_rotation=True, background=(1, 2, 3))


def _tar(members: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        end = archive.offset
    return buffer.getvalue()[:end] + bytes(1024)  # tarfile would pad the file to 10 KiB.


def _read_all(split: Split) -> None:
    """Use a split as a training does: labels, names and bytes of all images."""
    if not len(split.labels) == len(split) or max(split.labels.tolist()) >= len(split.classes):
        raise WrongResult("labels that no class has")
    for number in range(min(len(split), 50)):
        split.name(number).encode("utf-8", "surrogateescape")
        split.read(number)


# ------------------------------------------------------------------------------------------------ ImageNet


_TRUTH = "kit/data/ILSVRC2012_validation_ground_truth.txt"


def _train() -> list[Files]:
    classes = [row.wordnet_id for row in imagenet_classes()[:2]]
    found = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        inner = {
            f"{name}.tar": _tar(
                {f"{name}_{number}{'x' * 120 * number}.JPEG": b"\xff\xd8" + bytes(9) for number in (0, 1)}, form
            )
            for name in classes
        }
        found.append({TRAIN.name: _tar(inner, form)})
    return found


def _val() -> list[Files]:
    images = {f"ILSVRC2012_val_{number:08}.JPEG": b"\xff\xd8" + bytes(number) for number in (2, 1, 3)}
    truths = (b"1\n2\n1\n", b"1000\n3\n3\n")
    return [{VAL.name: _tar(images), DEVKIT.name: gzip.compress(_tar({_TRUTH: truth}), 1, mtime=0)} for truth in truths]


def _or_another_entry(mutate: Callable[[Random, Files, Files], Files]) -> Callable[[Random, Files, Files], Files]:
    """Put a folder, a pipe, a device or a link to nowhere in the place of a file, in a share of the inputs."""

    def mutate_any(draws: Random, files: Files, other: Files) -> Files:
        if draws.random() < 0.03:
            return {**files, draws.choice(list(files)): draws.choice(OTHER_ENTRIES)}
        return mutate(draws, files, other)

    return mutate_any


@_or_another_entry
def _mutate_val(draws: Random, files: Files, other: Files) -> Files:
    """Damage the archive of images, the kit as a file, the archive in the kit, or the kit's list of classes."""
    archive, kit = bytes_of(files, VAL.name), bytes_of(files, DEVKIT.name)
    match draws.choice(("archive", "kit", "tar", "truth")):
        case "archive":
            archive = mutate_tar(draws, archive, bytes_of(other, VAL.name))
        case "kit":
            kit = mutate_bytes(draws, kit, bytes_of(other, DEVKIT.name))
        case "tar":
            kit = gzip.compress(mutate_tar(draws, gzip.decompress(kit), gzip.decompress(kit)), 1, mtime=0)
        case _:
            kit = gzip.compress(_tar({_TRUTH: mutate_bytes(draws, b"1\n2\n1\n")}), 1, mtime=0)
    return {VAL.name: archive, DEVKIT.name: kit}


def _read_imagenet(split: str, folder: Path, _: Files) -> None:
    with patch.object(time, "sleep"):  # The index of young files waits for the next tick of the clock.
        _read_all(ImagenetReader(folder, split, folder / "cache"))


# ------------------------------------------------------------------------------------------------ shards

_SHARDS = ("a.tar", "b.tar")


@functools.cache
def _shards() -> list[Files]:
    """Return splits of two shards with an index."""
    found = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        files: dict[str, bytes] = {}
        shards, listings = [], []
        with tempfile.TemporaryDirectory() as folder:
            for start, name in enumerate(_SHARDS):
                content = _tar(
                    {
                        f"{start}{number}.{kind}": (b"\xff\xd8" + bytes(number) if kind == "jpg" else b"%d" % number)
                        for number in range(3)
                        for kind in ("jpg", "cls")
                    },
                    form,
                )
                (Path(folder) / name).write_bytes(content)
                files[f"val/{name}"] = content
                shard, entries = list_shard(Path(folder) / name, 3)
                shards.append(shard)
                listings.append(entries)
        index = index_bytes(listings)
        manifest = Manifest(("ant", "bee", "cat"), tuple(shards), hashlib.sha256(index).hexdigest(), {"seed": 0})
        found.append({**files, "val/index.npy": index, "val/index.json": manifest.to_text().encode()})
    return found


def _signed_manifest(said: dict[str, object]) -> bytes:
    """Return a manifest with a recomputed fingerprint."""
    facts = [said.get("classes"), said.get("shards"), said.get("index_sha256")]
    said["fingerprint"] = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return json.dumps(said).encode()


@_or_another_entry
def _mutate_shards(draws: Random, files: Files, other: Files) -> Files:
    """Damage a shard, the list of images or the manifest, mostly with recomputed checksums in the manifest."""
    files = dict(files)
    said = json.loads(bytes_of(files, "val/index.json"))
    match draws.choice(("shard", "index", "index", "index", "numbers", "manifest", "manifest", "file")):
        case "shard":
            name = draws.choice(_SHARDS)
            files[f"val/{name}"] = shard = mutate_tar(
                draws, bytes_of(files, f"val/{name}"), bytes_of(other, f"val/{name}")
            )
            if draws.random() < 0.5:
                said["shards"][_SHARDS.index(name)]["bytes"] = len(shard)
        case "index":
            files["val/index.npy"] = mutate_npy(draws, bytes_of(files, "val/index.npy"), b"")
        case "numbers":
            index = bytes_of(files, "val/index.npy")
            files["val/index.npy"] = index[:128] + mutate_bytes(draws, index[128:])[: len(index) - 128]
        case "manifest":
            text = mutate_json(draws, said)
            with suppress(ValueError, RecursionError):
                changed = json.loads(text)
                if isinstance(changed, dict) and draws.random() < 0.8:
                    return {**files, "val/index.json": _signed_manifest(changed)}
            return {**files, "val/index.json": text.encode("utf-8", "surrogatepass")}
        case _:
            name = draws.choice(list(files))
            return {**files, name: mutate_bytes(draws, bytes_of(files, name))}
    said["index_sha256"] = hashlib.sha256(bytes_of(files, "val/index.npy")).hexdigest()
    return {**files, "val/index.json": _signed_manifest(said)}


def _read_shards(folder: Path, _: Files) -> None:
    """Read a split, and read the first shard as seresnext prepare shards --index does."""
    _read_all(ShardReader(str(folder), "val"))
    list_shard(folder / "val" / _SHARDS[0], 3)


# ------------------------------------------------------------------------------------------------ index


@functools.cache
def _indices() -> list[Files]:
    numbers = np.arange(4)
    names, ends = join_names(("1.jpg", "\udcff.jpg", "ab.png", "x" * 30))
    full = Index(("ant", "b\udcff"), "f" * 64, numbers // 2, numbers * 100_000, numbers + 300, ends, names)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index in (full, Index(classes=("ant",), fingerprint="f", label=np.zeros(3, np.uint8))):
            write_index(Path(folder) / "a.index", index)
            found.append({"a.index": (Path(folder) / "a.index").read_bytes()})
    return found


def _read_index(folder: Path, _: Files) -> None:
    """Open an index and look up every image."""
    index = Index.open(folder / "a.index")
    if not all(isinstance(text, str) for text in (*index.classes, index.fingerprint)):
        raise WrongResult("names that are no text")
    for number in range(min(len(index), 50)):
        index.classes[index.label[number]].encode("utf-8", "surrogateescape")
        if len(index.names):
            index.stored_name(number)
        for column in (index.offset, index.size):
            if len(column) and not 0 <= int(column[number]) < 1 << 63:
                raise WrongResult("a place that no file has")


# ------------------------------------------------------------------------------------------------ images


@functools.cache
def _pixels(mode: str) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((40, 32), Image.Resampling.BILINEAR).convert(mode)


def _encoded(mode: str, form: str, **options: object) -> Files:
    buffer = io.BytesIO()
    _pixels(mode).save(buffer, form, **options)
    return {"image": buffer.getvalue()}


def _jpegs() -> list[Files]:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = [_encoded("RGB", "JPEG", subsampling=sampling) for sampling in (0, 1, 2)]
    return [
        *plain,
        _encoded("L", "JPEG"),
        _encoded("CMYK", "JPEG"),
        _encoded("RGB", "JPEG", progressive=True),
        _encoded("RGB", "JPEG", exif=exif, comment=b"c", optimize=True),
        _encoded("RGB", "JPEG", restart_marker_blocks=2, icc_profile=bytes(200)),
    ]


def _pngs() -> list[Files]:
    modes = ("RGB", "L", "RGBA", "LA", "P", "1")
    deep = io.BytesIO()
    Image.fromarray(np.arange(1280, dtype=np.uint16).reshape(32, 40) * 50).save(deep, "PNG")
    clear = _encoded("P", "PNG", transparency=3)
    return [*(_encoded(mode, "PNG") for mode in modes), {"image": deep.getvalue()}, clear]


def _webps() -> list[Files]:
    exif = Image.Exif()
    exif[0x0112] = 6
    moving = _encoded("RGB", "WEBP", save_all=True, append_images=[_pixels("RGB").rotate(90)])
    return [_encoded("RGB", "WEBP"), _encoded("RGBA", "WEBP", lossless=True, exif=exif), moving]


def _gifs() -> list[Files]:
    moving = _encoded("P", "GIF", save_all=True, append_images=[_pixels("P").rotate(90)])
    return [_encoded("P", "GIF", transparency=3), _encoded("L", "GIF"), moving]


def _tiffs() -> list[Files]:
    kinds = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4")
    plain = [_encoded("1" if kind == "group4" else "RGB", "TIFF", compression=kind) for kind in kinds]
    return [*plain, *(_encoded(mode, "TIFF") for mode in ("L", "P", "RGBA", "CMYK", "I;16"))]


def _bmps() -> list[Files]:
    return [_encoded(mode, "BMP") for mode in ("RGB", "P", "L", "1")]


def _avifs() -> list[Files]:
    return [_encoded("RGB", "AVIF", speed=10), _encoded("RGBA", "AVIF", speed=10)]


def _heics() -> list[Files]:
    if not HAS_HEIC:
        return [{"image": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"}]
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(_pixels("RGB")).save(buffer)
    return [{"image": buffer.getvalue()}]


@functools.cache
def _decoders() -> list:
    return [RegionDecoder(DECODING, fast) for fast in (True, False) if HAS_NVIMGCODEC or not fast]


def _decode(_: Path, files: Files) -> None:
    """Decode an image as training and validation do. The decoders must accept the same images with the same sizes."""
    data = bytes_of(files, "image")
    sizes: list[tuple[int, int]] = []

    def whole(_: int, width: int, height: int) -> Crop:
        sizes.append((width, height))
        return Crop(0, 0, width, height, False)

    results = [decoder([Encoded(data, lambda: "image")], whole)[0] for decoder in _decoders()]
    shown = [str(result) if isinstance(result, DataError) else f"pixels {result.shape}" for result in results]
    if len({type(result) for result in results}) > 1 or len({s for s in shown if s.startswith("pixels")}) > 1:
        raise WrongResult(f"with nvimgcodec: {shown[0]}; without: {shown[1]}")
    image = decode(data, "image", DECODING)
    if any(size != image.size for size in sizes):
        raise WrongResult(f"sizes {sizes}, decoded {image.size}")
    ResizeCenterCrop(24, 0.875, "bilinear").decode_and_crop(data, "image", DECODING)


READERS = {
    "imagenet_train": Reader(
        _train, _or_another_entry(of_one_file(mutate_tar)), functools.partial(_read_imagenet, "train"), (DataError,)
    ),
    "imagenet_val": Reader(_val, _mutate_val, functools.partial(_read_imagenet, "val"), (DataError,)),
    "shards": Reader(_shards, _mutate_shards, _read_shards, (DataError,)),
    "index": Reader(_indices, of_one_file(mutate_bytes), _read_index, (NotAnIndex,)),
    "jpeg": Reader(_jpegs, of_one_file(mutate_jpeg), _decode, (DataError,)),
    "png": Reader(_pngs, of_one_file(mutate_png), _decode, (DataError,)),
    **{
        name: Reader(make, of_one_file(mutate_bytes), _decode, (DataError,))
        for name, make in {
            "webp": _webps,
            "gif": _gifs,
            "tiff": _tiffs,
            "bmp": _bmps,
            "avif": _avifs,
            "heic": _heics,
        }.items()
    },
}
