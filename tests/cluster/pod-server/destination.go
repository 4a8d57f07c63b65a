package main

import (
	"encoding/binary"
	"net"
	"syscall"
)

// wantDestination asks the kernel to tell with each datagram to which address it was sent.
func wantDestination(raw syscall.RawConn, network string) error {
	level, option := syscall.IPPROTO_IP, syscall.IP_PKTINFO
	if network == "udp6" {
		level, option = syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO
	}
	var failed error
	if err := raw.Control(func(file uintptr) {
		failed = syscall.SetsockoptInt(int(file), level, option, 1)
	}); err != nil {
		return err
	}
	return failed
}

// destination reads that address, and makes the control message which answers from it.
func destination(control []byte) (address string, source []byte) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return "", nil
	}
	for _, message := range messages {
		data := message.Data
		switch {
		case message.Header.Level == syscall.IPPROTO_IP && message.Header.Type == syscall.IP_PKTINFO &&
			len(data) >= syscall.SizeofInet4Pktinfo:
			// Interface, address to answer from, destination in the header.
			reply := make([]byte, syscall.SizeofInet4Pktinfo)
			copy(reply[4:8], data[8:12])
			return net.IP(data[8:12]).String(),
				controlMessage(syscall.IPPROTO_IP, syscall.IP_PKTINFO, reply)
		case message.Header.Level == syscall.IPPROTO_IPV6 && message.Header.Type == syscall.IPV6_PKTINFO &&
			len(data) >= syscall.SizeofInet6Pktinfo:
			// Address, interface.
			reply := make([]byte, syscall.SizeofInet6Pktinfo)
			copy(reply[:16], data[:16])
			return net.IP(data[:16]).String(),
				controlMessage(syscall.IPPROTO_IPV6, syscall.IPV6_PKTINFO, reply)
		}
	}
	return "", nil
}

func controlMessage(level, kind uint32, data []byte) []byte {
	message := make([]byte, syscall.CmsgSpace(len(data)))
	binary.NativeEndian.PutUint64(message, uint64(syscall.CmsgLen(len(data))))
	binary.NativeEndian.PutUint32(message[8:], level)
	binary.NativeEndian.PutUint32(message[12:], kind)
	copy(message[syscall.CmsgLen(0):], data)
	return message
}
