"""The frame of all web pages: escaped templates, one style, one script, and pictures inside of the page.

Names of classes and files come from strangers. The templates escape every value, no value gets into the script, and the
policy in the page (Content-Security-Policy) permits this one script and no request.
"""

import base64
import hashlib
import io
from importlib.resources import files
from typing import Any

from PIL import Image

from seresnext import __version__
from seresnext.errors import printable
from seresnext.process.packages import extra

_HERE = "seresnext.report"
SIDE = 96  # the longest side of a thumbnail, in pixels


def render_page(package: str, **values: Any) -> str:
    """Return the page of a package's template, as ASCII; other characters are references of HTML.

    The template `page.html.jinja` extends `page.base.jinja`.
    """
    with extra("report"):
        import jinja2
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
        loader=jinja2.FunctionLoader(lambda name: _read(package if name == "page.html.jinja" else _HERE, name)),
    )
    style, script = (_read(_HERE, name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values |= {"script": script, "style": style, "digest": digest, "version": __version__}
    page = environment.get_template("page.html.jinja").render(values)
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
