from pathlib import Path
from typing import get_args

import pytest

from seresnext.data.formats import READERS, detect_format
from seresnext.recipe.schema import DataSection


def test_the_schema_accepts_the_formats_of_the_table():
    assert get_args(DataSection.model_fields["format"].annotation) == (*READERS, "synthetic")


@pytest.mark.parametrize(
    ("format", "files", "detected"),
    [
        ("folder", ["val/a/1.jpg"], "folder"),
        ("folder", ["ILSVRC2012_img_val.tar"], "imagenet"),
        ("folder", ["ILSVRC2012_img_val.tar", "val/a/1.jpg"], "folder"),
        ("imagenet", ["val/a/1.jpg"], "folder"),
        ("imagenet", ["ILSVRC2012_img_val.tar"], "imagenet"),
        ("imagenet", [], "imagenet"),
    ],
)
def test_a_format_that_was_not_given_is_detected(tmp_path: Path, format: str, files: list[str], detected: str):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert detect_format(tmp_path, "val", format) == detected
