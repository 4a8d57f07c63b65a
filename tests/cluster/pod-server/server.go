package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// server is what all ports share.
type server struct {
	identity    string
	ready       atomic.Bool
	terminating atomic.Bool
	requests    atomic.Uint64
}

func newServer(ready bool) *server {
	it := &server{identity: identity()}
	it.ready.Store(ready)
	return it
}

func (s *server) line(peer, local string) string {
	return fmt.Sprintf("%s peer=%s local=%s\n", s.identity, peer, local)
}

func (s *server) listenHTTP(port string, failures chan<- error) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	web := &http.Server{Handler: s.handler(), ReadHeaderTimeout: time.Minute}
	go func() { failures <- web.Serve(listener) }()
	return nil
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.describe)
	mux.HandleFunc("/hostname", s.hostname)
	mux.HandleFunc("/stream", s.stream)
	mux.HandleFunc("/data", s.data)
	mux.HandleFunc("POST /sum", s.sum)
	mux.HandleFunc("/livez", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/readyz", s.readyz)
	mux.HandleFunc("POST /ready", func(http.ResponseWriter, *http.Request) { s.ready.Store(true) })
	mux.HandleFunc("POST /unready", func(http.ResponseWriter, *http.Request) { s.ready.Store(false) })
	mux.HandleFunc("POST /exit", func(http.ResponseWriter, *http.Request) { os.Exit(0) })
	return mux
}

// describe names the pod and the addresses the connection has here.
func (s *server) describe(answer http.ResponseWriter, request *http.Request) {
	s.requests.Add(1)
	fmt.Fprint(answer, s.line(addresses(request)))
}

func (s *server) hostname(answer http.ResponseWriter, _ *http.Request) {
	name, err := os.Hostname()
	if err != nil {
		http.Error(answer, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(answer, name)
}

func (s *server) readyz(answer http.ResponseWriter, _ *http.Request) {
	if !s.ready.Load() || s.terminating.Load() {
		http.Error(answer, "not ready", http.StatusServiceUnavailable)
	}
}

// stream writes the first line and then numbered ones, `count` of them (0 without end), one every
// `every`.
func (s *server) stream(answer http.ResponseWriter, request *http.Request) {
	count, every, err := pace(request)
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	flusher := http.NewResponseController(answer)
	tick := time.NewTicker(every)
	defer tick.Stop()
	fmt.Fprint(answer, s.line(addresses(request)))
	for number := uint64(1); count == 0 || number <= count; number++ {
		if flusher.Flush() != nil {
			return
		}
		select {
		case <-request.Context().Done():
			return
		case <-tick.C:
		}
		if _, err := fmt.Fprintln(answer, number); err != nil {
			return
		}
	}
}

func pace(request *http.Request) (count uint64, every time.Duration, err error) {
	every = 100 * time.Millisecond
	query := request.URL.Query()
	if text := query.Get("count"); text != "" {
		if count, err = strconv.ParseUint(text, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("count: %w", err)
		}
	}
	if text := query.Get("every"); text != "" {
		if every, err = time.ParseDuration(text); err != nil {
			return 0, 0, fmt.Errorf("every: %w", err)
		}
	}
	if every <= 0 {
		return 0, 0, errors.New("every: must be more than nothing")
	}
	return count, every, nil
}

// data writes `bytes` bytes as fast as they are taken.
func (s *server) data(answer http.ResponseWriter, request *http.Request) {
	size, err := strconv.ParseInt(request.URL.Query().Get("bytes"), 10, 64)
	if err != nil || size < 0 {
		http.Error(answer, "bytes: a number is needed", http.StatusBadRequest)
		return
	}
	answer.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	block := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for size > 0 {
		part := block[:min(size, int64(len(block)))]
		if _, err := answer.Write(part); err != nil {
			return
		}
		size -= int64(len(part))
	}
}

// sum takes a body of any length and says how long it was.
func (s *server) sum(answer http.ResponseWriter, request *http.Request) {
	size, err := io.Copy(io.Discard, request.Body)
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(answer, "%sbytes=%d\n", s.line(addresses(request)), size)
}

func addresses(request *http.Request) (peer, local string) {
	if address, ok := request.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		local = plain(address)
	}
	host, port, err := net.SplitHostPort(request.RemoteAddr)
	if err != nil {
		return request.RemoteAddr, local
	}
	return net.JoinHostPort(host, port), local
}

// listen serves each connection to a port by itself.
func listen(port string, failures chan<- error, serve func(net.Conn)) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				failures <- err
				return
			}
			go serve(connection)
		}
	}()
	return nil
}

// echo greets a connection with the first line and then sends back what comes.
func (s *server) echo(connection net.Conn) {
	defer connection.Close()
	greeting := s.line(plain(connection.RemoteAddr()), plain(connection.LocalAddr()))
	if _, err := io.WriteString(connection, greeting); err != nil {
		return
	}
	// Whichever side ended it, there is nobody left to tell.
	_, _ = io.Copy(connection, connection)
}

// listenUDP answers each datagram with the identity and what it held.
//
// A socket per family, so that the answer leaves from the address the datagram came to.
func (s *server) listenUDP(port string, failures chan<- error) error {
	for _, network := range []string{"udp4", "udp6"} {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			return wantDestination(raw, network)
		}}
		packets, err := config.ListenPacket(context.Background(), network, ":"+port)
		if err != nil {
			return err
		}
		socket, ok := packets.(*net.UDPConn)
		if !ok {
			return fmt.Errorf("%s is no UDP socket", network)
		}
		go func() { failures <- s.answerDatagrams(socket, port) }()
	}
	return nil
}

func (s *server) answerDatagrams(socket *net.UDPConn, port string) error {
	payload := make([]byte, 65536)
	control := make([]byte, 128)
	for {
		size, controls, _, peer, err := socket.ReadMsgUDP(payload, control)
		if err != nil {
			return err
		}
		destination, source := destination(control[:controls])
		local := net.JoinHostPort(destination, port)
		head := fmt.Sprintf("%s peer=%s local=%s ", s.identity, plain(peer), local)
		// An unreachable peer shows as an error of a later call; other peers still count.
		_, _, _ = socket.WriteMsgUDP(append([]byte(head), payload[:size]...), source, peer)
	}
}
