"""A stand-in for S3 (moto's server), which the environment of this process and of its children points to."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def stand_in_s3(bucket: str) -> Iterator[str]:
    """Start the server with an empty bucket, and yield its address, such as `http://127.0.0.1:1234`."""
    # Imported here, since each process of the tests imports all test modules, and few use these packages.
    import fsspec
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            address = "http://{}:{}".format(*server.get_host_and_port())
            patch.setenv("AWS_ENDPOINT_URL", address)
            for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
                patch.setenv(f"AWS_{name}", "testing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_CONFIG_FILE", "/dev/null")
            s3fs.S3FileSystem.clear_instance_cache()  # An instance keeps the address of another server.
            fsspec.filesystem("s3").mkdir(bucket)
            yield address
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
