"""Renders the chart, and reads what was rendered."""

import functools
import json
import os
import pathlib
import subprocess
import tempfile

import yaml

TESTS = pathlib.Path(__file__).resolve().parent
REPO = TESTS.parent.parent
CHART = REPO / "helm" / "berth"
HOME = pathlib.Path(os.environ.get("BERTH_HOME", REPO / ".berth"))
HELM = HOME / "helm" / "helm"
NAMESPACE = "berth"
LIMIT = 60  # seconds; for each command
WORKLOADS = ("session-manager", "token-issuer", "spark-proxy", "console")

# What has no default: everything else can be rendered on top of it.
REQUIRED = {
    "signingKeys": {"existingSecret": "keys"},
    "tls": {
        "public": {"existingSecret": "public-tls"},
        "internal": {"existingSecrets": {"sessionManager": "sm-tls", "tokenIssuer": "ti-tls", "sparkProxy": "sp-tls"}},
    },
    "redis": {"url": "redis://redis.data.svc:6379"},
    # Not required, but every combination is rendered with it; one case turns it off.
    "console": {"enabled": True, "cookieKeys": {"existingSecret": "cookie-keys"}},
}


def merged(base, changes):
    """`base` with `changes`; maps are merged, everything else replaced. Neither is changed."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base[key], value) if key in base else value
    return result


def at(path, value):
    """A map with `value` at the dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def helm(*args, values=None, files=()):
    """The finished process of a helm command with these values."""
    command = [str(HELM), *args]
    for file in files:
        command += ["--values", str(file)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        if values is not None:
            json.dump(values, file)
            file.flush()
            command += ["--values", file.name]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def template(values, files=(), args=()):
    """The finished `helm template`."""
    return helm("template", "berth", str(CHART), "--namespace", NAMESPACE, *args, values=values, files=files)


class Rendered:
    """The objects of one rendering."""

    def __init__(self, text):
        self.text = text
        self.objects = [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]

    def of(self, kind):
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind, name):
        found = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
        return found[0]

    def workloads(self):
        return self.of("Deployment") + self.of("StatefulSet")

    def pods(self):
        """(name, metadata, pod specification, namespace) of everything that runs."""
        for one in self.workloads() + self.of("Job"):
            pod = one["spec"]["template"]
            yield one["metadata"]["name"], pod["metadata"], pod["spec"]
        for one in self.of("Pod"):
            yield one["metadata"]["name"], one["metadata"], one["spec"]

    def components(self):
        """The services of this rendering."""
        names = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in self.of("Deployment")}
        return [name for name in WORKLOADS if name in names]

    def config(self, component):
        """The configuration of a service, as a map."""
        for one in self.of("ConfigMap"):
            text = one["data"].get(f"{component}.yaml")
            if text is not None:
                return yaml.load(text, Loader=yaml.CSafeLoader)
        raise AssertionError(f"no configuration of {component}")


def render(values, files=(), args=()):
    done = template(values, files, args)
    assert done.returncode == 0, f"helm template failed: {done.stderr.strip()}"
    return Rendered(done.stdout)


def walk(value, path=()):
    """Every scalar below `value` with its path."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from walk(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from walk(one, (*path, index))
    else:
        yield path, value


@functools.cache
def binary(name):
    """A service's program, as built by cargo."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    path = target / os.environ.get("BERTH_PROFILE", "debug") / name
    assert path.is_file(), f"{path} is missing: run `make build`"
    return path
