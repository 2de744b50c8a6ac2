"""A proxy before the Kubernetes API server that kills a program at one of its calls.

session-manager connects in plaintext; the proxy adds the client certificate of the kubeconfig. One call is
armed at a time: `before` it the call is not forwarded, `after` it the answer is lost.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import kube


def call_name(method: str, target: str) -> str:
    """The call as tests name it, such as `POST pods`; `LIST generation` reads the pods of one session."""
    url = urlsplit(target)
    query = parse_qs(url.query)
    parts = url.path.strip("/").split("/")  # api v1 namespaces NAMESPACE KIND [NAME [log]]
    if "watch" in query:
        return "WATCH"
    if len(parts) < 5:
        return f"{method} {url.path}"
    if method == "GET" and len(parts) == 5:
        selector = query.get("labelSelector", [""])[0]
        return "LIST generation" if "berth/generation" in selector else f"LIST {parts[4]}"
    return f"{method} {parts[4]}"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A killed program resets its connections."""


class ApiProxy:
    """The proxy, until `stop`."""

    def __init__(self, folder: Path) -> None:
        config = json.loads(kube.kubectl("config", "view", "--raw", "-o", "json"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._host = urlsplit(cluster["server"]).netloc
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        with tempfile.TemporaryDirectory() as secret:
            paths = []
            for key in ("client-certificate-data", "client-key-data"):
                paths.append(Path(secret) / key)
                paths[-1].write_bytes(base64.b64decode(user[key]))
            self._tls.load_cert_chain(*paths)
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._armed: tuple[str, str, Callable[[], None]] | None = None
        self.fired = threading.Event()
        self._server = Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.kubeconfig = str(folder / "proxied.kubeconfig")
        Path(self.kubeconfig).write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
        }))  # fmt: skip

    def arm(self, call: str, when: str, action: Callable[[], None]) -> None:
        """Runs `action` once, `before` or `after` the next call of this name."""
        with self._lock:
            self.fired.clear()
            self._armed = (call, when, action)

    def disarm(self) -> None:
        with self._lock:
            self._armed = None

    def stop(self) -> None:
        self._server.shutdown()

    def _take(self, name: str, when: str) -> bool:
        with self._lock:
            if self._armed is None or self._armed[:2] != (name, when):
                return False
            action, self._armed = self._armed[2], None
        action()
        self.fired.set()
        return True

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                name = call_name(self.command, self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.calls.append(name)
                if proxy._take(name, "before"):
                    self.close_connection = True
                    return
                upstream = http.client.HTTPSConnection(proxy._host, context=proxy._tls, timeout=120)
                try:
                    skipped = ("host", "connection", "content-length", "accept-encoding")
                    headers = {key: value for key, value in self.headers.items() if key.lower() not in skipped}
                    upstream.request(self.command, self.path, body, headers)
                    reply = upstream.getresponse()
                    if name == "WATCH":
                        self._stream(reply)
                        return
                    content = reply.read()
                    if proxy._take(name, "after"):
                        self.close_connection = True
                        return
                    self.send_response(reply.status)
                    self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except (OSError, http.client.HTTPException):
                    # The API server or session-manager is gone.
                    self.close_connection = True
                finally:
                    upstream.close()

            def _stream(self, reply: http.client.HTTPResponse) -> None:
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while chunk := reply.read1(65536):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PATCH = do_DELETE = forward  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler
