package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// newEtcdCommand is an etcd of one member that keeps its data only as long as a test needs them.
func newEtcdCommand() *cobra.Command {
	var directory, client, peer string
	command := &cobra.Command{
		Use:           "etcd",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			return serveEtcd(directory, client, peer)
		},
	}
	flags := command.Flags()
	flags.StringVar(&directory, "data-dir", "", "where the data are")
	flags.StringVar(&client, "client-url", "http://127.0.0.1:2379", "where the API server asks")
	flags.StringVar(&peer, "peer-url", "http://127.0.0.1:2380", "where other members would ask")
	return command
}

func serveEtcd(directory, client, peer string) error {
	clients, err := url.Parse(client)
	if err != nil {
		return fmt.Errorf("client URL: %w", err)
	}
	peers, err := url.Parse(peer)
	if err != nil {
		return fmt.Errorf("peer URL: %w", err)
	}
	config := embed.NewConfig()
	config.Dir = directory
	config.ListenClientUrls = []url.URL{*clients}
	config.AdvertiseClientUrls = []url.URL{*clients}
	config.ListenPeerUrls = []url.URL{*peers}
	config.AdvertisePeerUrls = []url.URL{*peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// A machine that stops takes the cluster with it: nothing has to survive on the disk.
	config.UnsafeNoFsync = true
	// Warnings are about how long requests take, on a machine that does much else.
	config.LogLevel = "error"

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer etcd.Close()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	select {
	case <-signals:
		return nil
	case err := <-etcd.Err():
		return fmt.Errorf("etcd: %w", err)
	}
}
