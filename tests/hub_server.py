"""A stand-in for the Hugging Face Hub on 127.0.0.1: repositories, uploads and downloads, as far as a test needs them.

The addresses are those that huggingface_hub calls. Large files (`*.safetensors`) take the way of Git LFS.
"""

import base64
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, Response, request
from werkzeug.serving import make_server

COMMIT = "c" * 40


class Hub:
    """The files by repository and path, the tokens so far, and the environment of a process that uses the hub."""

    def __init__(self, address: str, cache: Path) -> None:
        self.address = address
        self.files: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.tokens: set[str | None] = set()
        self.environment = {
            "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip


@contextmanager
def serve_hub(cache: Path) -> Iterator[Hub]:
    app = Flask(__name__)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    hub = Hub(f"http://127.0.0.1:{server.port}", cache)
    large: dict[str, bytes] = {}

    @app.post("/api/repos/create")
    def create() -> Any:
        hub.tokens.add(request.headers.get("Authorization"))
        repository = "{organization}/{name}".format(**request.get_json())
        return {"url": f"{hub.address}/{repository}", "name": repository, "id": "1"}

    @app.post("/api/validate-yaml")
    def validate() -> Any:
        return {"errors": [], "warnings": []}

    @app.post("/api/models/<path:repository>/preupload/main")
    def preupload(repository: str) -> Any:
        files = [{"path": file["path"], "shouldIgnore": False, "oid": None} for file in request.get_json()["files"]]
        for file in files:
            file["uploadMode"] = "lfs" if file["path"].endswith(".safetensors") else "regular"
        return {"files": files}

    @app.post("/<path:repository>.git/info/lfs/objects/batch")
    def batch(repository: str) -> Any:
        objects = request.get_json()["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{hub.address}/large/{entry['oid']}", "header": {}}}
        body = {"transfer": "basic", "objects": objects}
        return Response(json.dumps(body), mimetype="application/vnd.git-lfs+json")

    @app.put("/large/<oid>")
    def upload(oid: str) -> Any:
        large[oid] = request.get_data()
        return ""

    @app.post("/api/models/<path:repository>/commit/main")
    def commit(repository: str) -> Any:
        for entry in map(json.loads, request.get_data().splitlines()):
            value = entry["value"]
            if entry["key"] != "header":
                content = large[value["oid"]] if "oid" in value else base64.b64decode(value["content"])
                hub.files[repository][value["path"]] = content
        return {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.address}/{repository}/commit/{COMMIT}"}

    @app.get("/<org>/<name>/resolve/main/<path:path>")
    def download(org: str, name: str, path: str) -> Any:
        content = hub.files[f"{org}/{name}"].get(path)
        if content is None:
            return Response("not found", 404, {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        return Response(content, headers={"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
