"""Isolation: network policies, rights, secrets."""

from chart import NAMESPACE
from suite import all_rendered, check, expect, problems_in


@check
def internal_ports_are_closed_to_others():
    """Who may reach each port, by the policies as rendered."""
    for name in ("defaults", "network policies with egress"):
        one = all_rendered()[name]
        wanted = {("session-manager", 8082): {"spark-proxy", "token-issuer"}, ("token-issuer", 8084): {"spark-proxy", "session-manager"}}
        if name != "defaults":
            wanted[("redis", 6379)] = {"session-manager"}
        for (component, port), peers in wanted.items():
            policy = one.one("NetworkPolicy", f"berth-{component}")
            rules = [rule for rule in policy["spec"]["ingress"] if port in [entry["port"] for entry in rule["ports"]]]
            assert len(rules) == 1, (component, port)
            found = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rules[0]["from"]}
            assert found == peers and all(set(peer) == {"podSelector"} for peer in rules[0]["from"]), (component, port, found)
        clients = [rule for rule in one.one("NetworkPolicy", "berth-spark-proxy")["spec"]["ingress"] if rule["ports"][0]["port"] == 8085]
        assert ("from" in clients[0]) is (name != "defaults")


@check
def sessions_are_isolated():
    one = all_rendered()["sessions as pods, everything"]
    for namespace in ("sessions", "sessions-gpu"):
        policies = [item for item in one.of("NetworkPolicy") if item["metadata"]["namespace"] == namespace]
        assert len(policies) == 1
        spec = policies[0]["spec"]
        assert spec["podSelector"] == {} and spec["policyTypes"] == ["Ingress", "Egress"]
        peers = [(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"])
                 for peer in spec["ingress"][0]["from"]]
        assert len(spec["ingress"]) == 1 and peers == [(NAMESPACE, "spark-proxy"), (NAMESPACE, "session-manager")]
        blocks = [peer["ipBlock"] for rule in spec["egress"] for peer in rule["to"] if "ipBlock" in peer]
        assert blocks == [{"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "169.254.169.254/32"]}, {"cidr": "10.9.0.0/16"}], blocks
        assert one.one("Namespace", namespace)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    bare = all_rendered()["sessions as pods"]
    egress = [item["spec"]["egress"] for item in bare.of("NetworkPolicy") if item["metadata"]["namespace"] == "sessions"][0]
    assert [port["port"] for rule in egress for port in rule["ports"]] == [53, 53], "only DNS"


# Verbs that session-manager has in a namespace of sessions. A change here is a change of rights.
RIGHTS = {
    "pods": {"get", "list", "watch", "create", "patch", "delete"},
    "pods/log": {"get"},
    "secrets": {"get", "create", "delete"},
    "configmaps (berth-sessions)": {"get"},
    "events": {"list", "watch"},
}


# Of the Job that makes the signing keys, in the namespace of the release. Kubernetes cannot limit a create to a name.
RIGHTS_OF_KEYS = {
    "secrets": {"create"},
    "secrets (berth-signing-keys)": {"get", "patch"},
    "serviceaccounts (berth-keys)": {"get"},
}


def sessions_only(objects):
    """Those that are not of the Job of keys."""
    return [one for one in objects if not one["metadata"]["name"].endswith("-keys")]


def rules_of(role):
    """Resource, with names if they are limited = its verbs."""
    found = {}
    for rule in role["rules"]:
        for resource in rule["resources"]:
            names = f" ({', '.join(rule['resourceNames'])})" if "resourceNames" in rule else ""
            found[resource + names] = set(rule["verbs"])
    return found


@check
def the_job_of_keys_has_the_rights_of_the_table():
    one = all_rendered()["keys by a Job"]
    [role], [binding] = one.of("Role"), one.of("RoleBinding")
    assert rules_of(role) == RIGHTS_OF_KEYS and role["metadata"]["namespace"] == NAMESPACE
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "berth-keys"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "berth-keys", "namespace": NAMESPACE}]


@check
def rights_equal_the_table():
    for name, one in all_rendered().items():
        assert not one.of("ClusterRole") and not one.of("ClusterRoleBinding"), name
        for role in sessions_only(one.of("Role")):
            found = rules_of(role)
            more = {"services": {"get"}} if "everything" in name else {}
            assert found == RIGHTS | more, (name, found)
            assert role["metadata"]["namespace"] != NAMESPACE
        bound = [subject for binding in sessions_only(one.of("RoleBinding")) for subject in binding["subjects"]]
        assert all(subject == {"kind": "ServiceAccount", "name": "berth-session-manager", "namespace": NAMESPACE} for subject in bound), name
    assert not all_rendered()["defaults"].of("Role")


@check
def no_secret_is_rendered():
    def find(one):
        yield from (f"Secret {item['metadata']['name']}" for item in one.of("Secret"))
        for item in one.of("ConfigMap"):
            for name, text in item["data"].items():
                if "BEGIN" in text and "PRIVATE" in text:
                    yield f"a key in {name}"

    expect(problems_in(all_rendered(), find))
