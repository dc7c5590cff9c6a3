"""A server on this machine that speaks the Hugging Face hub's addresses of files and commits, for the real client package."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer:
    """Repositories of models: ``commits[name]`` is a list of (id, {path: bytes}), the newest last."""

    def __init__(self, token: str | None = None) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.private: dict[str, bool] = {}
        self.token = token
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def commit(self, name: str, changed: dict[str, bytes]) -> str:
        """Add a commit in which some files are new."""
        before = self.commits.setdefault(name, [])
        files = (before[-1][1] if before else {}) | changed
        text = json.dumps({p: hashlib.sha1(c).hexdigest() for p, c in sorted(files.items())})
        commit = hashlib.sha1(f"{len(before)}{text}".encode()).hexdigest()
        before.append((commit, files))
        return commit

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for commit, files in reversed(self.commits.get(name, [])):
            if revision in ("main", commit):
                return commit, files
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    server_of: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server_of, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if not self._allowed():
            return self._json({"error": "Invalid credentials"}, 401, {"X-Error-Code": "GatedRepo"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._about(found[1], found[2] or "main")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            return self._tree(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        return self._json({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        body = self._body()
        oid = hashlib.sha256(body).hexdigest()
        assert self.path == f"/lfs/{oid}"
        self.server_of.stored[oid] = body
        self._json({})

    def do_POST(self) -> None:
        hub, path, body = self.server_of, unquote(urlsplit(self.path).path), self._body()
        hub.requests.append(f"POST {path}")
        if not self._allowed():
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about['organization']}/{about['name']}"
            if name in hub.commits:
                return self._json({"error": "You already created this model repo"}, 409)
            hub.private[name] = bool(about.get("private")) or about.get("visibility") == "private"
            hub.commit(name, {".gitattributes": b""})
            return self._json({"url": f"{hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(found[1], body)
        return self._json({"error": "not found"}, 404)

    def _commit(self, name: str, body: bytes) -> None:
        hub, changed = self.server_of, {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                assert value["encoding"] == "base64"
                changed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changed[value["path"]] = hub.stored[value["oid"]]
        commit = hub.commit(name, changed)
        url = f"{hub.url}/{name}/commit/{commit}"
        self._json({"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})

    def _about(self, name: str, revision: str) -> None:
        found = self.server_of.find(name, revision)
        if found is None:
            code = "RevisionNotFound" if name in self.server_of.commits else "RepoNotFound"
            return self._json({"error": "not found"}, 404, {"X-Error-Code": code})
        files = [{"rfilename": path} for path in sorted(found[1])]
        about = {"id": name, "modelId": name, "sha": found[0], "siblings": files, "tags": []}
        return self._json({**about, "private": False, "gated": False, "disabled": False})

    def _tree(self, name: str, revision: str) -> None:
        found = self.server_of.find(name, revision)
        if found is None:
            return self._json({"error": "not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return self._json(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for path, content in sorted(found[1].items())
            ]
        )

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self.server_of.find(name, revision)
        if found is None or path not in found[1]:
            return self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        content = found[1][path]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", found[0])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def _allowed(self) -> bool:
        token = self.server_of.token
        return token is None or self.headers.get("authorization") == f"Bearer {token}"

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
