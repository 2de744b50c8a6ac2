// Package networkpolicy enforces networking.k8s.io/v1 NetworkPolicies on the
// only node of a test cluster, for IPv4.
//
// Every change of pods, namespaces or policies compiles all policies to one
// nftables table and replaces the table in one transaction. The usual enforcers
// need nftables queues or kernel modules, which test machines may not have.
package networkpolicy

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os/exec"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	burstInterval = 20 * time.Millisecond // changes within it are applied together
	retryInterval = time.Second           // after nft refused a table
	applyTimeout  = 10 * time.Second
)

// Run enforces policies until ctx ends. args are the flags of the command line.
func Run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("network-policy-enforcer", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	state, err := watch(ctx, client)
	if err != nil {
		return err
	}
	return state.enforce(ctx)
}

// clusterState is a local copy of what the rules depend on.
type clusterState struct {
	informers informers.SharedInformerFactory
	changed   chan struct{} // holds one value while a change is not yet applied
}

func watch(ctx context.Context, client kubernetes.Interface) (*clusterState, error) {
	state := &clusterState{
		informers: informers.NewSharedInformerFactory(client, 0),
		changed:   make(chan struct{}, 1),
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { state.markChanged() },
		UpdateFunc: func(any, any) { state.markChanged() },
		DeleteFunc: func(any) { state.markChanged() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		state.informers.Core().V1().Pods().Informer(),
		state.informers.Core().V1().Namespaces().Informer(),
		state.informers.Networking().V1().NetworkPolicies().Informer(),
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, err
		}
	}
	state.informers.Start(ctx.Done())
	for kind, synced := range state.informers.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return nil, fmt.Errorf("reading %v was interrupted", kind)
		}
	}
	state.markChanged()
	return state, nil
}

func (s *clusterState) markChanged() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *clusterState) enforce(ctx context.Context) error {
	applied := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		}
		time.Sleep(burstInterval)
		table, err := s.table()
		if err != nil {
			return err
		}
		if table == applied {
			continue
		}
		if err := apply(ctx, table); err != nil {
			log.Printf("applying network policies failed: %v\n%s", err, table)
			time.Sleep(retryInterval)
			s.markChanged()
			continue
		}
		applied = table
		log.Printf("network policies applied: %d lines", strings.Count(table, "\n"))
	}
}

func (s *clusterState) table() (string, error) {
	everything := labels.Everything()
	pods, err := s.informers.Core().V1().Pods().Lister().List(everything)
	if err != nil {
		return "", err
	}
	namespaces, err := s.informers.Core().V1().Namespaces().Lister().List(everything)
	if err != nil {
		return "", err
	}
	policies, err := s.informers.Networking().V1().NetworkPolicies().Lister().List(everything)
	if err != nil {
		return "", err
	}
	return Compile(pods, namespaces, policies), nil
}

func apply(ctx context.Context, table string) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	nft := exec.CommandContext(ctx, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(table)
	if output, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, output)
	}
	return nil
}
