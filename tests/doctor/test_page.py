"""The page of the doctor in a browser."""

import numpy as np
import pytest
from browser import needs_chromium, open_browser
from faulty_photos import jpeg, photograph

from seresnext.data.decode.pillow import Decoding
from seresnext.data.readers import Reader
from seresnext.doctor import page as doctor_page
from seresnext.doctor.examine import count_classes
from seresnext.doctor.findings import Finding, find_unreadable
from seresnext.doctor.images import Collection
from seresnext.doctor.page import PICTURES, ROWS, render

HOSTILE = ["<script>window.hit = 1</script>", '"><img src=x onerror="window.hit = 1">', "{{ 7 * 7 }}", "\u202eb\x1b[1m"]


class Strangers(Reader):
    """Images with hostile classes and names."""

    classes, fingerprint, notices = tuple(sorted(HOSTILE)), "", (HOSTILE[0],)
    labels = np.arange(40) % 4
    left_out = (HOSTILE[1],)

    def read(self, index):
        return jpeg(photograph(index, 30))

    def name(self, index):
        return f"{HOSTILE[index % 4]}/{index}"


def page_of(rows=40):
    """Return the page of an examination in which each image has a finding."""
    images = Collection({"train": Strangers()})
    all_rows = [images.row(n % 40, HOSTILE[n % 4], (n + 1) % 40, HOSTILE[(n + 1) % 4], True) for n in range(rows)]
    findings = [Finding("label", "Labels", "A rule.", all_rows), find_unreadable(images, {})]
    result = {
        "data": HOSTILE[0],
        "num_images": len(images),
        "num_listed": 40,
        "method": [HOSTILE[2]],
        "pairs": [(HOSTILE[0], HOSTILE[1], 0.4)],
        "notices": images.notices,
        "classes": count_classes(images, []),
        "sizes": {"smallest": (1, 1), "median": (2, 2), "largest": (3, 3)},
        "findings": [each._asdict() for each in findings],
    }
    return render(result, images, Decoding(10**6))


def test_thumbnails_and_rows_are_bounded(monkeypatch):
    monkeypatch.setattr(doctor_page, "CLASSES", 3)
    page = page_of(2000)
    assert page.isascii()
    assert page.count("data:image/jpeg") == 2 * PICTURES
    assert page.count("<tr>") == 2 + 3 + ROWS  # The headers, the classes, the file that the reader left out.
    assert "The first 500 of 2,000" in page
    assert len(page) < 2_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@needs_chromium
@pytest.mark.full
@pytest.mark.parametrize(
    ("width", "scheme", "script"), [(400, "dark", True), (1280, "light", True), (400, "light", False)]
)
def test_the_page_in_a_browser(browser, tmp_path, width, scheme, script):
    path = tmp_path / "index.html"
    path.write_text(page_of(), "ascii")
    page = browser.open(path, width=width, scheme=scheme, script=script)
    assert (page.errors, len(page.requests)) == ([], 1)
    found = page.evaluate("[window.hit, document.scripts.length, document.querySelectorAll('img[src=x]').length]")
    assert found == [None, 1, 0]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt)")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 27)"
    assert dark == (scheme == "dark")
    shown = page.evaluate("[...document.querySelectorAll('#class-rows tbody th')].map(e => e.textContent)")
    assert sorted(shown) == sorted([*HOSTILE[:3], "\\u202eb\\x1b[1m"])
    links = page.evaluate("[...document.querySelectorAll('dl a')].every(a => document.querySelector(a.hash))")
    assert links
    if script:
        page.evaluate("document.querySelector('#class-rows thead button').focus()")
        page.press("Enter")
        assert page.evaluate("document.querySelector('#class-rows [aria-sort]') !== null")
