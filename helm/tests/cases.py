"""The table of the chart's tests: values that must work, and values that must be rejected with a message."""

from chart import CHART, at, merged

ISSUER = {"enabled": True, "issuerRef": {"name": "ca"}}
DIGEST = "sha256:" + "a" * 64
OUTSIDE = {"endpoint": {"host": "berth.example.org", "port": 443}}
GATEWAY = [{"name": "public", "namespace": "gateways"}]

PLAINTEXT = {
    "tls": {"public": {"enabled": False}, "internal": {"mode": "plaintext"}},
}
TOKENS = {
    "tls": {"internal": {"mode": "tokens", "tokens": {"issuer": "https://kubernetes.default.svc.cluster.local"}}},
}
CERT_MANAGER = {
    "signingKeys": {"existingSecret": "", "certManager": ISSUER},
    "tls": {
        "public": {"existingSecret": "", "certManager": {**ISSUER, "dnsNames": ["api.example.org"], "ipAddresses": ["10.1.2.3"]}},
        "internal": {
            "existingSecrets": {"sessionManager": "", "tokenIssuer": "", "sparkProxy": ""},
            "certManager": ISSUER,
        },
    },
}
KEYS_JOB = {"signingKeys": {"existingSecret": "", "job": {"enabled": True}}}
PROVIDER = {"id": "corp", "issuer": "https://login.example.org", "client_id": "berth", "client_secret_file": "/etc/berth/client-secrets/corp"}
ANYWHERE = [{"ports": [{"protocol": "TCP", "port": 443}]}]
BEHIND_INGRESS = {"limits": {"trusted_proxies": ["10.0.0.0/8"]}}
CONSOLE_OIDC = {
    "console": {"url": "https://example.org/data/berth", "clientSecrets": {"existingSecret": "clients"}, "config": {
        "sign_in": {"max_age": "8h", "providers": [PROVIDER]}, "limits": {"trusted_proxies": ["10.0.0.0/8"]}}},
    "networkPolicy": {"egress": {"console": ANYWHERE}},
}
KUBERNETES = at("sessionManager.kubernetes", {"enabled": True, "namespaces": ["sessions", "sessions-gpu"]})
DRIVER = {"cluster": "sail-large", "namespace": "sessions", "engine": "sail", "serviceAccount": "sail-driver",
          "images": ["r.example.org/sail:0.7.2"], "maxCpu": "2", "maxMemory": "4Gi"}
SPARK_DRIVER = {**DRIVER, "cluster": "spark-large", "engine": "spark", "serviceAccount": "spark-driver",
                "images": ["r.example.org/spark:4.3.0", "r.example.org/spark@sha256:" + "a" * 64], "imagePullSecrets": ["pull"],
                "tolerations": ["example.org/spot"], "priorityClassNames": ["batch"], "annotations": ["example.org/team"]}
API_SERVER = [{"cidr": "10.96.0.1/32", "ports": [443]}, {"cidr": "10.250.0.2/32", "ports": [6443]}]
DISTRIBUTED = merged(KUBERNETES, at("sessionManager.kubernetes", {
    "distributedDrivers": [DRIVER, SPARK_DRIVER], "networkPolicy": {"apiServer": API_SERVER}}))
EVERY_KNOB = {
    "image": {"registry": "r.example.org", "repository": "team/program", "tag": "1.2.3", "pullPolicy": "Always"},
    "command": ["/program"],
    "extraArgs": ["--print-config"],
    "extraEnv": [{"name": "BERTH_SECRET_ACME__LAKE", "valueFrom": {"secretKeyRef": {"name": "lake", "key": "token"}}}],
    "extraEnvFrom": [{"secretRef": {"name": "more"}}],
    "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "extraContainers": [{"name": "sidecar", "image": "sidecar:1", "securityContext": {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}}],
    "initContainers": [{"name": "first", "image": "first:1", "securityContext": {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}}],
    "service": {
        "type": "LoadBalancer", "nodePort": 30085, "annotations": {"a": "b"}, "labels": {"c": "d"},
        "loadBalancerClass": "example.org/lb", "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"], "trafficDistribution": "PreferSameZone",
    },
    "serviceAccount": {"name": "account", "annotations": {"role": "x"}, "labels": {"l": "m"}},
    "podDisruptionBudget": {"minAvailable": "50%"},
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
    "labels": {"deployment": "yes"}, "annotations": {"deployment": "yes"},
    "podLabels": {"sidecar.istio.io/inject": "false"}, "podAnnotations": {"pod": "yes"},
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "arch", "operator": "In", "values": ["amd64"]}]}]}}},
    "nodeSelector": {"pool": "services"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
                                   "labelSelector": {"matchLabels": {"a": "b"}}}],
    "priorityClassName": "high", "runtimeClassName": "gvisor", "schedulerName": "other",
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["redis.example.org"]}],
    "dnsPolicy": "ClusterFirst", "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
}
CLUSTERS = {
    "sessionManager": {
        "config": {
            "service_accounts": [{"name": "ada", "org": "acme", "roles": ["member"], "key_sha256": "0" * 64}],
            "platform_admins": ["sa|ada"],
            "compute": {"static": {"allow": ["10.0.0.0/8"]}},
            "clusters": [{"name": "shared", "engine": "sail", "granted_orgs": ["acme"],
                          "static": {"endpoints": [{"address": "sail.compute.svc:50051"}]}}],
            "orgs": [{"name": "acme", "limits": {"live_sessions": 1000000}}],
            "limits": {"request_bytes": 4194304, "shared_addresses": ["10.0.0.0/8"]},
            "store": {"max_in_flight": 1000000, "call_timeout": "3s"},
        }
    }
}
OIDC = at("sessionManager.config.oidc", [{
    "alias": "corp", "issuer": "https://login.example.org/realms/main", "audiences": ["berth"], "orgs": ["acme"], "org": "acme",
    "roles_claim": "realm_access.roles", "role_values": {"berth-users": "member"}}])


def workload(name, values):
    return {name: values}


# name: (files, values). Everything is on top of chart.REQUIRED, unless the name begins with "alone".
GOOD = {
    "defaults": ((), {}),
    "alone: trial": ((CHART / "values-trial.yaml",), {}),
    "alone: ha": ((CHART / "values-ha.yaml",), {"endpoint": {"host": "berth.example.org"}}),
    "plaintext": ((), PLAINTEXT),
    "plaintext, bundled Redis": ((), merged(PLAINTEXT, {"redis": {"url": "", "bundled": {"enabled": True}}})),
    "bundled Redis with a disk": ((), {"redis": {"url": "", "bundled": {"enabled": True, "persistence": {
        "enabled": True, "storageClassName": "fast", "whenDeleted": "Retain"}}}}),
    "keys by a Job": ((), KEYS_JOB),
    "keys by a Job, every knob": ((), merged(KEYS_JOB, {
        "fullnameOverride": "b" * 60, "global": {"imagePullSecrets": ["pull"]}, "signingKeys": {"job": {
            "image": {"digest": DIGEST}, "podLabels": {"a": "b"}, "podAnnotations": {"c": "d"},
            **{knob: EVERY_KNOB[knob] for knob in ("nodeSelector", "tolerations", "topologySpreadConstraints", "priorityClassName",
                                                   "runtimeClassName", "schedulerName", "hostAliases", "dnsPolicy", "dnsConfig")}}}})),
    "cert-manager": ((), CERT_MANAGER),
    "cert-manager and tokens": ((), merged(CERT_MANAGER, TOKENS)),
    "tokens, discovered keys": ((), TOKENS),
    "tokens, keys from a ConfigMap": ((), merged(TOKENS, at("tls.internal.tokens.jwks", {"existingConfigMap": "cluster-keys"}))),
    "tokens, accounts of the operator": ((), merged(TOKENS, {
        "tokenIssuer": {"serviceAccount": {"create": False, "name": "mine"}},
        "sparkProxy": {"serviceAccount": {"create": False, "name": "other"}},
        "sessionManager": {"serviceAccount": {"create": False, "name": "third"}}})),
    "names in certificates": ((), at("tls.internal.allowedNames", {"sparkProxy": "spiffe://berth/proxy", "tokenIssuer": "issuer"})),
    "other entries of secrets": ((), {"tls": {
        "public": {"certKey": "cert.pem", "keyKey": "key.pem"},
        "internal": {"certKey": "cert.pem", "keyKey": "key.pem", "caKey": "ca.pem"}}}),
    "plaintext inside only": ((), at("tls.internal.mode", "plaintext")),
    "TLS and plaintext clients": ((), at("tls.public.sparkConnectMode", "auto")),
    "Redis by Sentinel": ((), {"redis": {"url": "redis-sentinel://a:26379,b:26379/main", "existingSecret": "redis",
                                         "usernameKey": "user", "passwordKey": "password",
                                         "sentinelUsernameKey": "su", "sentinelPasswordKey": "sp"}}),
    "Redis Cluster over TLS": ((), {"redis": {"url": "rediss-cluster://a:6379,b:6379", "tls": {
        "existingSecret": "redis-tls", "certKey": "tls.crt", "keyKey": "tls.key"}}}),
    "Redis from a Secret": ((), {"redis": {"url": "", "existingSecret": "redis", "urlKey": "url", "keyPrefix": "team:"}}),
    "clusters and organizations": ((), CLUSTERS),
    "accounts from a Secret": ((), at("sessionManager.serviceAccounts", {"existingSecret": "accounts", "key": "accounts.yaml"})),
    "identity provider": ((), OIDC),
    "sessions as pods": ((), KUBERNETES),
    "sessions as pods, everything": ((), merged(KUBERNETES, at("sessionManager.kubernetes", {
        "createNamespaces": True, "maxPods": 500, "maxStarting": 20, "warmPodMaxAge": "12h",
        "extraRules": [{"apiGroups": [""], "resources": ["services"], "verbs": ["get"]}],
        "networkPolicy": {"egress": [{"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"], "ports": [443]}, {"cidr": "10.9.0.0/16"}]}}))),
    "sessions as pods without isolation": ((), merged(KUBERNETES, at("sessionManager.kubernetes.networkPolicy.enabled", False))),
    "distributed engines": ((), DISTRIBUTED),
    "distributed engines without isolation": ((), merged(DISTRIBUTED, at("sessionManager.kubernetes.networkPolicy", {"enabled": False, "apiServer": []}))),
    "no network policies": ((), at("networkPolicy.enabled", False)),
    "network policies with egress": ((), merged(merged(KUBERNETES, {"redis": {"url": "", "bundled": {"enabled": True}}}), {
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "data"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "metrics": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "egress": {"enabled": True, "sessionManager": [{"to": [{"ipBlock": {"cidr": "10.2.0.0/16"}}]}],
                       "sparkProxy": [{"to": [{"ipBlock": {"cidr": "10.2.0.0/16"}}]}]}}})),
    "autoscaling on CPU": ((), at("sparkProxy.autoscaling.enabled", True)),
    "autoscaling on open calls": ((), at("sparkProxy.autoscaling", {
        "enabled": True, "targetCPUUtilizationPercentage": 0, "openCalls": {"target": 500}})),
    "autoscaling on both": ((), at("sparkProxy.autoscaling", {"enabled": True, "openCalls": {"target": 500}, "behavior": {}})),
    "Ingress of nginx": ((), merged(PLAINTEXT, {**OUTSIDE, "ingress": {"enabled": True, "className": "nginx", "controller": "nginx",
                                                           "host": "berth.example.org", "tls": {"secretName": "berth-tls"}}})),
    "Ingress of another controller": ((), {**OUTSIDE, "ingress": {"enabled": True, "host": "berth.example.org", "annotations": {"x": "y"},
                                                      "tls": {"enabled": False}}}),
    "GRPCRoute": ((), merged(PLAINTEXT, {**OUTSIDE, "grpcRoute": {"enabled": True, "parentRefs": GATEWAY, "hostnames": ["berth.example.org"],
                                                      "labels": {"a": "b"}}})),
    "TLSRoute": ((), {**OUTSIDE, "tlsRoute": {"enabled": True, "parentRefs": GATEWAY, "hostnames": {
        "sparkProxy": ["spark.example.org"], "sessionManager": ["api.example.org"], "tokenIssuer": ["tokens.example.org"]}}}),
    "TLSRoute of an older Gateway API": ((), {**OUTSIDE, "tlsRoute": {
        "enabled": True, "apiVersion": "gateway.networking.k8s.io/v1alpha2", "parentRefs": GATEWAY,
        "hostnames": {"sparkProxy": ["spark.example.org"]}}}),
    "load balancer": ((), {"endpoint": {"host": "berth.example.org", "port": 443}, "sparkProxy": {
        "service": {"type": "LoadBalancer", "port": 443}, "config": {"listen": {"trusted_proxies": ["10.0.0.0/8"]}}}}),
    "node ports": ((), {key: {"service": {"type": "NodePort"}} for key in ("sparkProxy", "sessionManager", "tokenIssuer")}),
    "monitoring": ((), {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "scrapeTimeout": "10s",
                           "relabelings": [{"action": "labeldrop", "regex": "endpoint"}],
                           "metricRelabelings": [{"action": "drop", "regex": "go_.*", "sourceLabels": ["__name__"]}]},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "alertLabels": {"team": "data"},
                           "disabled": ["BerthPlaintextClients"]},
        "dashboard": {"enabled": True}}),
    "monitoring in other namespaces": ((), {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True},
                                            "dashboard": {"enabled": True, "namespace": "grafana"}}),
    "helm test": ((), {"helmTest": {"enabled": True, "existingSecret": "tester"}}),
    "helm test in plaintext": ((), merged(PLAINTEXT, {"helmTest": {"enabled": True, "existingSecret": "tester", "caKey": ""}})),
    "no console": ((), {"console": {"enabled": False}, "serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}),
    "console with an identity provider": ((), CONSOLE_OIDC),
    "console, keys by a Job": ((), {"console": {"cookieKeys": {"existingSecret": "", "job": {"enabled": True}}}}),
    "console behind Ingress": ((), merged(CONSOLE_OIDC, {"console": {"ingress": {
        "enabled": True, "className": "nginx", "controller": "nginx", "annotations": {"x": "y"}, "tls": {"secretName": "console-tls"}}}})),
    "console behind Ingress in plaintext": ((), merged(PLAINTEXT, {"console": {
        "url": "http://berth.example.org:8080", "insecureUrl": True, "config": BEHIND_INGRESS, "ingress": {"enabled": True, "tls": {"enabled": False}}}})),
    "console behind HTTPRoute": ((), merged(PLAINTEXT, {"console": {"url": "https://berth.example.org", "config": {
        "limits": {"shared_addresses": ["10.0.0.0/8"]}}, "httpRoute": {
        "enabled": True, "parentRefs": GATEWAY, "labels": {"a": "b"}}}})),
    "console, certificate of the endpoint": ((), at("console.apis", {"caKey": "", "serverName": "berth.example.org"})),
    "console, system's authorities": ((), at("console.apis.caKey", "")),
    "console with autoscaling": ((), at("console.autoscaling", {"enabled": True, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}}})),
    "every knob of console": ((), workload("console", EVERY_KNOB)),
    "every knob of session-manager": ((), workload("sessionManager", EVERY_KNOB)),
    "every knob of token-issuer": ((), workload("tokenIssuer", EVERY_KNOB)),
    "every knob of spark-proxy": ((), workload("sparkProxy", EVERY_KNOB)),
    "digests": ((), {key: {"image": {"digest": DIGEST}} for key in ("sparkProxy", "sessionManager", "tokenIssuer")}),
    "another registry": ((), {"global": {"imageRegistry": "r.example.org/mirror/", "imagePullSecrets": ["pull"]},
                              "image": {"registry": "ignored.example.org", "pullSecrets": ["pull", "more"]},
                              "redis": {"url": "", "bundled": {"enabled": True}}}),
    "other names": ((), {"fullnameOverride": "spark", "nameOverride": "sc"}),
    "labels everywhere": ((), {"commonLabels": {"team": "data"}, "commonAnnotations": {"owner": "data"}}),
    "umbrella chart": ((), {"enabled": True, "global": {"anything": {"of": "others"}}}),
    "IPv6": ((), {"bindAddress": "[::]"}),
    "no spare pods": ((), {"sparkProxy": {"replicas": 5, "podAntiAffinity": "hard", "podDisruptionBudget": {"enabled": False},
                                          "updateStrategy": {"type": "Recreate", "rollingUpdate": None}, "preStopSeconds": 0},
                           "tokenIssuer": {"podAntiAffinity": "none"}}),
    "long drain": ((), {"sparkProxy": {"drainSeconds": 3600, "preStopSeconds": 30}}),
    "telemetry": ((), {"telemetry": {"format": "text", "level": "info,h2=warn", "otlpEndpoint": "http://otel:4317", "sampleRatio": 1},
                       "networkPolicy": {"egress": {"console": [{"ports": [{"protocol": "TCP", "port": 4317}]}]}}}),
    "large numbers": ((), at("sparkProxy.config", {
        "limits": {"unread_bytes": 8589934592, "held_bytes": 1073741824, "connections": 1000000},
        "backend": {"connection_window_bytes": 1073741824, "stream_window_bytes": 67108864}})),
    "more objects": ((), {"extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-more", "namespace": "berth"}, "data": {"a": "b"}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: text, namespace: berth}\ndata: {release: {{ .Release.Name }}}\n"]}),
}

# (path of the value, the value, part of the message)
WRONG = [
    # unknown keys
    ("sparkproxy", {}, "'sparkproxy' not allowed"),
    ("sparkProxy.replica", 2, "'replica' not allowed"),
    ("sessionManager.image.name", "x", "'name' not allowed"),
    ("tls.public.secret", "x", "'secret' not allowed"),
    ("redis.password", "secret", "'password' not allowed"),
    ("redis.bundled.password", "secret", "'password' not allowed"),
    ("networkPolicy.egress.redis", [], "'redis' not allowed"),
    ("ingress.hosts", ["a"], "'hosts' not allowed"),
    ("sparkProxy.service.ports", [], "'ports' not allowed"),
    ("helmTest.image.name", "x", "'name' not allowed"),
    ("sessionManager.kubernetes.namespace", "x", "'namespace' not allowed"),
    ("sparkProxy.terminationGracePeriodSeconds", 5, "'terminationGracePeriodSeconds' not allowed"),
    # types and ranges
    ("sparkProxy.replicas", "two", "/sparkProxy/replicas': got string, want integer"),
    ("sparkProxy.replicas", -1, "/sparkProxy/replicas': minimum"),
    ("sparkProxy.workers", 2000, "/sparkProxy/workers': maximum"),
    ("sparkProxy.drainSeconds", "150s", "/sparkProxy/drainSeconds': got string"),
    ("sparkProxy.drainSeconds", -1, "/sparkProxy/drainSeconds': minimum"),
    ("sparkProxy.preStopSeconds", 601, "/sparkProxy/preStopSeconds': maximum"),
    ("sparkProxy.config", [], "/sparkProxy/config': got array, want object"),
    ("endpoint.port", 0, "/endpoint/port': minimum"),
    ("endpoint.port", "8085", "/endpoint/port': got string"),
    ("endpoint.host", "https://berth.example.org", "/endpoint/host'"),
    ("endpoint.host", "berth.example.org:8085", "/endpoint/host'"),
    ("endpoint.tls", "yes", "/endpoint/tls'"),
    ("bindAddress", "127.0.0.1", "/bindAddress'"),
    ("tokens.issuer", "", "/tokens/issuer'"),
    ("image.tag", "a b", "/image/tag'"),
    ("image.pullPolicy", "Sometimes", "/image/pullPolicy'"),
    ("sparkProxy.image.digest", "sha256:abc", "/sparkProxy/image/digest'"),
    ("sparkProxy.image.repository", "Berth/Proxy", "/sparkProxy/image/repository'"),
    ("sparkProxy.service.type", "ExternalName", "/sparkProxy/service/type'"),
    ("sparkProxy.service.port", 70000, "/sparkProxy/service/port': maximum"),
    ("sparkProxy.service.nodePort", 8085, "/sparkProxy/service/nodePort'"),
    ("sparkProxy.service.externalTrafficPolicy", "local", "/sparkProxy/service/externalTrafficPolicy'"),
    ("sparkProxy.service.loadBalancerSourceRanges", ["10.0.0.1"], "/sparkProxy/service/loadBalancerSourceRanges/0'"),
    ("sparkProxy.service.ipFamilies", ["IPv5"], "/sparkProxy/service/ipFamilies/0'"),
    ("sparkProxy.service.annotations", {"timeout": 350}, "/sparkProxy/service/annotations/timeout': got number, want string"),
    ("sparkProxy.podAntiAffinity", "strict", "/sparkProxy/podAntiAffinity'"),
    ("sparkProxy.updateStrategy.type", "Rolling", "/sparkProxy/updateStrategy/type'"),
    ("sparkProxy.podDisruptionBudget.minAvailable", "most", "/sparkProxy/podDisruptionBudget/minAvailable'"),
    ("sparkProxy.resources.limits.memory", "2 GiB", "/sparkProxy/resources/limits/memory'"),
    ("sparkProxy.livenessProbe.periodSeconds", 0, "/sparkProxy/livenessProbe/periodSeconds': minimum"),
    ("sparkProxy.extraEnv", [{"value": "x"}], "missing property 'name'"),
    ("sparkProxy.extraVolumeMounts", [{"name": "x", "mountPath": "tmp"}], "/sparkProxy/extraVolumeMounts/0/mountPath'"),
    ("sparkProxy.dnsPolicy", "Cluster", "/sparkProxy/dnsPolicy'"),
    ("sparkProxy.autoscaling.maxReplicas", 0, "/sparkProxy/autoscaling/maxReplicas': minimum"),
    ("sparkProxy.autoscaling.openCalls.target", 1.5, "/sparkProxy/autoscaling/openCalls/target'"),
    ("tls.public.sparkConnectMode", "off", "/tls/public/sparkConnectMode'"),
    ("tls.public.certManager.duration", "90d", "/tls/public/certManager/duration'"),
    ("tls.internal.mode", "mtls", "/tls/internal/mode'"),
    ("tls.internal.tokens.expirationSeconds", 60, "/tls/internal/tokens/expirationSeconds': minimum"),
    ("tls.internal.tokens.issuer", "kubernetes.default.svc", "/tls/internal/tokens/issuer'"),
    ("redis.url", "http://redis:6379", "/redis/url'"),
    ("redis.url", "redis.example.org:6379", "/redis/url'"),
    ("redis.keyPrefix", "{berth}:", "/redis/keyPrefix'"),
    ("redis.keyPrefix", "", "/redis/keyPrefix'"),
    ("redis.bundled.persistence.size", "1 GB", "/redis/bundled/persistence/size'"),
    ("telemetry.format", "logfmt", "/telemetry/format'"),
    ("telemetry.sampleRatio", 2, "/telemetry/sampleRatio': maximum"),
    ("telemetry.level", "loud", "/telemetry/level'"),
    ("sessionManager.serviceAccounts.key", "accounts.json", "/sessionManager/serviceAccounts/key'"),
    ("sessionManager.kubernetes.namespaces", ["Sessions"], "/sessionManager/kubernetes/namespaces/0'"),
    ("sessionManager.kubernetes.networkPolicy.egress", [{"cidr": "10.0.0.1"}], "/sessionManager/kubernetes/networkPolicy/egress/0/cidr'"),
    ("sessionManager.kubernetes.networkPolicy.egress", [{"ports": [443]}], "missing property 'cidr'"),
    ("networkPolicy.clients", [{}], "/networkPolicy/clients/0': minProperties"),
    ("networkPolicy.metrics", [{"namespace": "monitoring"}], "'namespace' not allowed"),
    ("ingress.controller", "traefik", "/ingress/controller'"),
    ("grpcRoute.parentRefs", [{"namespace": "gateways"}], "missing property 'name'"),
    ("tlsRoute.apiVersion", "gateway.networking.k8s.io/v1beta1", "/tlsRoute/apiVersion'"),
    ("serviceMonitor.interval", "30", "/serviceMonitor/interval'"),
    ("prometheusRule.disabled", ["Watchdog"], "/prometheusRule/disabled/0'"),
    ("commonLabels", {"replicas": 3}, "/commonLabels/replicas': got number, want string"),
    ("extraObjects", [5], "/extraObjects/0'"),
    # combinations
    ("signingKeys.existingSecret", "", "signingKeys: set job.enabled=true, which creates the key, or existingSecret"),
    ("signingKeys.certManager", ISSUER, "signingKeys: existingSecret, job.enabled and certManager.enabled exclude each other"),
    ("signingKeys.job.enabled", True, "signingKeys: existingSecret, job.enabled and certManager.enabled exclude each other"),
    ("signingKeys.job.image.tag", "a b", "/signingKeys/job/image/tag'"),
    ("signingKeys.job.rotate", True, "'rotate' not allowed"),
    ("signingKeys", {"existingSecret": "", "certManager": {"enabled": True}}, "signingKeys.certManager.issuerRef.name: required"),
    ("tls.public.existingSecret", "", "tls.public: set existingSecret"),
    ("tls.public.certManager", ISSUER, "tls.public: existingSecret and certManager.enabled exclude each other"),
    ("tls.internal.existingSecrets.sparkProxy", "", "tls.internal (sparkProxy): set existingSecrets.sparkProxy"),
    ("tls.internal.certManager", ISSUER, "tls.internal (sessionManager): existingSecret and certManager.enabled exclude"),
    ("tls.internal.mode", "tokens", "tls.internal.tokens.issuer: required with mode=tokens"),
    ("redis.url", "", "redis: set url"),
    ("redis.bundled.enabled", True, "redis: url, urlKey and bundled.enabled exclude each other"),
    ("redis.url", "redis://user:secret@redis:6379", "redis.url: contains a password"),
    ("redis.passwordKey", "password", "redis.existingSecret: required"),
    ("redis.tls.existingSecret", "redis-tls", "redis.tls: needs a rediss:// URL"),
    ("redis.tls.certKey", "tls.crt", "redis.tls: certKey and keyKey belong together"),
    ("redis", {"url": "", "existingSecret": "x", "bundled": {"enabled": True}}, "redis.bundled: has no password"),
    (".", {"redis": {"url": "", "bundled": {"enabled": True}}, "networkPolicy": {"enabled": False}}, "redis.bundled: needs networkPolicy.enabled"),
    ("sessionManager.kubernetes.enabled", True, "sessionManager.kubernetes.namespaces: name at least one"),
    ("sessionManager.kubernetes", {"enabled": True, "namespaces": ["berth"]}, "berth is the namespace of Berth itself"),
    (".", merged(DISTRIBUTED, at("sessionManager.kubernetes.namespaces", ["sessions-gpu"])), "namespace sessions is not in sessionManager.kubernetes.namespaces"),
    (".", merged(DISTRIBUTED, at("sessionManager.kubernetes.distributedDrivers", [DRIVER, {**DRIVER, "cluster": "b"}])), "is that of another cluster"),
    (".", merged(DISTRIBUTED, at("sessionManager.kubernetes.distributedDrivers", [{**DRIVER, "serviceAccount": "berth-workers"}])), "is an account without rights"),
    (".", merged(DISTRIBUTED, at("sessionManager.kubernetes.networkPolicy.apiServer", [])), "sessionManager.kubernetes.networkPolicy.apiServer: required"),
    (".", merged(DISTRIBUTED, at("sessionManager.kubernetes.distributedDrivers", [{**DRIVER, "images": ["a' || true || 'b"]}])), "/distributedDrivers/0/images/0'"),
    (".", merged(DISTRIBUTED, at("sessionManager.kubernetes.distributedDrivers", [{**DRIVER, "images": []}])), "/distributedDrivers/0/images'"),
    (".", merged(DISTRIBUTED, at("sessionManager.kubernetes.distributedDrivers", [{**DRIVER, "maxMemory": "much"}])), "/distributedDrivers/0/maxMemory'"),
    (".", merged(KUBERNETES, at("sessionManager.serviceAccount.create", False)), "sessionManager.serviceAccount: set name"),
    (".", merged(TOKENS, at("sparkProxy.serviceAccount.create", False)), "sparkProxy.serviceAccount: set name"),
    ("ingress.enabled", True, "ingress.host: required"),
    (".", {"ingress": {"enabled": True, "host": "berth.example.org"}}, "endpoint.host: required with ingress"),
    ("grpcRoute.enabled", True, "grpcRoute.parentRefs: name the Gateway"),
    ("tlsRoute.enabled", True, "tlsRoute.hostnames: set the host of at least one service"),
    (".", merged(PLAINTEXT, {"tlsRoute": {"enabled": True, "parentRefs": GATEWAY, "hostnames": {"sparkProxy": ["a.b"]}}}), "needs tls.public.enabled"),
    ("sparkProxy.autoscaling", {"enabled": True, "minReplicas": 5, "maxReplicas": 2}, "minReplicas must not exceed maxReplicas"),
    ("sparkProxy.autoscaling", {"enabled": True, "targetCPUUtilizationPercentage": 0}, "set targetCPUUtilizationPercentage or openCalls.target"),
    (".", {"sparkProxy": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}}, "sparkProxy.resources.requests.cpu: required"),
    ("console.cookieKeys.existingSecret", "", "console.cookieKeys: set job.enabled=true, which creates the key, or existingSecret"),
    ("console.cookieKeys.job.enabled", True, "console.cookieKeys: existingSecret and job.enabled exclude each other"),
    ("console.cookieKeys.job.image", {}, "'image' not allowed"),
    ("console.url", "berth.example.org", "/console/url'"),
    ("console.url", "https://berth.example.org/a?b", "/console/url'"),
    ("console.url", "http://berth.example.org", "console.url: must begin with https://, or set insecureUrl=true"),
    ("console", {"url": "http://localhost:8080", "insecureUrl": True}, "console.insecureUrl: has no effect"),
    ("console.config.sign_in", {"providers": [PROVIDER]}, "console.url: required with console.config.sign_in.providers"),
    (".", merged(CONSOLE_OIDC, at("networkPolicy.egress.console", [])), "networkPolicy.egress.console: required with identity providers"),
    ("telemetry.otlpEndpoint", "http://otel:4317", "networkPolicy.egress.console: required"),
    ("console.ingress.enabled", True, "console.url: required with console.ingress and console.httpRoute"),
    ("console", {"url": "https://a.b", "ingress": {"enabled": True}}, "console.config.limits: set trusted_proxies"),
    ("console.ingress.host", "a", "'host' not allowed"),
    ("console", {"url": "https://a.b", "httpRoute": {"enabled": True}}, "console.httpRoute.parentRefs: name the Gateway"),
    ("console.autoscaling", {"enabled": True, "minReplicas": 9, "maxReplicas": 2}, "console.autoscaling: minReplicas must not exceed maxReplicas"),
    (".", {"console": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}}, "console.resources.requests.cpu: required"),
    ("helmTest.enabled", True, "helmTest.existingSecret: required"),
    # keys of the services that the chart writes
    ("sessionManager.config.listen", {"public": {"address": "0.0.0.0:1"}}, "sessionManager.config.listen: set tls and bindAddress instead"),
    ("sessionManager.config.store.url", "redis://x", "sessionManager.config.store.url: set redis instead"),
    ("sessionManager.config.store.password", "x", "sessionManager.config.store.password: set redis.existingSecret instead"),
    ("sessionManager.config.drain", "1h", "sessionManager.config.drain: set sessionManager.drainSeconds instead"),
    ("sessionManager.config.compute.kubernetes", {}, "sessionManager.config.compute.kubernetes: set sessionManager.kubernetes instead"),
    ("tokenIssuer.config.keys.signing", "x", "tokenIssuer.config.keys.signing: set signingKeys instead"),
    ("tokenIssuer.config.public", {}, "tokenIssuer.config.public: set endpoint instead"),
    ("sparkProxy.config.drain.timeout", "1h", "sparkProxy.config.drain: set sparkProxy.drainSeconds instead"),
    ("sparkProxy.config.listen.tls.mode", "off", "sparkProxy.config.listen.tls: set tls.public instead"),
    ("console.config.manager.uri", "http://x", "console.config.manager.uri: set console.apis instead"),
    ("console.config.sign_in.keys_dir", "/x", "console.config.sign_in.keys_dir: set console.cookieKeys instead"),
    ("console.config.public.url", "https://a.b", "console.config.public: set console.url instead"),
    ("console.config.drain", "1h", "console.config.drain: set console.drainSeconds instead"),
    ("sparkProxy.config.manager.uri", "http://x", "sparkProxy.config.manager.uri: set tls.internal instead"),
]
