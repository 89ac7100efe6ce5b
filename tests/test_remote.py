"""The base of all users of fsspec. tests/data/shards/test_remote.py has a real server, and a stand-in for S3."""

from __future__ import annotations

import pytest

from seresnext.remote import Refused, file_system, has_secrets, is_final, is_remote, reason_of, shown_url


@pytest.mark.parametrize("url", ["https://ann:secret@host/x", "https://host/x?token=secret", "s3://k:secret@bucket/x"])
def test_secrets_in_an_address_are_found_and_not_shown(url: str):
    assert is_remote(url)
    assert has_secrets(url)
    assert "secret" not in shown_url(url)


@pytest.mark.parametrize("url", ["https://host/x", "s3://bucket/x"])
def test_an_address_without_secrets(url: str):
    assert not has_secrets(url)
    assert shown_url(url) == url


def test_messages_of_a_library_are_shown_without_addresses():
    error = OSError("no answer from https://ann:secret@host/x?token=secret today")
    assert reason_of(error) == "no answer from (address) today"


def test_which_failures_another_attempt_would_not_change():
    assert [is_final(error) for error in (FileNotFoundError(), PermissionError(), Refused())] == [True] * 3
    assert [is_final(error) for error in (OSError("reset"), TimeoutError())] == [False] * 2


def test_an_unknown_kind_of_address():
    with pytest.raises(Refused, match="gopher:// is an unknown kind"):
        file_system("gopher")
