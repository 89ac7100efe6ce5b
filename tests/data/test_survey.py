"""The survey of images at a start. Pillow's own reading of each file is the oracle."""

import io
import threading

import encoded_images
import numpy as np
import pytest
from encoded_images import Images, exif_behind_pixels, noise, turned
from PIL import Image, ImageOps

from seresnext.data import survey as survey_module
from seresnext.data.decode.kinds import HAS_HEIC
from seresnext.data.decode.pillow import Decoding, decode
from seresnext.data.readers.photo_choice import PhotoChoice
from seresnext.data.survey import describe, survey
from seresnext.errors import DataError


def encoded(mode: str = "RGB", form: str = "JPEG", orientation: int | None = None, **options: object) -> bytes:
    exif = {} if orientation is None else {"exif": turned(orientation)}
    return encoded_images.encoded(noise(60, 40).convert(mode), form, **exif, **options)


def test_formats_that_are_turned_in_any_case_and_formats_that_are_not():
    """Pillow turns a TIFF by itself. The decoder is the oracle: with and without the key, pixels differ or not."""
    for form in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", *["HEIF"] * HAS_HEIC):
        data = encoded(form=form, orientation=6)
        stored, upright = (decode(data, "any", Decoding(10**6, rotation)) for rotation in (False, True))
        assert (survey(Images(data), Decoding(10**6)).turned == (0,)) == (stored.size != upright.size), form
        assert (stored.size == upright.size) == (form in ("TIFF", "HEIF"))


def test_photos_that_the_reader_has_decoded_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch):
    images = Images(encoded(form="WEBP"), encoded())
    images.choice = PhotoChoice()
    monkeypatch.setattr(survey_module, "decode", lambda *_: pytest.fail("decoded"))
    assert survey(images, Decoding(10**6)) == (2, 2, (), ())
    with pytest.raises(pytest.fail.Exception):  # A limit below the limit of the reader, and the control.
        survey(images, Decoding(100))
    images.choice = None
    with pytest.raises(pytest.fail.Exception):
        survey(images, Decoding(10**6))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [None, 0, *range(1, 9), 9])
def test_turned_images_are_the_ones_that_pillow_turns(form, orientation):
    data = encoded(form=form, orientation=orientation)
    image = Image.open(io.BytesIO(data))
    turned = np.asarray(ImageOps.exif_transpose(image)).tobytes() != np.asarray(image).tobytes()
    assert turned == (orientation in range(2, 9))
    found = survey(Images(data), Decoding(10**6))
    assert (found.turned, found.errors) == ((0,) * turned, ())
    if form == "PNG" and orientation is not None:
        behind = exif_behind_pixels(data)
        assert survey(Images(behind), Decoding(10**6)) == found


def with_thumbnail(data: bytes) -> bytes:
    """Return a JPEG with a thumbnail in the EXIF block. A truncated file then has the thumbnail's end marker."""
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + encoded(quality=20)
    return data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2) + block + data[2:]


def is_refused(data: bytes) -> bool:
    try:
        decode(data, "it", Decoding(10**7))
    except DataError:
        return True
    return False


BROKEN = {
    "empty": b"",
    "text": b"no image" * 99,
    "another format": encoded(form="JPEG2000"),
    "WebP cut off": encoded(form="WEBP")[:-900],
    "GIF cut off": encoded(form="GIF")[:-900],
    "AVIF cut off": encoded(form="AVIF")[:-900],
    "header only": encoded()[:80],
    "cut off": encoded(quality=95)[:-900],
    "cut off behind a thumbnail": with_thumbnail(encoded(quality=95))[:-900],
    "PNG cut off": encoded(form="PNG")[:-900],
}
GOOD = {
    "WebP": encoded(form="WEBP"),
    "TIFF": encoded(form="TIFF"),
    "progressive": encoded(progressive=True),
    "thumbnail": with_thumbnail(encoded()),
    "bytes behind the end": encoded() + b"\0" * 5000,
    "an image behind the end": encoded() + encoded()[:200],
    "PNG with bytes behind the end": encoded(form="PNG") + b"\0" * 5000,
    "broken EXIF": encoded(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("kind", [*BROKEN, *GOOD])
def test_images_that_cannot_be_used_are_the_ones_that_the_decoder_refuses(kind):
    data = (BROKEN | GOOD)[kind]
    found = survey(Images(encoded(), data), Decoding(10**6))
    assert found.seen == 2
    assert is_refused(data) == (kind in BROKEN)
    assert [error[:8] for error in found.errors] == ["image 1 "] * (kind in BROKEN)


def test_cuts_and_changed_bytes_of_photographs_raise_nothing_and_no_false_alarm(photographs):
    rng, mutated = np.random.default_rng(0), []
    for data in photographs:
        for _ in range(8):
            changed = bytearray(data[: rng.integers(2, len(data))] if rng.random() < 0.5 else data)
            for place in rng.integers(0, min(len(changed), 1000), 3 * int(rng.integers(2))):
                changed[place] = rng.integers(256)
            mutated.append(bytes(changed))
    found = survey(Images(*mutated), Decoding(10**7))
    assert found.seen == len(mutated)
    named = {int(error.split()[1]) for error in found.errors}
    refused = {number for number, data in enumerate(mutated) if is_refused(data)}
    assert named <= refused
    cut = {number for number in refused if b"\xff\xd9" not in mutated[number]}
    assert cut <= named
    assert len(cut) > 20


def test_a_sample_is_evenly_spaced_and_reported(monkeypatch):
    monkeypatch.setattr(survey_module, "_MOST_IMAGES", 10)
    images = Images(*[encoded(orientation=6 if number < 500 else 1) for number in range(1000)])
    found = survey(images, Decoding(10**6))
    assert (found.total, found.seen, found.turned) == (1000, 10, (0, 100, 200, 300, 400))
    text = describe({"training": found}, {"training": images})
    assert text is not None
    for words in ("5 of 10 training", "1,000", "image 0"):
        assert words in text
    # The control: the survey reads all images of a small split.
    few = survey(Images(*images.images[:10]), Decoding(10**6))
    whole = str(describe({"training": few}, {"training": images}))
    assert "10 of 10 training" in whole
    assert "1,000" not in whole


def test_one_warning_counts_turned_images_in_both_splits():
    readers = {
        "training": Images(encoded(), encoded(orientation=3), encoded("RGBA", "PNG")),
        "validation": Images(encoded(orientation=8), encoded(orientation=8)),
    }
    text = describe({name: survey(reader, Decoding(10**6)) for name, reader in readers.items()}, readers)
    assert text is not None
    for words in ("1 of 3 training", "image 1", "2 of 2 validation", "image 0", "data.exif_rotation=true"):
        assert words in text
    turning = Decoding(10**6, exif_rotation=True)
    assert describe({name: survey(reader, turning) for name, reader in readers.items()}, readers) is None


def test_the_time_is_bounded_and_no_thread_is_left(monkeypatch):
    before = threading.active_count()
    found = survey(Images(*[encoded()] * 50), Decoding(10**6))
    assert (found.seen, threading.active_count()) == (50, before)
    monkeypatch.setattr(survey_module, "_MOST_SECONDS", 0.0)
    assert survey(Images(*[b""] * 50), Decoding(10**6)).seen == 0
