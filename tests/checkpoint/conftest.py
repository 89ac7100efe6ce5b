"""Places for mirrors: a folder, and a bucket of a stand-in for S3."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_s3 import stand_in_s3


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address of an empty bucket."""
    with stand_in_s3("mirrors"):
        yield "s3://mirrors"


@pytest.fixture(params=["folder", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address without files: a folder that does not exist, or a prefix of a bucket."""
    if request.param == "folder":
        return str(tmp_path / "mirror")
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}/run"
