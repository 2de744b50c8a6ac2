"""The sign-in at an identity provider that answers wrongly, slowly, or not at all: a real HTTP server on loopback."""

import http.server
import json
import os
import threading
import time
import traceback
import urllib.parse

import pytest

import berth
from berth import _http, _login
from berth._settings import Oidc

DEVICE = {
    "device_code": "topsecret-device",
    "user_code": "ABCD",
    "verification_uri": "https://login.example.org/device",
    "interval": 1,
}


class Provider(http.server.ThreadingHTTPServer):
    """Answers each path with a status, headers and a body."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.paths = []
        self.answers = {
            "/.well-known/openid-configuration": json_of(
                {
                    "issuer": self.url,
                    "token_endpoint": f"{self.url}/token",
                    "device_authorization_endpoint": f"{self.url}/device",
                }
            )
        }


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.paths.append(self.path)
        status, headers, body = self.server.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for part in body:
            self.wfile.write(part)
            self.wfile.flush()

    do_POST = do_GET

    def log_message(self, *_):
        pass


def json_of(fields, status=200):
    return status, {}, [json.dumps(fields).encode()]


def drip():
    """A byte now and then, for half a minute."""
    for _ in range(150):
        time.sleep(0.2)
        yield b" "


@pytest.fixture
def provider(clean_environment):
    server = Provider()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def oidc(provider):
    return Oidc(provider.url, "berth-cli")


def stored(oidc, **fields):
    """A sign-in that has expired."""
    now = int(time.time())
    text = {
        "issuer": oidc.issuer,
        "client_id": oidc.client_id,
        "token": "topsecret-old",
        "refresh_token": "topsecret-refresh",
        "obtained_at": now - 100,
        "expires_at": now - 1,
        **fields,
    }
    write(json.dumps(text).encode())


def write(data):
    path = _login.store_path("c")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.chmod(path, 0o600)


def shown(error):
    """With all local variables of the package; those of this file contain what must not be shown."""
    trace = error.__traceback__
    while trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.TracebackException(type(error), error, trace, capture_locals=True).format())


def failure(kind, oidc):
    with pytest.raises(kind) as caught:
        _login.current("c", oidc)
    assert str(caught.value).count("Next: ") == 1
    assert "topsecret" not in shown(caught.value)
    return str(caught.value)


def test_a_sign_in_is_renewed(provider, oidc):
    stored(oidc)
    provider.answers["/token"] = json_of({"access_token": "topsecret-new", "expires_in": "60"})
    assert _login.current("c", oidc) == "topsecret-new"
    assert _login._load("c").refresh_token == "topsecret-refresh"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {}, [b"topsecret <html>"]), "something other than JSON"),
        ((200, {}, [b'["topsecret"]']), "something other than JSON"),
        ((503, {}, [b"topsecret"]), "HTTP status 503"),
        ((200, {"content-length": "100"}, [b"topsecret"]), "something other than JSON"),
        ((200, {"transfer-encoding": "chunked"}, [b"topsecret\r\n"]), "cannot be reached: IncompleteRead"),
        ((302, {"location": "http://login.example.org/token"}, [b"topsecret"]), "HTTP status 302"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_temporary_error(provider, oidc, answer, words):
    stored(oidc)
    provider.answers["/token"] = answer
    assert words in failure(berth.Unreachable, oidc)


def test_a_redirect_is_not_followed(provider, oidc):
    """Of the discovery document, which a program would follow from https to http."""
    stored(oidc)
    provider.answers["/elsewhere"] = provider.answers["/.well-known/openid-configuration"]
    provider.answers["/.well-known/openid-configuration"] = (302, {"location": f"{provider.url}/elsewhere"}, [])
    failure(berth.Unreachable, oidc)
    assert provider.paths == ["/.well-known/openid-configuration"]


def test_a_slow_provider_has_a_limit_of_time(provider, oidc, monkeypatch):
    stored(oidc)
    monkeypatch.setattr(_http, "TIMEOUT", 1.0)
    provider.answers["/token"] = (200, {}, drip())
    begun = time.monotonic()
    assert "timed out" in failure(berth.Unreachable, oidc)
    assert time.monotonic() - begun < 5


def test_a_provider_that_does_not_run(oidc, provider):
    stored(oidc)
    provider.shutdown()
    provider.server_close()
    assert "cannot be reached" in failure(berth.Unreachable, oidc)


def test_the_authority_of_a_provider_is_named(clean_environment, tmp_path):
    oidc = Oidc("https://127.0.0.1:9", "berth-cli", ca=tmp_path / "no.pem")
    stored(oidc)
    assert "no.pem of the identity provider cannot be used" in failure(berth.ConfigurationError, oidc)


@pytest.mark.parametrize("fields", [{}, {"access_token": ["topsecret"]}, {"access_token": ""}])
def test_an_answer_without_a_token_is_an_error(provider, oidc, fields):
    stored(oidc)
    provider.answers["/token"] = json_of({"expires_in": "soon", **fields})
    assert "returned no access_token" in failure(berth.CredentialError, oidc)


@pytest.mark.parametrize("life", ["soon", None, -5, 1e400, []])
def test_a_lifetime_that_is_no_number_has_a_default(provider, oidc, life):
    stored(oidc)
    provider.answers["/token"] = json_of({"access_token": "topsecret-new", "expires_in": life})
    _login.current("c", oidc)
    login = _login._load("c")
    assert login.expires_at - login.obtained_at == 300


@pytest.mark.parametrize("missing", ["device_code", "user_code", "verification_uri"])
def test_a_device_answer_without_a_field_names_it(provider, oidc, missing):
    provider.answers["/device"] = json_of({name: value for name, value in DEVICE.items() if name != missing})
    with pytest.raises(berth.CredentialError, match=f"returned no {missing}.*Next: ") as caught:
        _login.sign_in("c", oidc, lambda _: None)
    assert "topsecret" not in shown(caught.value)


def test_a_sign_in_by_device(provider, oidc):
    provider.answers["/device"] = json_of({**DEVICE, "expires_in": "soon"})
    provider.answers["/token"] = json_of({"access_token": "topsecret-new"})
    lines = []
    assert _login.sign_in("c", oidc, lines.append) == "topsecret-new"
    assert lines == ["To sign in, open https://login.example.org/device and enter the code ABCD."]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfetopsecret",
        b'{"token": "topsecret\xff", "issuer": "i", "client_id": "c", "obtained_at": 1, "expires_at": 2}',
        b'["topsecret"]',
        b'{"token": "topsecret"}',
        b'{"token": 5, "issuer": "i", "client_id": "c", "obtained_at": 1, "expires_at": 2}',
        b'{"token": "topsecret", "issuer": "i", "client_id": "c", "obtained_at": 1, "expires_at": Infinity}',
        b'{"token": "topsecret", "issuer": "i", "client_id": "c", "obtained_at": "topsecret", "expires_at": 2}',
        b"[" * 100000,
    ],
)
def test_a_damaged_file_is_named_without_its_text(provider, oidc, data):
    write(data)
    text = failure(berth.LoginRequired, oidc)
    assert f"{_login.store_path('c')} is damaged" in text


def test_a_file_with_bytes_that_are_no_text_is_no_credential(clean_environment, tmp_path):
    from berth import _credential, _settings

    (tmp_path / "key").write_bytes(b"topsecret\xff")
    with pytest.raises(berth.CredentialError, match="no plain text") as caught:
        _credential.resolve(_settings.resolve(credential=tmp_path / "key")).secret()
    assert "topsecret" not in shown(caught.value)
