package networkpolicy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const tableName = "inet network_policies"

// Compile returns an nft script that replaces the table of all policies.
//
// A pod that a policy selects for a direction gets a chain for it: one rule for
// each permitted peer and port, then a drop. Packets of open connections, of a
// pod to itself and of the node (the kubelet's probes) pass. The same objects
// give the same script in any order.
func Compile(pods []*corev1.Pod, namespaces []*corev1.Namespace, policies []*networkingv1.NetworkPolicy) string {
	c := compiler{namespaceLabels: map[string]labels.Set{}}
	for _, namespace := range namespaces {
		c.namespaceLabels[namespace.Name] = namespace.Labels
	}
	for _, pod := range pods {
		if hasOwnAddress(pod) {
			c.pods = append(c.pods, pod)
		}
	}
	slices.SortFunc(c.pods, func(a, b *corev1.Pod) int { return cmp.Compare(a.Status.PodIP, b.Status.PodIP) })
	c.policies = slices.Clone(policies)
	slices.SortFunc(c.policies, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, pod := range c.pods {
		c.compilePod(pod)
	}
	return fmt.Sprintf(`table %[1]s
delete table %[1]s
table %[1]s {
%[2]s  chain forward {
    type filter hook forward priority filter - 5; policy accept;
    ct state established,related accept
%[3]s  }
  chain input { # packets to the node, such as those to its API server
    type filter hook input priority filter - 5; policy accept;
    ct state established,related accept
%[3]s  }
}
`, tableName, c.chains.String(), c.jumps.String())
}

// hasOwnAddress excludes pods without an address, with the node's address, and
// those that have ended: their address may belong to another pod already.
func hasOwnAddress(pod *corev1.Pod) bool {
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return pod.Status.PodIP != "" && !pod.Spec.HostNetwork && !ended
}

type compiler struct {
	pods            []*corev1.Pod
	namespaceLabels map[string]labels.Set
	policies        []*networkingv1.NetworkPolicy
	chains, jumps   strings.Builder
}

func (c *compiler) compilePod(pod *corev1.Pod) {
	ingress, egress := direction{self: "daddr", peer: "saddr"}, direction{self: "saddr", peer: "daddr"}
	for _, policy := range c.policies {
		if policy.Namespace != pod.Namespace || !selects(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		if slices.Contains(policy.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
			ingress.isolated = true
			for _, rule := range policy.Spec.Ingress {
				for _, peer := range c.peers(policy.Namespace, rule.From) {
					ingress.permit(peer.match("saddr"), rule.Ports, []*corev1.Pod{pod})
				}
			}
		}
		if slices.Contains(policy.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
			egress.isolated = true
			for _, rule := range policy.Spec.Egress {
				for _, peer := range c.peers(policy.Namespace, rule.To) {
					egress.permit(peer.match("daddr"), rule.Ports, peer.pods)
				}
			}
		}
	}
	c.addChain("ingress", pod, &ingress)
	c.addChain("egress", pod, &egress)
}

func (c *compiler) addChain(name string, pod *corev1.Pod, d *direction) {
	if !d.isolated {
		return
	}
	address := pod.Status.PodIP
	chain := name + "_" + strings.ReplaceAll(address, ".", "_")
	fmt.Fprintf(&c.chains, "  chain %s { # %s/%s\n", chain, pod.Namespace, pod.Name)
	for _, rule := range d.rules {
		fmt.Fprintf(&c.chains, "    %s return\n", rule)
	}
	c.chains.WriteString("    counter drop\n  }\n")
	fmt.Fprintf(&c.jumps, "    ip %s %s ip %s != %s jump %s\n", d.self, address, d.peer, address, chain)
}

// direction collects the rules of one pod for packets to it or from it.
type direction struct {
	self, peer string // address fields of the pod and of the other side
	isolated   bool
	rules      []string
}

// permit adds rules for packets that match and have one of the ports, or any if
// there are none. A named port has its number from the pods that receive: then
// the rule names their addresses as well, since each may give it another number.
func (d *direction) permit(match string, ports []networkingv1.NetworkPolicyPort, receivers []*corev1.Pod) {
	if len(ports) == 0 {
		d.rules = append(d.rules, match)
		return
	}
	for _, port := range ports {
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		layer4 := strings.ToLower(string(protocol))
		switch {
		case port.Port == nil:
			d.rules = append(d.rules, match+" meta l4proto "+layer4)
		case port.Port.StrVal != "":
			for _, receiver := range receivers {
				if number, ok := namedPort(receiver, port.Port.StrVal, protocol); ok {
					d.rules = append(d.rules, fmt.Sprintf("%s ip daddr %s %s dport %d", match, receiver.Status.PodIP, layer4, number))
				}
			}
		case port.EndPort != nil:
			d.rules = append(d.rules, fmt.Sprintf("%s %s dport %d-%d", match, layer4, port.Port.IntVal, *port.EndPort))
		default:
			d.rules = append(d.rules, fmt.Sprintf("%s %s dport %d", match, layer4, port.Port.IntVal))
		}
	}
}

func namedPort(pod *corev1.Pod, name string, protocol corev1.Protocol) (int32, bool) {
	for _, container := range pod.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == name && cmp.Or(port.Protocol, corev1.ProtocolTCP) == protocol {
				return port.ContainerPort, true
			}
		}
	}
	return 0, false
}

// peer is one allowed other side: pods, or a block of addresses, or everyone.
type peer struct {
	block *networkingv1.IPBlock // nil: the pods
	all   bool                  // everyone; pods then holds every pod
	pods  []*corev1.Pod
}

// match returns the nft expression for the peer's address in the given field.
func (p peer) match(field string) string {
	switch {
	case p.all:
		return "meta nfproto ipv4"
	case p.block != nil && len(p.block.Except) > 0:
		return fmt.Sprintf("ip %s %s ip %s != { %s }", field, p.block.CIDR, field, strings.Join(p.block.Except, ", "))
	case p.block != nil:
		return fmt.Sprintf("ip %s %s", field, p.block.CIDR)
	}
	addresses := make([]string, len(p.pods))
	for i, pod := range p.pods {
		addresses[i] = pod.Status.PodIP
	}
	return fmt.Sprintf("ip %s { %s }", field, strings.Join(addresses, ", "))
}

// peers resolves the peers of a rule; a selector without pods gives none.
func (c *compiler) peers(namespace string, from []networkingv1.NetworkPolicyPeer) []peer {
	if len(from) == 0 {
		return []peer{{all: true, pods: c.pods}}
	}
	var peers []peer
	for _, entry := range from {
		if entry.IPBlock != nil {
			peers = append(peers, peer{block: entry.IPBlock})
		} else if pods := c.selectPods(namespace, entry); len(pods) > 0 {
			peers = append(peers, peer{pods: pods})
		}
	}
	return peers
}

func (c *compiler) selectPods(namespace string, entry networkingv1.NetworkPolicyPeer) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, pod := range c.pods {
		inNamespace := pod.Namespace == namespace
		if entry.NamespaceSelector != nil {
			namespaceLabels, known := c.namespaceLabels[pod.Namespace]
			inNamespace = known && selects(entry.NamespaceSelector, namespaceLabels)
		}
		if inNamespace && (entry.PodSelector == nil || selects(entry.PodSelector, pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	return pods
}

func selects(selector *metav1.LabelSelector, set map[string]string) bool {
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && parsed.Matches(labels.Set(set))
}
