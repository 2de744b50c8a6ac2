"""The rendered configuration in use: the services on loopback with Redis and Sail, and the query of `helm test`.

Ports and paths are those of this machine. Names in certificates, lists of callers and everything else stay as rendered.
"""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request

import cases
from chart import CHART, HOME, LIMIT, NAMESPACE, REQUIRED, WORKLOADS, at, binary, merged, render
from suite import check

READY_LIMIT = 30  # seconds
QUERY_LIMIT = 240  # seconds


class Ports:
    """A free port of this machine for each port of the cluster."""

    def __init__(self, *wanted):
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in wanted]
        self.of = {number: one.getsockname()[1] for number, one in zip(wanted, sockets, strict=True)}
        for one in sockets:
            one.close()

    def wait(self, number, process):
        end = time.monotonic() + READY_LIMIT
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.of[number]), 1):
                return
            time.sleep(0.05)
        raise AssertionError(f"{process.args[0]} does not listen on the port of {number}: {pathlib.Path(process.log).read_text()[-2000:]}")


@contextlib.contextmanager
def processes(folder):
    """A function that starts a program; all are stopped at the end."""
    started = []

    def start(name, *command):
        log = folder / f"{name}.log"
        with log.open("w") as file:
            started.append(subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=file, stderr=file))
        started[-1].log = log
        return started[-1]

    try:
        yield start
    finally:
        for one in reversed(started):
            one.terminate()
        for one in started:
            try:
                one.wait(READY_LIMIT)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], capture_output=True, timeout=LIMIT, check=True)


P256 = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def issue(folder, name, *hosts):
    """A certificate for these hosts in a folder as a Secret of cert-manager has it."""
    own = folder / name
    own.mkdir()
    (own / "ext").write_text(f"subjectAltName={','.join(f'DNS:{host}' for host in hosts)}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n")
    openssl("req", *P256, "-subj", f"/CN={name}", "-keyout", own / "tls.key", "-out", own / "csr")
    openssl("x509", "-req", "-in", own / "csr", "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", own / "ext", "-out", own / "tls.crt")
    shutil.copy(folder / "ca.crt", own)


def make_secrets(folder):
    (folder / "keys").mkdir()
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", folder / "keys" / "first.pem")
    openssl("req", "-x509", *P256, "-subj", "/CN=authority", "-days", "2", "-keyout", folder / "ca.key", "-out", folder / "ca.crt")
    issue(folder, "public", "localhost", *(f"berth-{component}.{NAMESPACE}.svc" for component in WORKLOADS))
    (folder / "cookie-keys").mkdir()
    (folder / "cookie-keys" / "first").write_bytes(secrets.token_bytes(32))
    for component in WORKLOADS:
        issue(folder, component, f"berth-{component}-internal.{NAMESPACE}.svc")


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def make_service_tokens(folder):
    """What the API server of a cluster provides: its key set, and a token of each caller's service account."""
    key = folder / "cluster.key"
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", key)
    modulus = subprocess.run(["openssl", "rsa", "-in", key, "-noout", "-modulus"], capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    modulus = bytes.fromhex(modulus.strip().removeprefix("Modulus="))
    (folder / "cluster-keys").mkdir()
    jwk = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "cluster", "n": base64url(modulus), "e": "AQAB"}
    (folder / "cluster-keys" / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
    now = int(time.time())
    for component in ("spark-proxy", "token-issuer"):
        tokens = cases.TOKENS["tls"]["internal"]["tokens"]
        claims = {"iss": tokens["issuer"], "aud": ["berth-internal"], "iat": now, "nbf": now, "exp": now + 3600,
                  "sub": f"system:serviceaccount:{NAMESPACE}:berth-{component}"}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "cluster"}, claims))
        own = folder / f"{component}-token"
        own.mkdir()
        (own / "signed").write_text(signed)
        openssl("dgst", "-sha256", "-sign", key, "-out", own / "signature", own / "signed")
        (own / "token").write_text(f"{signed}.{base64url((own / 'signature').read_bytes())}")


def localized(value, component, folder, ports):
    """A configuration with the ports and files of this machine."""
    if isinstance(value, list):
        return [localized(one, component, folder, ports) for one in value]
    if isinstance(value, dict):
        result = {key: localized(one, component, folder, ports) for key, one in value.items()}
        for key in {"uri", "location"} & value.keys():
            if value[key].startswith("https://"):
                result["tls"]["server_name"] = re.match(r"https://([^:]+):", value[key]).group(1)
        return result
    if not isinstance(value, str):
        return value
    for path, own in (("/etc/berth/tls/public", "public"), ("/etc/berth/tls/internal", component), ("/etc/berth/keys", "keys"),
                      ("/etc/berth/cookie-keys", "cookie-keys"),
                      ("/etc/berth/cluster-keys", "cluster-keys"), ("/var/run/secrets/berth", f"{component}-token")):
        value = value.replace(path, str(folder / own))
    return re.sub(rf"(0\.0\.0\.0|berth-[\w-]+\.{NAMESPACE}\.svc):(\d+)", lambda one: f"{local_host(one)}:{ports.of[int(one[2])]}", value)


def local_host(match):
    return "127.0.0.1" if match[1] == "0.0.0.0" else "localhost"


def installed_values(values, key, ports):
    """Values with one account, and one cluster on the Sail of this machine."""
    account = {"name": "tester", "org": "acme", "roles": ["member"], "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
    cluster = {"name": "default", "engine": "sail", "granted_orgs": ["acme"], "static": {"endpoints": [{"address": f"127.0.0.1:{ports.of[50051]}"}]}}
    config = {"service_accounts": [account], "clusters": [cluster], "compute": {"static": {"allow": ["127.0.0.0/8"], "dev": True}}}
    redis = {"url": "", "bundled": {"enabled": True}}
    return merged(merged(REQUIRED, values), {"redis": redis, "sessionManager": {"config": config}})


def query_runs(values):
    ports = Ports(6379, 50051, 8080, 8081, 8082, 8083, 8084, 8085, 9080, 9081, 9083, 9085)
    key = f"berth_sa_{secrets.token_urlsafe(32)}"
    one = render(installed_values(values, key, ports))
    redis = one.one("StatefulSet", "berth-redis")["spec"]["template"]["spec"]["containers"][0]
    with tempfile.TemporaryDirectory(prefix="berth-chart-") as name, processes(pathlib.Path(name)) as start:
        folder = pathlib.Path(name)
        make_secrets(folder)
        make_service_tokens(folder)
        arguments = [str(folder) if part == "/data" else part for part in redis["args"]]
        server = start("redis", *redis["command"], *arguments, "--bind", "127.0.0.1", "--port", ports.of[6379])
        sail = start("sail", HOME / "venv-sail" / "bin" / "sail", "spark", "server", "--ip", "127.0.0.1", "--port", ports.of[50051])
        ports.wait(6379, server)
        ports.wait(50051, sail)
        services = {}
        for component in WORKLOADS:
            file = folder / f"{component}.yaml"
            file.write_text(json.dumps(localized(one.config(component), component, folder, ports)))
            services[component] = start(component, binary(component), "--config", file)
        for component, number in (("token-issuer", 8083), ("session-manager", 8081), ("spark-proxy", 8085), ("console", 8080)):
            ports.wait(number, services[component])
        scheme = "https" if one.config("token-issuer")["public"]["tls"] else "http"
        environment = {
            "PATH": os.environ["PATH"], "HOME": name, "BERTH_KEY": key, "BERTH_CLUSTER": "default", "BERTH_PROXY": f"localhost:{ports.of[8085]}",
            "BERTH_MANAGER": f"{scheme}://localhost:{ports.of[8081]}", "BERTH_ISSUER": f"{scheme}://localhost:{ports.of[8083]}",
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(folder / "ca.crt"),
        }
        done = subprocess.run([HOME / "venv-sail" / "bin" / "python", CHART / "files" / "query.py"], env=environment, capture_output=True, text=True,
                              timeout=QUERY_LIMIT, check=False)
        assert_console_answers(f"{scheme}://localhost:{ports.of[8080]}", key, folder / "ca.crt")
        assert done.returncode == 0 and "rows is 499500" in done.stdout, done.stdout + done.stderr[-2000:] + services["session-manager"].log.read_text()[-2000:]


def assert_console_answers(address, key, authority):
    """The console knows the account by its key, and nobody without one."""
    trusted = ssl.create_default_context(cafile=authority) if address.startswith("https") else None

    def session(headers):
        request = urllib.request.Request(f"{address}/auth/session", headers=headers)
        with urllib.request.urlopen(request, timeout=READY_LIMIT, context=trusted) as answer:
            return json.load(answer)

    signed_in = session({"authorization": f"Bearer {key}"})
    assert signed_in["signed_in"] and signed_in["principal"]["id"] == "sa|tester", signed_in
    nobody = session({})
    assert not nobody["signed_in"] and nobody["methods"] == [{"id": "key"}], nobody


@check
def a_query_runs_with_client_certificates():
    query_runs({})


@check
def a_query_runs_with_service_account_tokens():
    query_runs(merged(cases.TOKENS, at("tls.internal.tokens.jwks", {"existingConfigMap": "cluster-keys"})))


@check
def a_query_runs_in_plaintext():
    query_runs(cases.PLAINTEXT)
