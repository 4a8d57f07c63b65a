// Command pod-server is what the pods of the tests run: it says who answers and whom it sees.
//
//	pod-server [serve] [flags]           HTTP, TCP and UDP, see `pod-server serve -h`
//	pod-server get [-n COUNT] URL...     asks for each URL, one connection each
//	pod-server udp [-n COUNT] ADDR TEXT  sends a datagram and prints the answer
//
// Every answer starts with the line (or, for a datagram, the words)
//
//	pod=NAME node=NODE peer=ADDRESS:PORT local=ADDRESS:PORT
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	arguments := os.Args[1:]
	task := "serve"
	if len(arguments) > 0 && !strings.HasPrefix(arguments[0], "-") {
		task, arguments = arguments[0], arguments[1:]
	}
	var err error
	switch task {
	case "serve":
		err = serve(arguments)
	case "get":
		err = get(arguments)
	case "udp":
		err = sendDatagram(arguments)
	default:
		err = fmt.Errorf("unknown task %q: serve, get or udp", task)
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

// serve answers until a signal, and then for the drain time: a pod that ends must still answer
// those who have not heard of it.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	http := flags.String("http", "8080", "ports for HTTP, with commas between")
	tcp := flags.String("tcp", "7000", "ports for the TCP echo")
	udp := flags.String("udp", "7000", "ports for the UDP echo")
	numbered := flags.String("numbered", "7001", "ports for the TCP messages which both sides check")
	drain := flags.Duration("drain", 5*time.Second, "how long to serve after SIGTERM")
	ready := flags.Bool("ready", true, "what /readyz says first")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	server := newServer(*ready)
	failures := make(chan error, 1)
	start := func(ports string, listen func(port string) error) error {
		for port := range strings.SplitSeq(ports, ",") {
			if port == "" {
				continue
			}
			if err := listen(port); err != nil {
				return fmt.Errorf("port %s: %w", port, err)
			}
		}
		return nil
	}
	if err := errors.Join(
		start(*http, func(port string) error { return server.listenHTTP(port, failures) }),
		start(*tcp, func(port string) error { return listen(port, failures, server.echo) }),
		start(*udp, func(port string) error { return server.listenUDP(port, failures) }),
		start(*numbered, func(port string) error { return listen(port, failures, answerNumbered) }),
	); err != nil {
		return err
	}
	signals, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	select {
	case err := <-failures:
		return err
	case <-signals.Done():
	}
	server.terminating.Store(true)
	time.Sleep(*drain)
	return nil
}

// identity is the pod's name and node, as the downward API or the host name tells them.
func identity() string {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		// An empty name shows in every answer; nothing better can be done about it here.
		pod, _ = os.Hostname()
	}
	return fmt.Sprintf("pod=%s node=%s", pod, os.Getenv("NODE_NAME"))
}

// plain is an address with IPv4 written as such, though the socket serves both families.
func plain(address net.Addr) string {
	if address == nil {
		return ""
	}
	host, port, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	if ip := net.ParseIP(host); ip != nil {
		host = ip.String()
	}
	return net.JoinHostPort(host, port)
}
