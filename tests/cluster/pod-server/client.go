package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// get asks for each URL and prints the answers; every request has a connection of its own.
func get(arguments []string) error {
	flags := flag.NewFlagSet("get", flag.ContinueOnError)
	count := flags.Int("n", 1, "how often")
	timeout := flags.Duration("timeout", 5*time.Second, "for each request")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("get: a URL is needed")
	}
	client := http.Client{
		Timeout:   *timeout,
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	for range *count {
		for _, url := range flags.Args() {
			if err := fetch(&client, url); err != nil {
				return err
			}
		}
	}
	return nil
}

func fetch(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, answer.Status)
	}
	return nil
}

// sendDatagram sends from a new port each time and prints what comes back.
func sendDatagram(arguments []string) error {
	flags := flag.NewFlagSet("udp", flag.ContinueOnError)
	count := flags.Int("n", 1, "how often")
	timeout := flags.Duration("timeout", 5*time.Second, "for each answer")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return errors.New("udp: an address with a port, and a text, are needed")
	}
	for range *count {
		if err := exchange(flags.Arg(0), flags.Arg(1), *timeout); err != nil {
			return err
		}
	}
	return nil
}

func exchange(address, text string, timeout time.Duration) error {
	socket, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer socket.Close()
	if err := socket.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(socket, text); err != nil {
		return err
	}
	answer := make([]byte, 65536)
	size, err := socket.Read(answer)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", answer[:size])
	return nil
}
