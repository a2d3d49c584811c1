package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/place"
	"roseau/internal/block/wire"
)

// SocketPath returns where the storage process that listens for guards at path
// listens for their questions of this package. It is a socket of its own: what is
// asked here has no order with writes, and needs no version of the protocol there.
func SocketPath(path string) string { return path + ".direct" }

// Kind is what a Request asks for.
type Kind uint8

// The kinds of requests.
const (
	OpenDisk  Kind = iota + 1 // descriptors of the disk, read-only, and of its cells; body: session u64
	AskPlaces                 // body: the map of an extent, see place.Map.Append
)

// Request is one question; requests of a connection are answered in order.
type Request struct {
	Kind   Kind
	Disk   ids.ID
	Volume ids.ID // AskPlaces
	Extent uint64 // AskPlaces
}

// requestMagic opens every request: "RSD1" in memory order. Another layout gets
// another one, and a peer that does not know it closes the connection.
const requestMagic = uint32('R') | uint32('S')<<8 | uint32('D')<<16 | uint32('1')<<24

const (
	requestBytes = 48 // magic u32, kind u8, 3 zero bytes, disk, volume, extent u64
	replyBytes   = 8  // status u16, 2 zero bytes, length of the body u32
)

// ReadRequest reads a request. io.EOF: the guard has closed the connection.
func ReadRequest(r io.Reader) (Request, error) {
	var b [requestBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Request{}, err
	}
	return decodeRequest(&b)
}

func decodeRequest(b *[requestBytes]byte) (q Request, err error) {
	q = Request{Kind: Kind(b[4]), Disk: ids.ID(b[8:24]), Volume: ids.ID(b[24:40]), Extent: binary.LittleEndian.Uint64(b[40:])}
	if binary.LittleEndian.Uint32(b[:]) != requestMagic || q.Kind < OpenDisk || q.Kind > AskPlaces || b[5]|b[6]|b[7] != 0 {
		return q, errs.New(errs.Corrupt, "read question for a disk: other bytes")
	}
	return q, nil
}

func (q *Request) encode(b *[requestBytes]byte) {
	binary.LittleEndian.PutUint32(b[:], requestMagic)
	b[4] = byte(q.Kind)
	copy(b[8:], q.Disk[:])
	copy(b[24:], q.Volume[:])
	binary.LittleEndian.PutUint64(b[40:], q.Extent)
}

// WriteReply answers a request. Files stay the caller's.
func WriteReply(c *net.UnixConn, st wire.Status, body []byte, files ...*os.File) error {
	b := make([]byte, replyBytes, replyBytes+len(body))
	binary.LittleEndian.PutUint16(b, uint16(st))
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)))
	b = append(b, body...)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// Client is a guard's connection. It is for one goroutine at a time, and of no use
// after an error that is not errs.Unavailable.
type Client struct{ c *net.UnixConn }

// questionTime bounds one question.
const questionTime = 3 * time.Second

// Dial connects with the storage process that listens for guards at path.
// NotFound: it does not listen for questions.
func Dial(path string) (*Client, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: SocketPath(path), Net: "unix"})
	if err != nil {
		return nil, errs.New(errs.NotFound, "connect to storage for its disks: %w", err)
	}
	return &Client{c}, nil
}

// Close ends the connection, and a question under way.
func (c *Client) Close() error { return c.c.Close() }

// ask returns the body and the files of an answer. Unavailable: refused.
func (c *Client) ask(q Request, limit int) (body []byte, files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	if err := c.c.SetDeadline(time.Now().Add(questionTime)); err != nil {
		return nil, nil, err
	}
	var b [requestBytes]byte
	q.encode(&b)
	if _, err := c.c.Write(b[:]); err != nil {
		return nil, nil, err
	}
	var head [replyBytes]byte
	oob := make([]byte, unix.CmsgSpace(2*4))
	n, on, _, _, err := c.c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, nil, err
	}
	if files, err = rights(oob[:on]); err != nil {
		return nil, files, err
	}
	if _, err := io.ReadFull(c.c, head[n:]); err != nil {
		return nil, files, err
	}
	size := binary.LittleEndian.Uint32(head[4:])
	if int64(size) > int64(limit) {
		return nil, files, errs.New(errs.Corrupt, "ask storage for a disk: answer of %d bytes", size)
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(c.c, body); err != nil {
		return nil, files, err
	}
	if st := wire.Status(binary.LittleEndian.Uint16(head[:])); st != wire.OK {
		return nil, files, errs.New(errs.Unavailable, "ask storage for disk %s: status %d", q.Disk.Short(), st)
	}
	return body, files, nil
}

func rights(oob []byte) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd) // QEMU must not have it
			files = append(files, os.NewFile(uintptr(fd), "disk"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Disk asks for a disk: its descriptor, its cells, and its session.
func (c *Client) Disk(disk ids.ID) (f *os.File, cells *Cells, session uint64, err error) {
	body, files, err := c.ask(Request{Kind: OpenDisk, Disk: disk}, 8)
	if err != nil {
		return nil, nil, 0, err
	}
	if len(files) != 2 || len(body) != 8 {
		closeAll(files)
		return nil, nil, 0, errs.New(errs.Corrupt, "ask storage for a disk: %d descriptors", len(files))
	}
	if cells, err = ReadCells(files[1]); err != nil {
		closeAll(files)
		return nil, nil, 0, fmt.Errorf("ask storage for a disk: %w", err)
	}
	return files[0], cells, binary.LittleEndian.Uint64(body), nil
}

// Places asks for the map of an extent.
func (c *Client) Places(disk, volume ids.ID, extent uint64) (*place.Map, error) {
	body, files, err := c.ask(Request{Kind: AskPlaces, Disk: disk, Volume: volume, Extent: extent}, place.MaxBytes)
	closeAll(files)
	if err != nil {
		return nil, err
	}
	return place.Decode(body)
}

// Refused reports whether an error is an answer: the connection can go on.
func Refused(err error) bool { return errors.Is(err, errs.Unavailable) }
