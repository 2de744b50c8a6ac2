package networkpolicy

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func pod(namespace, name, address string, ports ...corev1.ContainerPort) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Ports: ports}}},
		Status:     corev1.PodStatus{PodIP: address, Phase: corev1.PodRunning},
	}
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}}
}

func policy(t *testing.T, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	return &p
}

// rules returns the rules of one chain, without the drop that ends it; false if
// there is no such chain.
func rules(script, chain string) ([]string, bool) {
	_, rest, found := strings.Cut(script, "chain "+chain+" {")
	body, _, _ := strings.Cut(rest, "}\n  ")
	var rules []string
	for _, line := range strings.Split(body, "\n")[1:] {
		if rule, ok := strings.CutSuffix(strings.TrimSpace(line), " return"); ok {
			rules = append(rules, rule)
		}
	}
	return rules, found && strings.Contains(rest, "counter drop")
}

func TestCompile(t *testing.T) {
	server := pod("a", "server", "10.0.0.1", corev1.ContainerPort{Name: "http", ContainerPort: 8080})
	client := pod("a", "client", "10.0.0.2")
	foreign := pod("b", "client", "10.0.0.3", corev1.ContainerPort{Name: "http", ContainerPort: 9090, Protocol: corev1.ProtocolTCP})
	hostNetwork := pod("a", "server", "10.0.0.4")
	hostNetwork.Spec.HostNetwork = true
	ended := pod("a", "client", "10.0.0.5")
	ended.Status.Phase = corev1.PodFailed
	pods := []*corev1.Pod{foreign, ended, server, hostNetwork, client}
	namespaces := []*corev1.Namespace{namespace("a"), namespace("b")}

	for name, test := range map[string]struct {
		spec    string
		ingress []string // rules of server
		egress  []string
	}{
		"ingress from nobody": {
			spec:    `{podSelector: {}, policyTypes: [Ingress]}`,
			ingress: []string{},
		},
		"ingress from everyone, one port": {
			spec:    `{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]}`,
			ingress: []string{"meta nfproto ipv4 tcp dport 80"},
		},
		"a pod selector means the policy's namespace": {
			spec:    `{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`,
			ingress: []string{"ip saddr { 10.0.0.2 }"},
		},
		"a namespace selector means all its pods": {
			spec:    `{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {name: b}}}]}]}`,
			ingress: []string{"ip saddr { 10.0.0.3 }"},
		},
		"both selectors together": {
			spec:    `{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}]}]}`,
			ingress: []string{"ip saddr { 10.0.0.2, 10.0.0.3 }"},
		},
		"a selector without pods permits nothing": {
			spec:    `{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: none}}}]}]}`,
			ingress: []string{},
		},
		"named port of the selected pod": {
			spec:    `{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{ports: [{port: http}]}]}`,
			ingress: []string{"meta nfproto ipv4 ip daddr 10.0.0.1 tcp dport 8080"},
		},
		"named port of each receiver": {
			spec: `{podSelector: {matchLabels: {app: server}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: http}]}]}`,
			egress: []string{
				"ip daddr { 10.0.0.1, 10.0.0.2, 10.0.0.3 } ip daddr 10.0.0.1 tcp dport 8080",
				"ip daddr { 10.0.0.1, 10.0.0.2, 10.0.0.3 } ip daddr 10.0.0.3 tcp dport 9090",
			},
		},
		"a port name that no pod has": {
			spec:    `{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: none}]}]}`,
			ingress: []string{},
		},
		"block with exceptions, range and protocol": {
			spec: `{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.1.0/24, 10.1.2.0/24]}}],
			  ports: [{port: 1000, endPort: 2000}, {protocol: UDP}, {protocol: UDP, port: 53}]}]}`,
			ingress: []string{},
			egress: []string{
				"ip daddr 10.1.0.0/16 ip daddr != { 10.1.1.0/24, 10.1.2.0/24 } tcp dport 1000-2000",
				"ip daddr 10.1.0.0/16 ip daddr != { 10.1.1.0/24, 10.1.2.0/24 } meta l4proto udp",
				"ip daddr 10.1.0.0/16 ip daddr != { 10.1.1.0/24, 10.1.2.0/24 } udp dport 53",
			},
		},
		"a policy for other pods": {
			spec: `{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			script := Compile(pods, namespaces, []*networkingv1.NetworkPolicy{policy(t, test.spec)})
			for chain, want := range map[string][]string{"ingress_10_0_0_1": test.ingress, "egress_10_0_0_1": test.egress} {
				got, isolated := rules(script, chain)
				if isolated != (want != nil) || !slices.Equal(got, want) {
					t.Errorf("%s: isolated %v, rules %q, expected %q\n%s", chain, isolated, got, want, script)
				}
				if strings.Contains(script, "jump "+chain) != isolated {
					t.Errorf("%s: chain and jump differ\n%s", chain, script)
				}
			}
			for _, address := range []string{"10.0.0.4", "10.0.0.5"} {
				if strings.Contains(script, address) {
					t.Errorf("%s belongs to no pod with policies\n%s", address, script)
				}
			}
		})
	}
}

func TestPoliciesAdd(t *testing.T) {
	server, client := pod("a", "server", "10.0.0.1"), pod("a", "client", "10.0.0.2")
	deny := policy(t, `{podSelector: {}, policyTypes: [Ingress]}`)
	permit := policy(t, `{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}`)
	permit.Name = "q"
	script := Compile([]*corev1.Pod{server, client}, nil, []*networkingv1.NetworkPolicy{permit, deny})
	if got, _ := rules(script, "ingress_10_0_0_1"); !slices.Equal(got, []string{"ip saddr { 10.0.0.1, 10.0.0.2 }"}) {
		t.Errorf("server: %q", got)
	}
	if got, isolated := rules(script, "ingress_10_0_0_2"); !isolated || len(got) != 0 {
		t.Errorf("client: isolated %v, %q", isolated, got)
	}
	reordered := Compile([]*corev1.Pod{client, server}, nil, []*networkingv1.NetworkPolicy{deny, permit})
	if script != reordered {
		t.Errorf("the order of objects changes the script:\n%s\n%s", script, reordered)
	}
}
