package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The conversation, one JSON document per packet of a SOCK_SEQPACKET socket:
//
//	successor: hello, with the sockets it wants
//	holder:    sockets, the descriptors attached in the same order, or refused
//	successor: takeOver, once it accepts on them
//	holder:    released
//
// Either side that sees the other end, or something else, breaks off.
const (
	protocolVersion = 1
	// maxMessage bytes are all that is read of a packet.
	maxMessage = 4 << 10
	maxSockets = 8
)

// The values of message.Op.
const (
	opHello    = "hello"
	opSockets  = "sockets"
	opRefused  = "refused"
	opTakeOver = "takeOver"
	opReleased = "released"
)

type message struct {
	// Version comes first in each message, so that a later version can say
	// what it does not understand.
	Version int      `json:"fourninesHandover"`
	Op      string   `json:"op"`
	Sockets []Socket `json:"sockets,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func parseMessage(b []byte) (message, error) {
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("not a hand-over message: %w", err)
	}
	if m.Version != protocolVersion {
		return m, fmt.Errorf("the other process speaks version %d of the hand-over protocol, this one version %d; stop it and start anew", m.Version, protocolVersion)
	}
	if len(m.Sockets) > maxSockets {
		return m, fmt.Errorf("%d sockets are more than %d", len(m.Sockets), maxSockets)
	}
	return m, nil
}

func send(c *net.UnixConn, m message, fds ...int) error {
	m.Version = protocolVersion
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(askTimeout)); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

// receive reads one message and the descriptors that came with it, which are
// the caller's to close, also when there is an error. io.EOF is the other
// side's end.
func receive(c *net.UnixConn, limit time.Duration) (message, []int, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return message{}, nil, fmt.Errorf("read message: %w", err)
	}
	b := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*maxSockets))
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
	fds, fdErr := parseRights(oob[:oobn])
	switch {
	case err != nil:
		return message{}, fds, fmt.Errorf("read message: %w", err)
	case n == 0:
		return message{}, fds, io.EOF
	case fdErr != nil:
		return message{}, fds, fdErr
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return message{}, fds, errors.New("read message: longer than allowed")
	}
	m, err := parseMessage(b[:n])
	return m, fds, err
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	control, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read descriptors: %w", err)
	}
	var fds []int
	for i := range control {
		if control[i].Header.Level != unix.SOL_SOCKET || control[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&control[i])
		if err != nil {
			return fds, fmt.Errorf("read descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// peer says who is at the other end, as the kernel saw it when it connected or
// listened.
func peer(c *net.UnixConn) (unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return unix.Ucred{}, fmt.Errorf("ask for the peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return unix.Ucred{}, fmt.Errorf("ask for the peer: %w", err)
	}
	if credErr != nil {
		return unix.Ucred{}, fmt.Errorf("ask for the peer: %w", credErr)
	}
	return *cred, nil
}

func samePeer(cred unix.Ucred) error {
	if uid := os.Geteuid(); int(cred.Uid) != uid {
		return fmt.Errorf("process %d belongs to user %d, this one to user %d", cred.Pid, cred.Uid, uid)
	}
	return nil
}

// maxPath is the longest path that fits into a socket address.
const maxPath = 107

// shortPath calls f with a path of the same file that is short enough for the
// kernel: a long one is reached through a descriptor of its directory.
func shortPath(path string, f func(path string) error) error {
	if len(path) <= maxPath {
		return f(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(path)))
}

func dial(path string) (*net.UnixConn, error) {
	var conn *net.UnixConn
	err := shortPath(path, func(short string) (err error) {
		conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: short, Net: "unixpacket"})
		return err
	})
	return conn, err
}

// nobody tells whether a dial failed because no process holds the path.
func nobody(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// Holder returns the process that holds path, 0 when there is none.
func Holder(path string) (pid int, err error) {
	conn, err := dial(path)
	if nobody(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the holder of %s: %w", path, err)
	}
	defer conn.Close()
	cred, err := peer(conn)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
