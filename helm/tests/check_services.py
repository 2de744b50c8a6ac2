"""The services: the real programs accept their configuration, and find each other."""

import functools
import json
import os
import pathlib
import re
import subprocess
import tempfile

from chart import LIMIT, NAMESPACE, REQUIRED, at, binary, merged, render, walk
from suite import all_rendered, check, expect, in_parallel, problems_in


@functools.cache
def certificate():
    """(certificate, key) as PEM, for this run only."""
    with tempfile.TemporaryDirectory(prefix="berth-chart-") as folder:
        cert, key = pathlib.Path(folder, "cert"), pathlib.Path(folder, "key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test",
             "-days", "2", "-keyout", key, "-out", cert], capture_output=True, timeout=LIMIT, check=True)
        return cert.read_bytes(), key.read_bytes()


def accepted(component, one, folder):
    """What the real program reports about its rendered configuration, with every mounted file in place."""
    deployment = next(item for item in one.of("Deployment") if item["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == component)
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    files = mounted_files(pod, container)
    config = one.config(component)
    root = pathlib.Path(folder)
    for path in files:
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(file))
    text = json.dumps(config)
    for path in ("/etc/berth", "/var/run/secrets"):
        text = text.replace(f'"{path}', f'"{root}{path}')
    file = root / "config.yaml"
    file.write_text(text)
    environment = {"PATH": os.environ["PATH"]}
    for variable in container.get("env", []):
        is_url = variable["name"] == "BERTH__STORE__URL"
        environment[variable["name"]] = variable.get("value") or ("redis://from-secret:6379" if is_url else "x")
    done = subprocess.run(
        [binary(component), "--config", file, "--check-config"], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    return "" if done.returncode == 0 and "is valid" in done.stdout else done.stdout + done.stderr


def content(file):
    """A file of a Secret with what the services expect of its name."""
    if file.parent.name == "client-secrets":
        return b"secret"
    return {".crt": certificate()[0], ".key": certificate()[1], ".pem": certificate()[1]}.get(file.suffix, b"")


def mounted_files(pod, container):
    """The files that the volumes of a container provide, by their paths."""
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume, base = sources[mount["name"]], mount["mountPath"]
        if mount["name"] == "service-token":
            yield f"{base}/token"
        for kind in ("secret", "configMap"):
            for item in volume.get(kind, {}).get("items", []):
                yield f"{base}/{item['path']}"
        if mount["name"] == "cookie-keys":
            yield f"{base}/first.pem"
        if mount["name"] == "client-secrets":
            yield f"{base}/corp"
        if mount["name"] in ("accounts", "tls-redis", "cluster-ca", "keys"):
            yield from (f"{base}/{name}" for name in ("accounts.toml", "accounts.yaml", "ca.crt", "tls.crt", "tls.key"))


@check
def the_services_accept_their_configuration():
    seen = {}
    for name, one in all_rendered().items():
        for component in one.components():
            key = component + json.dumps(one.config(component), sort_keys=True)
            seen.setdefault(key, (name, component, one))

    def run(case):
        name, component, one = case
        with tempfile.TemporaryDirectory(prefix="berth-chart-") as folder:
            reported = accepted(component, one, folder)
        return f"{name}: {component}: {reported}" if reported else None

    expect([problem for problem in in_parallel(run, seen.values()) if problem])
    broken = render(merged(REQUIRED, at("sparkProxy.config.routes", {"hold_maximum": "60s"})))
    with tempfile.TemporaryDirectory(prefix="berth-chart-") as folder:
        assert "hold_maximum" in accepted("spark-proxy", broken, folder), "an unknown key is not noticed"
    return f"{len(seen)} files"


@check
def secrets_of_redis_reach_session_manager_only():
    one = all_rendered()["Redis by Sentinel"]
    found = {}
    for deployment in one.of("Deployment"):
        for variable in deployment["spec"]["template"]["spec"]["containers"][0].get("env", []):
            source = variable["valueFrom"]["secretKeyRef"]
            found[deployment["metadata"]["name"], variable["name"]] = (source["name"], source["key"])
    manager = "berth-session-manager"
    assert found == {
        (manager, "BERTH__STORE__USERNAME"): ("redis", "user"),
        (manager, "BERTH__STORE__PASSWORD"): ("redis", "password"),
        (manager, "BERTH__STORE__SENTINEL_USERNAME"): ("redis", "su"),
        (manager, "BERTH__STORE__SENTINEL_PASSWORD"): ("redis", "sp"),
    }
    from_secret = all_rendered()["Redis from a Secret"].config("session-manager")["store"]
    assert from_secret == {"key_prefix": "team:"}, "the URL comes from the environment"


@check
def large_numbers_stay_whole():
    text = all_rendered()["large numbers"].one("ConfigMap", "berth-spark-proxy")["data"]["spark-proxy.yaml"]
    assert "unread_bytes: 8589934592\n" in text and "e+" not in text


@check
def the_services_find_each_other():
    """Every address in a configuration is a Service of the release with that port, and schemes agree."""

    def find(one):
        services = {f"{item['metadata']['name']}.{NAMESPACE}.svc": [port["port"] for port in item["spec"]["ports"]] for item in one.of("Service")}
        secure = "tls" in one.config("session-manager")["listen"]["internal"]
        for component in one.components():
            for path, value in walk(one.config(component)):
                match = re.match(rf"(https?|redis)://([\w.-]+\.{NAMESPACE}\.svc):(\d+)", str(value))
                if match and int(match.group(3)) not in services.get(match.group(2), []):
                    yield f"{component}: {'.'.join(map(str, path))} = {value}"
                # The console calls the ports of clients, the others those inside Berth.
                if component == "console":
                    agrees = str(value).startswith("https") is ("tls" in one.config("session-manager")["listen"]["public"])
                else:
                    agrees = str(value).startswith("https") is secure
                if match and match.group(1) != "redis" and not agrees:
                    yield f"{component}: {value} does not fit the listener"

    expect(problems_in(all_rendered(), find))


@check
def clients_are_told_the_truth_about_tls():
    for name, tls in (("defaults", True), ("plaintext", False), ("Ingress of nginx", True), ("GRPCRoute", True), ("TLS and plaintext clients", True)):
        assert all_rendered()[name].config("token-issuer")["public"]["tls"] is tls, name
    assert render(merged(REQUIRED, at("endpoint.tls", False))).config("token-issuer")["public"]["tls"] is False
    assert all_rendered()["load balancer"].config("token-issuer")["public"]["endpoint"] == "berth.example.org:443"


@check
def callers_are_named_as_they_show_themselves():
    one = all_rendered()["cert-manager"]
    allow = one.config("session-manager")["internal"]["allow"]
    for service, component in (("RouteService", "spark-proxy"), ("TokenLedger", "token-issuer")):
        names = one.one("Certificate", f"berth-{component}-internal-tls")["spec"]["dnsNames"]
        assert allow[service] == names, (service, names)
    one = all_rendered()["tokens, accounts of the operator"]
    assert one.config("session-manager")["internal"]["allow"] == {
        "RouteService": ["system:serviceaccount:berth:other"], "TokenLedger": ["system:serviceaccount:berth:mine"]}
