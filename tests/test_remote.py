"""The base of all users of fsspec. tests/data/shards/test_remote.py has a real server, and a stand-in for S3."""

import pytest

from seresnext.errors import DataError, UsageError
from seresnext.remote import file_system, is_final, reason_of, refuse_secrets


@pytest.mark.parametrize("url", ["https://ann:secret@host/x", "https://host/x?token=secret", "s3://k:secret@host/x"])
def test_secrets_in_an_address_are_refused_and_not_shown(url: str):
    with pytest.raises(UsageError, match=r"data\.root (https|s3)://host/x has a user.*in the environment") as caught:
        refuse_secrets(url, "data.root")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/x", "s3://bucket/x"])
def test_an_address_without_secrets(url: str):
    refuse_secrets(url, "data.root")


def test_messages_of_a_library_are_shown_without_addresses():
    error = OSError("no answer from https://ann:secret@host/x?token=secret today")
    assert reason_of(error) == "no answer from (address) today"


def test_which_failures_another_attempt_would_not_change():
    assert [is_final(error) for error in (FileNotFoundError(), PermissionError(), DataError())] == [True] * 3
    assert [is_final(error) for error in (OSError("reset"), TimeoutError())] == [False] * 2


def test_an_unknown_kind_of_address():
    with pytest.raises(DataError, match="gopher:// is an unknown kind"):
        file_system("gopher")
