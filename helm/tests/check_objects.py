"""Objects: schemas, pod security, references between objects, names."""

import json
import pathlib
import re
import subprocess

import jsonschema_rs
import kubernetes_validate

import cases
from chart import CHART, HOME, LIMIT, REPO, REQUIRED, WORKLOADS, at, merged, render
from suite import all_rendered, check, distinct, expect, problems_in

KUBERNETES = ("1.33", "1.34", "1.35", "1.36", "1.37")
# Kinds that Kubernetes itself does not have; crds/validate.mjs checks them.
CUSTOM = {"GRPCRoute", "HTTPRoute", "TLSRoute", "ServiceMonitor", "PrometheusRule", "Certificate"}


def validators(version):
    """A function that returns the strict validator of an object, from the schemas of this Kubernetes."""
    base = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    folder = next(one for one in sorted(base.iterdir()) if one.name.startswith(f"v{version}") and one.name.endswith("-local-strict"))
    definitions = json.loads((folder / "_definitions.json").read_text())
    kept = {}

    def of(one):
        group, _, api = one["apiVersion"].rpartition("/")
        name = "-".join(filter(None, [one["kind"].lower(), group.split(".")[0], api]))
        if name not in kept:
            schema = json.loads((folder / f"{name}.json").read_text())
            kept[name] = jsonschema_rs.Draft202012Validator(schema, retriever=lambda _: definitions)
        return kept[name]

    return of


@check
def objects_follow_the_strict_schemas():
    objects = [(name, one) for name, one in distinct(all_rendered()) if one["kind"] not in CUSTOM]
    found = []
    for version in KUBERNETES:
        of = validators(version)
        for name, one in objects:
            for error in of(one).iter_errors(one):
                found.append(f"{name}, {version}: {one['kind']} {one['metadata']['name']}: {'.'.join(map(str, error.instance_path))}: {error.message}")
    expect(found)
    # The check itself: an unknown field, and a wrong type.
    deployment = all_rendered()["defaults"].of("Deployment")[0]
    of = validators(KUBERNETES[0])
    for path, value in (("spec.template.spec.gracePeriod", 5), ("spec.replicas", "two")):
        assert not of(deployment).is_valid(merged(deployment, at(path, value))), path
    return f"{len(objects)} objects, Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}"


def custom_problems(objects):
    done = subprocess.run(
        ["node", "validate.mjs"], cwd=HOME / "crds", input=json.dumps(objects), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@check
def custom_resources_follow_their_schemas():
    objects = [(name, one) for name, one in distinct(all_rendered()) if one["kind"] in CUSTOM]
    assert {one["kind"] for _, one in objects} == CUSTOM
    reported = custom_problems([one for _, one in objects])
    expect([f"{name}: {problem}" for (name, _), problem in zip(objects, reported, strict=True) if problem])
    # The check itself: a wrong type in each kind is noticed.
    broken = {"GRPCRoute": at("spec.rules", 5), "HTTPRoute": at("spec.rules", 5), "TLSRoute": at("spec.hostnames", 5), "ServiceMonitor": at("spec.endpoints", 5),
              "PrometheusRule": at("spec.groups", 5), "Certificate": at("spec.secretName", 5)}
    first = {one["kind"]: one for _, one in reversed(objects)}
    silent = [kind for kind, problem in zip(broken, custom_problems([merged(first[kind], broken[kind]) for kind in broken]), strict=True) if not problem]
    expect(silent)
    return f"{len(objects)} objects"


def restricted(one):
    """What the pod security standard `restricted` and our own rules demand."""
    manager_with_pods = any(role["metadata"]["name"].endswith("-sessions") for role in one.of("Role"))
    for name, _, pod in one.pods():
        of_pod = pod.get("securityContext", {})
        if of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault" or not of_pod.get("runAsNonRoot") or of_pod.get("runAsUser") != 65532:
            yield f"{name}: securityContext of the pod"
        calls_the_api_server = "-keys-" in name or (name.endswith("session-manager") and manager_with_pods)
        if pod.get("automountServiceAccountToken") is not calls_the_api_server:
            yield f"{name}: automountServiceAccountToken"
        if pod.get("enableServiceLinks") is not False or any(key in pod for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name}: enableServiceLinks or host namespaces"
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{name}: hostPath"
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False or not context.get("readOnlyRootFilesystem") or context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name}: securityContext of {container['name']}"
            ours = container["name"] not in ("sidecar", "first")
            if ours and not (container["resources"]["requests"].get("cpu") and container["resources"]["limits"].get("memory")):
                yield f"{name}: resources of {container['name']}"


@check
def pods_are_restricted():
    expect(problems_in(all_rendered(), restricted))


def broken_pods(one):
    """Accounts, volumes and ConfigMaps that do not exist."""
    accounts = {item["metadata"]["name"] for item in one.of("ServiceAccount")} | {"mine", "other", "third", "default"}
    maps = {item["metadata"]["name"] for item in one.of("ConfigMap")} | {"kube-root-ca.crt", "cluster-keys"}
    for name, _, pod in one.pods():
        if pod.get("serviceAccountName", "default") not in accounts:
            yield f"{name}: serviceAccountName {pod['serviceAccountName']}"
        claims = one.one("StatefulSet", name)["spec"].get("volumeClaimTemplates", []) if name.endswith("redis") else []
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | {claim["metadata"]["name"] for claim in claims}
        mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        if mounts != volumes:
            yield f"{name}: volumes {sorted(mounts ^ volumes)}"
        for volume in pod.get("volumes", []):
            if volume.get("configMap", {}).get("name", "kube-root-ca.crt") not in maps:
                yield f"{name}: ConfigMap {volume['configMap']['name']}"


def broken_selectors(one):
    """Selectors that do not select one workload, and ports that it does not have."""
    pods = {name: (meta["labels"], pod) for name, meta, pod in one.pods()}
    services = one.of("Service")

    def selected(labels):
        return [name for name, (have, _) in pods.items() if labels.items() <= have.items()]

    for service in services:
        name, found = service["metadata"]["name"], selected(service["spec"]["selector"])
        ports = {port["name"] for pod in found for container in pods[pod][1]["containers"] for port in container.get("ports", [])}
        wanted = {port["targetPort"] for port in service["spec"]["ports"]}
        if len(found) != 1 or not wanted <= ports:
            yield f"Service {name} selects {found}, ports {sorted(wanted - ports)}"
    for item in one.of("PodDisruptionBudget") + one.of("NetworkPolicy"):
        labels = item["spec"].get("selector", item["spec"].get("podSelector")).get("matchLabels")
        # Pods of sessions are made by session-manager.
        if labels and "berth/role" not in labels and len(selected(labels)) != 1:
            yield f"{item['kind']} {item['metadata']['name']} selects {selected(labels)}"
    for item in one.of("ServiceMonitor"):
        labels = item["spec"]["selector"]["matchLabels"].items()
        found = [service for service in services if labels <= service["metadata"]["labels"].items()]
        if len(found) != 1 or "admin" not in [port["name"] for port in found[0]["spec"]["ports"]]:
            yield f"ServiceMonitor {item['metadata']['name']} selects {len(found)} Services"
    for item in one.of("HorizontalPodAutoscaler"):
        if "replicas" in one.one("Deployment", item["spec"]["scaleTargetRef"]["name"])["spec"]:
            yield "the Deployment with an autoscaler has replicas"


def broken_backends(one):
    """Services of routes that do not exist or have another port."""
    ports = {(item["metadata"]["name"], port["port"]) for item in one.of("Service") for port in item["spec"]["ports"]}
    backends = [(backend["name"], backend["port"]) for item in one.of("GRPCRoute") + one.of("HTTPRoute") + one.of("TLSRoute")
                for rule in item["spec"]["rules"] for backend in rule["backendRefs"]]
    for item in one.of("Ingress"):
        services = [path["backend"]["service"] for path in item["spec"]["rules"][0]["http"]["paths"]]
        backends += [(service["name"], service["port"]["number"]) for service in services]
    yield from (backend for backend in backends if backend not in ports)


@check
def references_have_a_target():
    for find in (broken_pods, broken_selectors, broken_backends):
        expect(problems_in(all_rendered(), find))


CLUSTER_WIDE = ("Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


@check
def names_are_unique_and_labelled():
    def find(one):
        seen = set()
        for item in one.objects:
            key = (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
            if key in seen:
                yield f"{key} is there twice"
            seen.add(key)
            if not item["metadata"].get("namespace") and item["kind"] not in CLUSTER_WIDE:
                yield f"{key} has no namespace"
            ours = "app.kubernetes.io/part-of" in item["metadata"].get("labels", {})
            if not ours and item["metadata"]["name"] not in ("berth-more", "text"):
                yield f"{key} has no labels"

    expect(problems_in(all_rendered(), find))
    everywhere = all_rendered()["labels everywhere"]
    expect([item["metadata"]["name"] for item in everywhere.objects
            if item["metadata"]["labels"].get("team") != "data" or item["metadata"]["annotations"].get("owner") != "data"])
    long = render(merged(REQUIRED, {"fullnameOverride": "a" * 60}))
    expect([item["metadata"]["name"] for item in long.of("Service") if len(item["metadata"]["name"]) > 63])


@check
def images_are_named_by_registry_tag_and_digest():
    def images(name):
        return {pod: spec["containers"][0]["image"] for pod, _, spec in all_rendered()[name].pods()}

    assert images("defaults")["berth-spark-proxy"] == "berth/spark-proxy:0.1.0"
    assert images("digests")["berth-spark-proxy"] == "berth/spark-proxy@sha256:" + "a" * 64
    assert images("every knob of spark-proxy")["berth-spark-proxy"] == "r.example.org/team/program:1.2.3"
    mirror = images("another registry")
    assert mirror["berth-spark-proxy"] == "r.example.org/mirror/berth/spark-proxy:0.1.0"
    assert mirror["berth-redis"] == "r.example.org/mirror/library/redis:7.4"
    pulls = [spec["imagePullSecrets"] for _, _, spec in all_rendered()["another registry"].pods()]
    assert pulls == [[{"name": "pull"}, {"name": "more"}]] * 5


@check
def knobs_reach_the_pod():
    """What the operator sets is in the pod, not only accepted by the schema."""
    for component in WORKLOADS:
        one = all_rendered()[f"every knob of {component}"]
        deployment = one.one("Deployment", f"berth-{component}")
        pod, container = deployment["spec"]["template"]["spec"], deployment["spec"]["template"]["spec"]["containers"][0]
        wanted = cases.EVERY_KNOB
        for field in ("nodeSelector", "tolerations", "topologySpreadConstraints", "priorityClassName", "runtimeClassName", "schedulerName",
                      "hostAliases", "dnsPolicy", "dnsConfig", "affinity", "initContainers"):
            assert pod[field] == wanted[field], field
        assert container["command"] == wanted["command"] and container["args"][-1:] == wanted["extraArgs"]
        assert container["env"][-1:] == wanted["extraEnv"] and container["envFrom"] == wanted["extraEnvFrom"]
        assert container["volumeMounts"][-1:] == wanted["extraVolumeMounts"] and pod["volumes"][-1:] == wanted["extraVolumes"]
        assert pod["containers"][1:] == wanted["extraContainers"] and container["resources"] == wanted["resources"]
        meta = deployment["spec"]["template"]["metadata"]
        assert wanted["podLabels"].items() <= meta["labels"].items() and wanted["podAnnotations"].items() <= meta["annotations"].items()
        service = one.one("Service", f"berth-{component}")["spec"]
        for field in ("type", "loadBalancerClass", "loadBalancerSourceRanges", "externalTrafficPolicy", "sessionAffinity", "ipFamilyPolicy", "ipFamilies", "trafficDistribution"):
            assert service[field] == wanted["service"][field], field
        assert service["ports"][0]["nodePort"] == wanted["service"]["nodePort"]
        assert one.one("PodDisruptionBudget", f"berth-{component}")["spec"]["minAvailable"] == "50%"
        assert pod["serviceAccountName"] == "account" and one.one("ServiceAccount", "account")


@check
def grpc_services_of_the_protos_are_routed():
    """Every public service has a path at the gateway, and nothing internal has one."""
    public = set()
    for file in (REPO / "proto" / "berth" / "v1").glob("*.proto"):
        text = file.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.M).group(1)
        public |= {f"{package}.{name}" for name in re.findall(r"^service (\w+)", text, re.M)}
    public |= {"spark.connect.SparkConnectService", "grpc.health.v1.Health"}
    [route] = all_rendered()["GRPCRoute"].of("GRPCRoute")
    routed = [match["method"]["service"] for rule in route["spec"]["rules"] for match in rule["matches"]]
    assert sorted(routed) == sorted(public), set(routed) ^ public
    [ingress] = all_rendered()["Ingress of nginx"].of("Ingress")
    assert sorted(path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]) == sorted(f"/{name}" for name in public)


@check
def the_query_of_helm_test_speaks_the_protos():
    """Its own table of messages has the numbers and types of the real ones."""
    text = "\n".join(file.read_text() for file in (REPO / "proto" / "berth" / "v1").glob("*.proto"))
    table = re.search(r"^MESSAGES = \{.*?^\}", (CHART / "files" / "query.py").read_text(), re.M | re.S).group()
    types = {"TEXT": "string", "NUMBER": "SessionStatus", '"Session"': "Session", '"Duration"': "google.protobuf.Duration"}
    found = 0
    for name, fields in re.findall(r'"(\w+)": \{("\w+": \(.*?\))\}', table):
        if name == "Duration":
            continue
        body = re.search(rf"^message {name} \{{(.*?)^\}}", text, re.M | re.S).group(1)
        for field, number, kind in re.findall(r'"(\w+)": \((\d+), ([\w"]+)\)', fields):
            assert re.search(rf"^  {re.escape(types[kind])} {field} = {number};", body, re.M), f"{name}.{field}"
            found += 1
    assert found >= 13
    for service, method in re.findall(r'"(\w+Service)", "(\w+)"', (CHART / "files" / "query.py").read_text()):
        body = re.search(rf"^service {service} \{{(.*?)^\}}", text, re.M | re.S).group(1)
        assert f"rpc {method}({method}Request) returns ({method}Response);" in body, method


@check
def another_job_of_keys_has_another_name():
    """The template of a Job cannot be changed; its account, which owns the Secret, stays."""
    def names(values):
        one = render(merged(merged(REQUIRED, cases.KEYS_JOB), values))
        [job] = one.of("Job")
        assert job["spec"]["template"]["spec"]["containers"][0]["args"][2:4] == ["berth-signing-keys", "--owner=berth-keys"]
        [keys] = [volume["secret"]["secretName"] for _, _, pod in one.pods() for volume in pod.get("volumes", []) if volume["name"] == "keys"]
        assert keys == "berth-signing-keys" and one.one("ServiceAccount", "berth-keys")
        return job["metadata"]["name"]

    assert names({}) == names(at("sparkProxy.replicas", 3)) != names(at("image.tag", "0.1.1"))


@check
def the_console_is_where_its_url_says():
    for name, kind in (("console behind Ingress", "Ingress"), ("console behind HTTPRoute", "HTTPRoute")):
        one = all_rendered()[name]
        [route] = [item for item in one.of(kind) if item["metadata"]["name"] == "berth-console"]
        spec = route["spec"]
        if kind == "Ingress":
            [rule] = spec["rules"]
            found = (rule["host"], rule["http"]["paths"][0]["path"])
            assert spec["tls"][0]["hosts"] == [rule["host"]]
            annotations = route["metadata"]["annotations"]
            assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off" and annotations["x"] == "y"
        else:
            found = (spec["hostnames"][0], spec["rules"][0]["matches"][0]["path"]["value"])
        assert found == (("example.org", "/data/berth") if kind == "Ingress" else ("berth.example.org", "/")), found
    assert all_rendered()["console behind Ingress"].config("console")["public"] == {"url": "https://example.org/data/berth"}
    [ingress] = all_rendered()["console behind Ingress in plaintext"].of("Ingress")
    assert ingress["spec"]["rules"][0]["host"] == "berth.example.org" and "tls" not in ingress["spec"]
    assert not [item for item in all_rendered()["no console"].objects if "console" in item["metadata"]["name"]]


@check
def the_console_has_the_keys_of_its_cookies():
    for name, secret in (("defaults", "cookie-keys"), ("console, keys by a Job", "berth-cookie-keys")):
        one = all_rendered()[name]
        pod = one.one("Deployment", "berth-console")["spec"]["template"]["spec"]
        [volume] = [volume for volume in pod["volumes"] if volume["name"] == "cookie-keys"]
        assert volume["secret"]["secretName"] == secret
        assert one.config("console")["sign_in"]["keys_dir"] == "/etc/berth/cookie-keys"
    [job] = all_rendered()["console, keys by a Job"].of("Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][2:4] == ["berth-cookie-keys", "--owner=berth-cookie-keys"]


@check
def the_grace_period_follows_the_drain():
    for name, drain, stop in (("defaults", 150, 5), ("long drain", 3600, 30), ("no spare pods", 150, 0)):
        one = all_rendered()[name]
        pod = one.one("Deployment", "berth-spark-proxy")["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == drain + stop + 10, name
        assert one.config("spark-proxy")["drain"]["timeout"] == f"{drain}s", name
        assert (pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)) == stop, name


@check
def a_changed_configuration_restarts_its_pods_only():
    def sums(values):
        one = render(merged(REQUIRED, values))
        return {item["metadata"]["name"]: item["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for item in one.of("Deployment")}

    before, after = sums({}), sums(at("sparkProxy.config.routes", {"hold_max": "60s"}))
    assert [name for name in before if before[name] != after[name]] == ["berth-spark-proxy"]
    pods = [[item["spec"]["template"] for item in render(merged(REQUIRED, {}), args=args).of("Deployment")] for args in ((), ("--is-upgrade",))]
    assert pods[0] == pods[1]
