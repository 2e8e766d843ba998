"""A hub on loopback that behaves as Hugging Face's does, and as ModelScope's; what goes wrong there goes wrong here.

Large files lie with a second server, to which the first redirects, as they lie with a CDN.
"""

import contextlib
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """What the hub has, and what goes wrong.

    files      {name: content} of ORG/NAME at `main`, that is COMMIT, and at `master`
    large      names of those that lie with the other server
    token      that is asked for, if any; gated: whose account has not accepted the licence
    busy       statuses to answer with, one a request, before anything else; each with busy_headers
    cut        {name: bytes}: each connection ends after so many, for a file that has more
    ranges     whether the other server knows Range
    sent       {name: content} that is sent instead of what the headers promise
    asked      (server, method, path, headers) of every request
    """

    def __init__(self, files, large=()):
        self.files, self.large, self.token, self.gated = dict(files), set(large), "", False
        self.busy, self.busy_headers, self.cut, self.ranges, self.sent, self.asked = [], {}, {}, True, {}, []
        self.listing = {}
        self.servers = {kind: ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, kind)) for kind in ("hub", "cdn")}
        for server in self.servers.values():
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def url(self, kind="hub"):
        return f"http://127.0.0.1:{self.servers[kind].server_port}"

    def fetched(self, kind=None):
        """Names of files asked for by GET."""
        return [path.rpartition("/")[2] for server, method, path, _ in self.asked
                if method == "GET" and "/api/" not in path and kind in (None, server)]


@contextlib.contextmanager
def at_home(monkeypatch, tmp_path, files, large=()):
    """The hub, at whose address it is looked for, without a token, proxies, and without waiting: see `waited`."""
    server = HubServer(files, large)
    server.waited = []
    monkeypatch.setattr(time, "sleep", server.waited.append)
    for variable, value in {"HF_ENDPOINT": f"{server.url()}/", "MODELSCOPE_ENDPOINT": server.url(), "NO_PROXY": "*",
                            "HF_HOME": str(tmp_path), "MODELSCOPE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(variable, value)
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    try:
        yield server
    finally:
        server.close()


def _git(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _handler(hub, kind):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.asked.append((kind, self.command, self.path, dict(self.headers)))
            if hub.busy:
                return self.answer(hub.busy.pop(0), headers=hub.busy_headers)
            parts = urlsplit(self.path)
            if kind == "cdn":
                return self.content(unquote(parts.path[1:]), ranges=hub.ranges)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(401, headers={"X-Error-Code": "GatedRepo" if hub.gated else "RepoNotFound"})
            ask = parse_qs(parts.query)
            if parts.path == "/api/models/ORG/NAME/revision/main":
                card = {"id": "ORG/NAME", "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files],
                        "cardData": {"license": "apache-2.0"}}
                return self.answer(200, json.dumps(card | hub.listing).encode())
            if parts.path == f"/api/models/ORG/NAME/tree/{COMMIT}":
                return self.answer(200, json.dumps([self.tree(name) for name in hub.files]).encode())
            if parts.path == "/api/v1/models/ORG/NAME":
                return self.answer(200, json.dumps({"Code": 200, "Data": {"License": "Apache License 2.0"}}).encode())
            if parts.path == "/api/v1/models/ORG/NAME/repo/files":
                return self.answer(200, self.modelscope(ask))
            if parts.path == "/api/v1/models/ORG/NAME/repo":
                return self.content(ask["FilePath"][0], ranges=True)
            if parts.path.startswith("/api/models/ORG/NAME/revision/"):
                return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
            if parts.path.startswith("/old/NAME/resolve/"):        # it was renamed
                return self.answer(307, headers={"Location": self.path.replace("/old/", "/ORG/")})
            name = unquote(parts.path.removeprefix(f"/ORG/NAME/resolve/{COMMIT}/"))
            if name not in hub.files:
                return self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
            if hub.gated:
                return self.answer(403, headers={"X-Error-Code": "GatedRepo"})
            self.file(name)

        def tree(self, name):
            """As Hugging Face's own client asks for it; weights/hub.py does not."""
            content, git = hub.files[name], _git(hub.files[name])
            lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            return {"type": "file", "path": name, "size": len(content), "oid": git} | (
                {"lfs": lfs} if name in hub.large else {})

        def file(self, name):
            content = hub.files[name]
            if name in hub.large:
                return self.answer(302, b"Found. Redirecting", headers={
                    "Location": f"{hub.url('cdn')}/{name}?signed=x y", "X-Linked-Size": str(len(content)),
                    "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
            self.content(name, ranges=True, commit={"X-Repo-Commit": COMMIT})

        def modelscope(self, ask):
            if ask["Revision"] != ["master"]:
                return json.dumps({"Code": 200, "Data": {"Files": None, "LatestCommitter": None}}).encode()
            files = [{"Path": name, "Name": name, "Type": "blob", "Size": len(content), "Revision": COMMIT,
                      "Sha256": hashlib.sha256(content).hexdigest()} for name, content in hub.files.items()]
            data = {"Files": [{"Path": "onnx", "Type": "tree", "Size": 0}, *files],
                    "LatestCommitter": {"ShortId": COMMIT[:8]}}
            return json.dumps({"Code": 200, "Data": data}).encode()

        def content(self, name, *, ranges, commit=None):
            content = hub.sent.get(name, hub.files[name])
            headers = {"ETag": f'W/"{_git(hub.files[name])}"' if name not in hub.large else '"of-the-cdn"'}
            start, status = 0, 200
            if ranges and (asked := self.headers.get("Range")):
                start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            rest = content[start:]
            self.answer(status, rest, headers=headers | (commit or {}), stop=hub.cut.get(name))

        def answer(self, status, body=b"", *, headers=None, stop=None):
            self.send_response(status)
            for header, value in (headers or {}).items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):                  # whoever asked has left
                    self.wfile.write(body[:stop])
                    self.wfile.flush()
            self.close_connection = True

    return Handler
