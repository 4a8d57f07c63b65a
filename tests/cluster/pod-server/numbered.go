package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
)

// The messages of lb_tests::disruption::message: numbered, named by the server, every byte known
// beforehand.
const (
	messageLength = 64
	nameLength    = 16
	up            = 0
	down          = 1
)

// answerNumbered answers each message of a connection by one of its own, and ends the connection if a
// byte is not the expected one.
func answerNumbered(connection net.Conn) {
	defer connection.Close()
	var nobody, name [nameLength]byte
	if local, ok := connection.LocalAddr().(*net.TCPAddr); ok {
		copy(name[:], local.IP.To16())
	}
	got := make([]byte, messageLength)
	for number := uint64(0); ; number++ {
		// The client judges how a connection ends.
		if _, err := io.ReadFull(connection, got); err != nil {
			return
		}
		flow := binary.BigEndian.Uint32(got)
		if !bytes.Equal(got, message(up, flow, number, nobody)) {
			fmt.Fprintf(os.Stderr, "message %d of flow %d arrived wrong\n", number, flow)
			return
		}
		if _, err := connection.Write(message(down, flow, number, name)); err != nil {
			return
		}
	}
}

func message(direction uint64, flow uint32, number uint64, name [nameLength]byte) []byte {
	text := make([]byte, 0, messageLength+8)
	text = binary.BigEndian.AppendUint32(text, flow)
	text = binary.BigEndian.AppendUint64(text, number)
	text = append(text, name[:]...)
	seed := number ^ uint64(flow)<<32 ^ direction<<63
	for len(text) < messageLength {
		// The mixer of SplitMix64 (Steele et al., OOPSLA 2014).
		seed += 0x9e3779b97f4a7c15
		word := (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
		word = (word ^ word>>27) * 0x94d049bb133111eb
		text = binary.BigEndian.AppendUint64(text, word^word>>31)
	}
	return text[:messageLength]
}
