"""Berth as users and operators see it: the chart, the `berth` command, PySpark.

One installation in the namespace `berth`, as in production: TLS on every port, client certificates
between the services, network policies. It has two clusters: sessions of `shared` share one Sail server
in the namespace `engines`, each of `pods` has a pod in the namespace `berth-sessions`.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import kube
from certificates import Authority

CHART = Path(os.environ.get("BERTH_CHART", Path(__file__).resolve().parents[3] / "helm" / "berth"))
RELEASE = SPACE = "berth"
ENGINES = "engines"
SESSIONS = "berth-sessions"
"""Created by the chart."""
CLIENTS = "clients"
CLI_IMAGE = "berth.test/berth/berth:test"
SERVICES = {"sessionManager": "session-manager", "tokenIssuer": "token-issuer", "sparkProxy": "spark-proxy"}
ORG = "acme"

QUERY = """
import faulthandler, sys
faulthandler.dump_traceback_later(90, exit=True)
from pyspark.sql import SparkSession
spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate()
try:
    print(spark.sql(sys.argv[2]).collect()[0][0])
finally:
    spark.stop()
"""


LOAD = """
import faulthandler, json, sys, time
faulthandler.dump_traceback_later(170, exit=True)
from pyspark.sql import SparkSession
url, seconds = sys.argv[1], float(sys.argv[2])
spark = SparkSession.builder.remote(url).getOrCreate()
spark.sql("SELECT 1").collect()
print("started", flush=True)
calls, failures, slowest, end = 0, [], 0.0, time.monotonic() + seconds
while time.monotonic() < end:
    started = time.monotonic()
    try:
        assert spark.range(1000).count() == 1000
    except Exception as error:
        failures.append(f"{type(error).__name__}: {error}"[:300])
    slowest = max(slowest, time.monotonic() - started)
    calls += 1
    time.sleep(0.05)
spark.stop()
print(json.dumps({"calls": calls, "failures": failures, "slowest": slowest}))
"""
"""Counts calls and failures for some seconds; prints a line when it begins, and a map at the end."""


def remove_namespaces(*more: str) -> None:
    """Deletes the namespaces of an installation, so that the next one can begin."""
    kube.kubectl("delete", "namespace", "--ignore-not-found", SPACE, ENGINES, CLIENTS, *more, timeout=180)


def host(service: str) -> str:
    """Name of a Service of the release."""
    return f"{RELEASE}-{service}.{SPACE}.svc"


CONSOLE = f"https://{host('console')}:8080"
"""Address of the console."""

REQUESTS = """
import json, os, ssl, sys, urllib.request
context = ssl.create_default_context(cafile=os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"])
def ask(url, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    return urllib.request.urlopen(request, timeout=10, context=context)
"""
"""Begin of programs that call the console."""


class Berth:
    """The installation. `values` replaces values of the chart."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self._folder = folder
        for space in (SPACE, ENGINES, CLIENTS):
            kube.apply(kube.namespace(space))
        self._account = self._new_account()
        self.key = self._account["key"]
        self._make_secrets()
        self._start_sail()
        self.values = {**self._base_values(), **values}
        self.upgrade()

    def upgrade(self, **values: Any) -> None:
        """Installs the chart, or changes the installation, and waits until everything is ready."""
        self.values = {**self.values, **values}
        file = self._folder / "values.json"
        file.write_text(json.dumps(self.values))
        kube.run("helm", "upgrade", RELEASE, str(CHART), "--install", "--namespace", SPACE, "--values", str(file),
                 "--wait", "--timeout", "5m", timeout=330)  # fmt: skip

    def uninstall(self) -> None:
        """Uninstalls the release; nothing of it may be left."""
        kube.run("helm", "uninstall", RELEASE, "--namespace", SPACE, "--wait", "--timeout", "4m", timeout=270)
        label = f"app.kubernetes.io/instance={RELEASE}"
        kinds = kube.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        kinds = ",".join(sorted(set(kinds) - {"events", "events.events.k8s.io"}))
        left = lambda: kube.kubectl("-n", SPACE, "get", kinds, "-l", label, "--ignore-not-found", "-o", "name")  # noqa: E731
        kube.wait_until("nothing of the release is left", lambda: not left().strip() or None, timeout=60)
        kinds = kube.kubectl("api-resources", "--namespaced=false", "--verbs=list", "--output=name").split()
        assert not kube.kubectl("get", ",".join(kinds), "-l", label, "--ignore-not-found", "-o", "name")

    def command(self, *args: str, system_authorities: bool = False) -> Any:
        """Runs the `berth` command in a pod of its own; returns its JSON.

        With `system_authorities` it trusts our authority as one of the system, else as BERTH_CA.
        """
        trust = {"/etc/ssl/certs": "roots"} if system_authorities else {"/ca": "ca"}
        code, output = kube.run_pod(
            CLIENTS,
            CLI_IMAGE,
            "--output",
            "json",
            *args,
            env={
                "BERTH_KEY": self._account["key"],
                "BERTH_MANAGER": f"https://{host('session-manager')}:8081",
                "BERTH_ISSUER": f"https://{host('token-issuer')}:8083",
                **({} if system_authorities else {"BERTH_CA": "/ca/ca.crt"}),
            },
            secrets=trust,
        )
        assert code == 0, f"berth {' '.join(args)}: exit code {code}\n{output}"
        # The log of a pod has its standard error too, where progress is shown.
        begin = min((output.index(bracket) for bracket in "{[" if bracket in output), default=None)
        return None if begin is None else json.JSONDecoder().raw_decode(output[begin:])[0]

    def client(self, name: str) -> kube.PythonPod:
        """A pod for PySpark programs that trusts the certificate of spark-proxy."""
        roots = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/ca/ca.crt"}
        return kube.PythonPod(name, CLIENTS, env=roots, secrets={"/ca": "ca"})

    @staticmethod
    def _new_account() -> dict[str, str]:
        code, output = kube.run_pod(CLIENTS, CLI_IMAGE, "--output", "json", "keys", "service-account")
        assert code == 0, output
        return json.loads(output)

    def _make_secrets(self) -> None:
        authority = self.authority = Authority(self._folder)
        public = authority.issue("public", *(host(service) for service in (*SERVICES.values(), "console")))
        kube.apply(
            kube.secret("public-tls", SPACE, public),
            kube.secret("ca", CLIENTS, {"ca.crt": authority.certificate}),
            kube.secret("roots", CLIENTS, {"ca-certificates.crt": authority.certificate}),
        )
        for service in SERVICES.values():
            files = authority.issue(service, host(f"{service}-internal"))
            kube.apply(kube.secret(f"{service}-tls", SPACE, files))
        key = kube.run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        kube.apply(
            kube.secret("signing-keys", SPACE, {"first.pem": key}),
            kube.secret("cookie-keys", SPACE, {"first": secrets.token_hex(32)}),
        )

    @staticmethod
    def _start_sail() -> None:
        sail = kube.pod("sail", ENGINES, "berth.test/sail:test", ["spark", "server", "--ip", "0.0.0.0", "--port", "50051"],
                        labels={"app": "sail"}, readinessProbe={"grpc": {"port": 50051}, "periodSeconds": 1},
                        resources={"limits": {"memory": "1Gi"}})  # fmt: skip
        kube.apply(sail, kube.service("sail", ENGINES, 50051))
        kube.wait_ready(ENGINES, "sail")

    def _base_values(self) -> dict[str, Any]:
        sail = f"sail.{ENGINES}.svc.cluster.local"
        account = {
            "name": "tester",
            "org": ORG,
            "roles": ["member", "org-admin", "platform-admin"],
            "key_sha256": self._account["key_sha256"],
        }
        shared = {"name": "shared", "static": {"endpoints": [{"address": f"{sail}:50051"}]}}
        pods = {
            "name": "pods",
            "kubernetes": {"namespace": SESSIONS, "image": "berth.test/sail:test", "cpu": "500m", "memory": "1Gi"},
        }
        return {
            "image": {"registry": "berth.test", "tag": "test", "pullPolicy": "Never"},
            "signingKeys": {"existingSecret": "signing-keys"},
            "tls": {
                "public": {"existingSecret": "public-tls"},
                "internal": {"existingSecrets": {key: f"{name}-tls" for key, name in SERVICES.items()}},
            },
            "redis": {
                "bundled": {"enabled": True, "image": {"registry": "berth.test", "repository": "redis", "tag": "test"}},
            },
            "console": {
                "enabled": True,
                "replicas": 2,
                "url": CONSOLE,
                "cookieKeys": {"existingSecret": "cookie-keys"},
                "resources": {"requests": {"cpu": "10m"}},
            },
            "sessionManager": {
                "kubernetes": {"enabled": True, "namespaces": [SESSIONS], "createNamespaces": True},
                "config": {
                    "service_accounts": [account],
                    "clusters": [{"engine": "sail", "granted_orgs": [ORG], **cluster} for cluster in (shared, pods)],
                    "compute": {"static": {"allow": [sail]}},
                },
            },
        }
