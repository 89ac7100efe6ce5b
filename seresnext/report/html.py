"""The frame of all web pages: escaped templates, one style, one script, and pictures inside of the page.

Names of classes and files come from strangers. The templates escape every value, no value gets into the script, and the
policy in the page (Content-Security-Policy) permits this one script and no request.
"""

from __future__ import annotations

import base64
import hashlib
import io
from importlib.resources import files
from typing import Any

from PIL import Image

from seresnext import __version__
from seresnext.printable import printable
from seresnext.process.packages import extra

SIDE = 96
"""The longest side of a thumbnail, in pixels."""


def render_page(package: str, template: str, **values: Any) -> str:
    """Return the page of a template of a package, as ASCII; other characters are references of HTML.

    The template extends `page.base.jinja`.
    """
    with extra("report"):
        import jinja2
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
        loader=jinja2.FunctionLoader(lambda name: _read("seresnext.report" if name != template else package, name)),
    )
    style, script = (_read("seresnext.report", name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        **values, script=script, style=style, digest=digest, version=__version__
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def address(image: Image.Image) -> str:
    """Return an image as an address (`data:`)."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _read(package: str, name: str) -> str:
    return (files(package) / name).read_text("utf-8")


def _shown(value: Any) -> Any:
    """Return a value for the template: plain text gets escapes for control characters and turned writing directions."""
    if type(value) is str and not value.isprintable():
        return "\n".join(printable(line, longest=5000) for line in value.split("\n"))
    return value
