"""A stand-in for the Hugging Face Hub on 127.0.0.1: repositories, uploads and downloads, as far as a test needs them.

The addresses are those that huggingface_hub calls. Large files (`*.safetensors`) take the way of Git LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, request
from werkzeug.serving import make_server

COMMIT = "c" * 40


class Hub:
    """The files by repository and path, and the requests so far."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()
        self.address = ""
        self._large: dict[str, bytes] = {}

    def app(self) -> Flask:
        app = Flask(__name__)
        app.add_url_rule("/api/repos/create", view_func=self.create, methods=["POST"])
        app.add_url_rule("/api/validate-yaml", view_func=lambda: {"errors": [], "warnings": []}, methods=["POST"])
        app.add_url_rule("/api/models/<org>/<name>/preupload/main", view_func=self.preupload, methods=["POST"])
        app.add_url_rule("/<org>/<name>.git/info/lfs/objects/batch", view_func=self.batch, methods=["POST"])
        app.add_url_rule("/large/<oid>", view_func=self.upload, methods=["PUT"])
        app.add_url_rule("/api/models/<org>/<name>/commit/main", view_func=self.commit, methods=["POST"])
        app.add_url_rule("/<org>/<name>/resolve/main/<path:path>", view_func=self.download)
        return app

    def create(self) -> Any:
        values = request.get_json()
        self.tokens.add(request.headers.get("Authorization"))
        repository = f"{values['organization']}/{values['name']}"
        self.files.setdefault(repository, {})
        return {"url": f"{self.address}/{repository}", "name": repository, "id": "1"}

    def preupload(self, org: str, name: str) -> Any:
        modes = {True: "lfs", False: "regular"}
        paths = [file["path"] for file in request.get_json()["files"]]
        return {
            "files": [
                {"path": path, "uploadMode": modes[path.endswith(".safetensors")], "shouldIgnore": False, "oid": None}
                for path in paths
            ]
        }

    def batch(self, org: str, name: str) -> Any:
        objects = request.get_json()["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.address}/large/{entry['oid']}", "header": {}}}
        body = {"transfer": "basic", "objects": objects}
        return Response(json.dumps(body), mimetype="application/vnd.git-lfs+json")

    def upload(self, oid: str) -> Any:
        self._large[oid] = request.get_data()
        return ""

    def commit(self, org: str, name: str) -> Any:
        files = self.files[f"{org}/{name}"]
        for line in request.get_data().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self._large[entry["value"]["oid"]]
        return {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.address}/{org}/{name}/commit/{COMMIT}"}

    def download(self, org: str, name: str, path: str) -> Any:
        content = self.files.get(f"{org}/{name}", {}).get(path)
        if content is None:
            return Response("not found", 404, {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        return Response(content, headers={"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    server = make_server("127.0.0.1", 0, hub.app(), threaded=True)
    hub.address = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
