"""Isolation: network policies, rights, secrets."""

import cases
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
def the_console_reaches_only_the_apis():
    for name in ("defaults", "console with an identity provider", "network policies with egress"):
        one = all_rendered()[name]
        spec = one.one("NetworkPolicy", "berth-console")["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"], name
        dns, *rules = spec["egress"]
        assert {port["port"] for port in dns["ports"]} == {53}
        found = [(rule["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"], rule["ports"][0]["port"]) for rule in rules[:2]]
        assert found == [("session-manager", 8081), ("token-issuer", 8083)], found
        assert rules[2:] == (cases.ANYWHERE if "provider" in name else []), rules
        for component, port in found:
            policy = one.one("NetworkPolicy", f"berth-{component}")["spec"]
            [rule] = [rule for rule in policy["ingress"] if rule["ports"][0]["port"] == port]
            peers = [peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component") for peer in rule.get("from", [])]
            assert "from" not in rule or "console" in peers, (name, component)


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


# Where engines have workers, for the policies that connect the pods of a session.
RIGHTS_WITH_WORKERS = RIGHTS | {"networkpolicies": {"get", "create", "delete"}}

# Verbs of drivers; the admission policy limits them further (apply.py).
DRIVER_RIGHTS = {
    "sail-driver": {"pods": {"get", "create", "deletecollection"}},
    "spark-driver": {"pods": {"get", "list", "watch", "create", "delete", "deletecollection"}},
}


@check
def rights_equal_the_table():
    for name, one in all_rendered().items():
        assert not one.of("ClusterRole") and not one.of("ClusterRoleBinding"), name
        for role in sessions_only(one.of("Role")):
            own, namespace = role["metadata"]["name"], role["metadata"]["namespace"]
            assert namespace != NAMESPACE
            if own in DRIVER_RIGHTS:
                assert rules_of(role) == DRIVER_RIGHTS[own] and namespace == "sessions", (name, own)
                continue
            more = {"services": {"get"}} if "everything" in name else {}
            with_workers = name == "distributed engines" and namespace == "sessions"
            assert rules_of(role) == (RIGHTS_WITH_WORKERS if with_workers else RIGHTS) | more, (name, rules_of(role))
        for binding in sessions_only(one.of("RoleBinding")):
            role = binding["roleRef"]["name"]
            subject = {"kind": "ServiceAccount", "name": "berth-session-manager", "namespace": NAMESPACE}
            if role in DRIVER_RIGHTS:
                subject = {"kind": "ServiceAccount", "name": role, "namespace": "sessions"}
            assert binding["subjects"] == [subject], (name, role)
    assert not all_rendered()["defaults"].of("Role")


@check
def drivers_have_accounts_and_policies_of_their_own():
    one = all_rendered()["distributed engines"]
    accounts = {item["metadata"]["name"]: item for item in one.of("ServiceAccount") if item["metadata"]["namespace"] == "sessions"}
    assert set(accounts) == {*DRIVER_RIGHTS, "berth-workers"}
    assert all(item["automountServiceAccountToken"] is False for item in accounts.values())
    policies = {item["metadata"]["name"]: item["spec"] for item in one.of("ValidatingAdmissionPolicy")}
    assert set(policies) == {f"berth-sessions-{name}" for name in DRIVER_RIGHTS}
    for name, spec in policies.items():
        (condition,) = spec["matchConditions"]
        assert condition["expression"] == f"request.userInfo.username == 'system:serviceaccount:sessions:{name.removeprefix('berth-sessions-')}'"
        assert spec["failurePolicy"] == "Fail" and spec["matchConstraints"]["resourceRules"][0]["resources"] == ["pods", "pods/*"]
        binding = one.one("ValidatingAdmissionPolicyBinding", name)["spec"]
        assert binding == {"policyName": name, "validationActions": ["Deny"]}
    (network,) = [item["spec"] for item in one.of("NetworkPolicy") if item["metadata"]["name"] == "berth-drivers"]
    assert network["podSelector"] == {"matchLabels": {"berth/role": "driver"}} and network["policyTypes"] == ["Egress"]
    assert [rule["to"][0]["ipBlock"]["cidr"] for rule in network["egress"]] == ["10.96.0.1/32", "10.250.0.2/32"]
    assert one.config("session-manager")["compute"]["kubernetes"]["isolated"] is True
    bare = all_rendered()["distributed engines without isolation"]
    assert "isolated" not in bare.config("session-manager")["compute"]["kubernetes"]
    assert not [item for item in bare.of("NetworkPolicy") if item["metadata"]["name"] == "berth-drivers"]
    assert not all_rendered()["sessions as pods"].of("ValidatingAdmissionPolicy")


@check
def no_secret_is_rendered():
    def find(one):
        yield from (f"Secret {item['metadata']['name']}" for item in one.of("Secret"))
        for item in one.of("ConfigMap"):
            for name, text in item["data"].items():
                if "BEGIN" in text and "PRIVATE" in text:
                    yield f"a key in {name}"

    expect(problems_in(all_rendered(), find))
