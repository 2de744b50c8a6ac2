"""What 1000 sessions cost each service: `make capacity`. Prints the table of docs/capacity.md.

    PROGRAMS=DIR BERTH_HOME=DIR python measure.py [--sessions 4000] [--active 1000] [--idle-seconds 20]

Redis, one Sail server and the three services run on loopback. Memory is VmRSS, CPU time is that of the process; both come
from /proc. The load shares the machine, so rates are not measured here (`make load`, `make bench-lifecycle`).
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import secrets
import socket
import subprocess
import tempfile
import time
import sys

import grpc
import pyspark.sql.connect.proto as spark

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "helm" / "berth" / "files"))
import query  # noqa: E402  the messages of Berth's API, as `helm test` uses them

HOME = pathlib.Path(os.environ.get("BERTH_HOME", REPOSITORY / ".berth"))
PROGRAMS = pathlib.Path(os.environ["PROGRAMS"])
CALLERS = 32
READY = 60  # seconds
TICK = os.sysconf("SC_CLK_TCK")
NAMES = ("redis", "manager", "manager_internal", "manager_admin", "issuer", "jwks", "issuer_admin", "proxy", "proxy_admin", "sail")


def free_ports():
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in NAMES]
    ports = {name: one.getsockname()[1] for name, one in zip(NAMES, listeners, strict=True)}
    for one in listeners:
        one.close()
    return ports


def configurations(port, key, sessions, folder):
    """Service = its configuration: plaintext on loopback, limits far away."""
    jwks = f'tokens.keys = {{ location = "http://127.0.0.1:{port["jwks"]}/.well-known/jwks.json", insecure = true }}'
    manager = f'manager = {{ uri = "http://127.0.0.1:{port["manager_internal"]}", insecure = true }}'
    digest = hashlib.sha256(key.encode()).hexdigest()
    return {
        "session-manager": f"""
listen.public = {{ address = "127.0.0.1:{port['manager']}", insecure = true }}
listen.internal = {{ address = "127.0.0.1:{port['manager_internal']}", insecure = true }}
admin.address = "127.0.0.1:{port['manager_admin']}"
store.url = "redis://127.0.0.1:{port['redis']}"
{jwks}
compute.static = {{ allow = ["127.0.0.0/8"], dev = true }}
limits = {{ calls_per_second_per_principal = 100000, calls_per_second_per_address = 100000 }}
telemetry.level = "warn"
[[service_accounts]]
name = "load"
org = "acme"
roles = ["member"]
key_sha256 = "{digest}"
[[orgs]]
name = "acme"
limits = {{ live_sessions = {sessions * 2}, live_sessions_per_owner = {sessions * 2}, creates_per_minute = 10000 }}
[[clusters]]
name = "shared"
engine = "sail"
granted_orgs = ["acme"]
static.endpoints = [{{ address = "127.0.0.1:{port['sail']}" }}]
""",
        "token-issuer": f"""
listen.grpc = {{ address = "127.0.0.1:{port['issuer']}", insecure = true }}
listen.jwks = {{ address = "127.0.0.1:{port['jwks']}", insecure = true }}
admin.address = "127.0.0.1:{port['issuer_admin']}"
keys.signing = "{folder}/signing.pem"
public = {{ endpoint = "localhost:{port['proxy']}", tls = false }}
limits = {{ calls_per_second_per_principal = 100000, calls_per_second_per_address = 100000 }}
telemetry.level = "warn"
{manager}
""",
        "spark-proxy": f"""
listen = {{ address = "127.0.0.1:{port['proxy']}", insecure = true, workers = 2, tls.mode = "off" }}
admin.address = "127.0.0.1:{port['proxy_admin']}"
telemetry.level = "warn"
{jwks}
{manager}
""",
    }


class Stage:
    """The running processes; ends them on exit."""

    def __init__(self, folder, sessions):
        self.folder, self.port, self.process = folder, free_ports(), {}
        self.key = f"berth_sa_{secrets.token_urlsafe(32)}"
        self.sessions = sessions

    def __enter__(self):
        try:
            self.start("redis", "redis-server", "--port", self.port["redis"], "--bind", "127.0.0.1", "--dir", self.folder, "--appendonly", "yes")
            self.start("sail", HOME / "venv-sail" / "bin" / "sail", "spark", "server", "--ip", "127.0.0.1", "--port", self.port["sail"])
            subprocess.run([PROGRAMS / "berth", "keys", "signing", self.folder / "signing.pem"], check=True, stdout=subprocess.DEVNULL, timeout=READY)
            for name, text in configurations(self.port, self.key, self.sessions, self.folder).items():
                file = self.folder / f"{name}.toml"
                file.write_text(text)
                self.start(name, PROGRAMS / name, "--config", file)
            for port in ("redis", "sail", "manager", "issuer", "proxy"):
                self.wait(port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("w")
        self.process[name] = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self, port):
        end = time.monotonic() + READY
        while time.monotonic() < end:
            try:
                return socket.create_connection(("127.0.0.1", self.port[port]), 1).close()
            except OSError:
                if any(process.poll() is not None for process in self.process.values()):
                    break
                time.sleep(0.1)
        logs = "\n".join(f"{file.name}: {file.read_text()[:800]}" for file in self.folder.glob("*.log"))
        raise SystemExit(f"nothing listens on the port of {port}\n{logs}")

    def __exit__(self, *_):
        for process in self.process.values():
            process.kill()
            process.wait(timeout=10)

    def memory(self, name):
        """KiB that the process has in memory."""
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process[name].pid}/status").read_text())[1])

    def cpu(self, name):
        """Seconds of CPU time so far."""
        fields = pathlib.Path(f"/proc/{self.process[name].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def look(self):
        services = ("session-manager", "token-issuer", "spark-proxy", "redis", "sail")
        return {name: (self.memory(name), self.cpu(name)) for name in services} | {"stored": self.stored()}

    def stored(self):
        text = subprocess.run(["redis-cli", "-p", str(self.port["redis"]), "info", "memory"], capture_output=True, text=True, check=True, timeout=10).stdout
        return int(re.search(r"used_memory:(\d+)", text)[1])

    def channel(self, port):
        return grpc.insecure_channel(f"127.0.0.1:{self.port[port]}", options=[("grpc.use_local_subchannel_pool", 1)])


def concurrently(function, items):
    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(function, items))


def spark_version(channel, session, token):
    """One small call, as PySpark sends it."""
    request = spark.AnalyzePlanRequest(session_id=str(session), spark_version=spark.AnalyzePlanRequest.SparkVersion())
    call = channel.unary_unary("/spark.connect.SparkConnectService/AnalyzePlan", request_serializer=type(request).SerializeToString,
                               response_deserializer=spark.AnalyzePlanResponse.FromString)
    return call(request, timeout=60, metadata=[("authorization", f"Bearer {token[1]}"), ("x-session-id", token[0])])


class Report:
    def __init__(self):
        self.rows = []

    def add(self, what, before, after, count):
        """The difference that `count` of something made, for a thousand of it."""
        row = [what]
        for name in ("session-manager", "token-issuer", "spark-proxy", "redis"):
            memory, cpu = (after[name][part] - before[name][part] for part in (0, 1))
            row.append(f"{memory / 1024 * 1000 / count:.1f}; {cpu * 1000 / count:.2f}")
        row.append(f"{(after['stored'] - before['stored']) / count:.0f}")
        self.rows.append(row)

    def print(self):
        print("| for 1000 | session-manager: MiB; CPU s | token-issuer | spark-proxy | Redis | bytes stored in Redis for each |")
        print("|---|---|---|---|---|---|")
        for row in self.rows:
            print("| " + " | ".join(row) + " |")


def measure(stage, options):
    report, first = Report(), stage.look()
    manager, issuer, proxy = (stage.channel(port) for port in ("manager", "issuer", "proxy"))
    os.environ["BERTH_KEY"] = stage.key
    print("at rest, MiB: " + ", ".join(f"{name} {first[name][0] / 1024:.1f}" for name in ("session-manager", "token-issuer", "spark-proxy", "redis")))

    def create(number):
        return query.call(manager, "SessionService", "CreateSession", cluster="shared", name=f"capacity {number}").session.id

    sessions = concurrently(create, range(options.sessions))
    wait = query.CLASSES["Duration"](seconds=20)
    for session in sessions[-CALLERS:]:
        query.call(manager, "SessionService", "DescribeSession", session_id=session, wait_ready=wait)
    created = stage.look()
    report.add("sessions created", first, created, len(sessions))

    time.sleep(options.idle_seconds)
    rested = stage.look()
    busy = {name: (rested[name][1] - created[name][1]) / options.idle_seconds for name in ("session-manager", "redis", "spark-proxy")}
    print(f"{len(sessions)} sessions without calls, cores: " + ", ".join(f"{name} {share:.3f}" for name, share in busy.items()))

    def token(session):
        return session, query.call(issuer, "TokenService", "IssueSessionToken", session_id=session).token

    tokens = concurrently(token, sessions)
    issued = stage.look()
    report.add("tokens issued", rested, issued, len(tokens))

    used = tokens[: options.active]
    ids = [f"00000000-0000-4000-8000-{number:012d}" for number in range(len(used))]
    for what in ("sessions used: first call", "second call"):
        before = stage.look()
        concurrently(lambda pair: spark_version(proxy, *pair), list(zip(ids, used, strict=True)))
        time.sleep(2)
        report.add(what, before, stage.look(), len(used))
    report.print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=4000)
    parser.add_argument("--active", type=int, default=1000)
    parser.add_argument("--idle-seconds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="berth-capacity-") as folder, Stage(pathlib.Path(folder), options.sessions) as stage:
        measure(stage, options)


if __name__ == "__main__":
    main()
