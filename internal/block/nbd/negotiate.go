package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// errAborted ends a connection whose client said goodbye during negotiation.
var errAborted = errors.New("client aborted the negotiation")

// session is what a client negotiated.
type session struct {
	export     *Export
	structured bool
	noZeroes   bool
	// metaFor is the export that base:allocation was agreed on for; nil: none.
	metaFor *Export
}

// status reports whether BLOCK_STATUS may be used.
func (s *session) status() bool { return s.metaFor != nil && s.metaFor == s.export }

// negotiator runs the handshake over a byte stream. It writes small messages
// only, so that it needs no batching.
type negotiator struct {
	r       io.Reader
	w       io.Writer
	exports []Export
	s       session
}

// run returns the session, or an error after which the connection is closed.
func (n *negotiator) run() (session, error) {
	var hello [18]byte
	binary.BigEndian.PutUint64(hello[0:], magicInit)
	binary.BigEndian.PutUint64(hello[8:], magicOption)
	binary.BigEndian.PutUint16(hello[16:], handshakeFixedNewstyle|handshakeNoZeroes)
	if _, err := n.w.Write(hello[:]); err != nil {
		return session{}, fmt.Errorf("greet: %w", err)
	}
	var flags [4]byte
	if _, err := io.ReadFull(n.r, flags[:]); err != nil {
		return session{}, fmt.Errorf("read client flags: %w", err)
	}
	f := binary.BigEndian.Uint32(flags[:])
	if f&handshakeFixedNewstyle == 0 || f&^(handshakeFixedNewstyle|handshakeNoZeroes) != 0 {
		return session{}, fmt.Errorf("read client flags: %#x is not fixed newstyle", f)
	}
	n.s.noZeroes = f&handshakeNoZeroes != 0
	for {
		done, err := n.option()
		if err != nil || done {
			return n.s, err
		}
	}
}

// option handles one option; done means that transmission begins.
func (n *negotiator) option() (done bool, err error) {
	var head [16]byte
	if _, err := io.ReadFull(n.r, head[:]); err != nil {
		return false, fmt.Errorf("read option: %w", err)
	}
	if m := binary.BigEndian.Uint64(head[:]); m != magicOption {
		return false, fmt.Errorf("read option: magic %#x", m)
	}
	opt := binary.BigEndian.Uint32(head[8:])
	length := binary.BigEndian.Uint32(head[12:])
	if length > maxOptionBytes {
		if length > skipBytes || opt == optExportName {
			return false, fmt.Errorf("read option %d: %d bytes", opt, length)
		}
		if _, err := io.CopyN(io.Discard, n.r, int64(length)); err != nil {
			return false, fmt.Errorf("read option %d: %w", opt, err)
		}
		return false, n.reply(opt, repErrTooBig, []byte("the option is too long"))
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(n.r, data); err != nil {
		return false, fmt.Errorf("read option %d: %w", opt, err)
	}
	switch opt {
	case optExportName:
		return n.exportName(string(data))
	case optAbort:
		n.reply(opt, repAck, nil) // the client may be gone already
		return false, errAborted
	case optList:
		return false, n.list(data)
	case optInfo, optGo:
		return n.info(opt, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, n.invalid(opt)
		}
		n.s.structured = true
		return false, n.reply(opt, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return false, n.metaContext(opt, data)
	}
	return false, n.reply(opt, repErrUnsup, nil)
}

func (n *negotiator) reply(opt, typ uint32, data []byte) error {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint64(b[0:], magicOptRep)
	binary.BigEndian.PutUint32(b[8:], opt)
	binary.BigEndian.PutUint32(b[12:], typ)
	binary.BigEndian.PutUint32(b[16:], uint32(len(data)))
	if _, err := n.w.Write(append(b, data...)); err != nil {
		return fmt.Errorf("answer option %d: %w", opt, err)
	}
	return nil
}

func (n *negotiator) invalid(opt uint32) error {
	return n.reply(opt, repErrInvalid, []byte("the option is malformed"))
}

// find returns the export of that name; the empty name is the first.
func (n *negotiator) find(name string) *Export {
	for i := range n.exports {
		if n.exports[i].Name == name || name == "" {
			return &n.exports[i]
		}
	}
	return nil
}

func (n *negotiator) exportName(name string) (bool, error) {
	e := n.find(name)
	if e == nil { // this option has no way to say no
		return false, fmt.Errorf("choose export %q: no such export", name)
	}
	n.s.export = e
	var b [134]byte
	binary.BigEndian.PutUint64(b[0:], uint64(e.Backend.SizeBytes()))
	binary.BigEndian.PutUint16(b[8:], n.txFlags(e))
	msg := b[:]
	if n.s.noZeroes {
		msg = b[:10]
	}
	if _, err := n.w.Write(msg); err != nil {
		return false, fmt.Errorf("answer export name: %w", err)
	}
	return true, nil
}

// txFlags are the transmission flags of e in this session. DF may be announced
// only with structured replies.
func (n *negotiator) txFlags(e *Export) uint16 {
	f := uint16(txHasFlags | txFlush | txFUA | txTrim | txWriteZeroes | txFastZero | txMultiConn)
	if n.s.structured {
		f |= txDF
	}
	if e.Backend.ReadOnly() {
		f |= txReadOnly
	}
	return f
}

func (n *negotiator) list(data []byte) error {
	if len(data) != 0 {
		return n.invalid(optList)
	}
	for _, e := range n.exports {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		if err := n.reply(optList, repServer, append(b, e.Name...)); err != nil {
			return err
		}
	}
	return n.reply(optList, repAck, nil)
}

// takeString reads a length of 32 bits and as many bytes.
func takeString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	l := binary.BigEndian.Uint32(b)
	if uint64(l) > uint64(len(b)-4) {
		return "", nil, false
	}
	return string(b[4 : 4+l]), b[4+l:], true
}

func (n *negotiator) info(opt uint32, data []byte) (done bool, err error) {
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return false, n.invalid(opt)
	}
	e := n.find(name)
	if e == nil {
		return false, n.reply(opt, repErrUnknown, fmt.Appendf(nil, "there is no export %q", name))
	}
	// The block sizes are sent whether asked for or not: a request below them
	// is refused, so a client had better know.
	answers := [][]byte{infoExportBody(e, n.txFlags(e)), infoBlockSizeBody()}
	for r := rest[2:]; len(r) > 0; r = r[2:] {
		switch binary.BigEndian.Uint16(r) {
		case infoName:
			answers = append(answers, append([]byte{0, infoName}, e.Name...))
		case infoDescription:
			if e.Description != "" {
				answers = append(answers, append([]byte{0, infoDescription}, e.Description...))
			}
		}
	}
	for _, a := range answers {
		if err := n.reply(opt, repInfo, a); err != nil {
			return false, err
		}
	}
	if opt == optGo {
		n.s.export = e
	}
	return opt == optGo, n.reply(opt, repAck, nil)
}

func infoExportBody(e *Export, flags uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Backend.SizeBytes()))
	return binary.BigEndian.AppendUint16(b, flags)
}

func infoBlockSizeBody() []byte {
	b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	b = binary.BigEndian.AppendUint32(b, BlockBytes)
	b = binary.BigEndian.AppendUint32(b, PreferredBytes)
	return binary.BigEndian.AppendUint32(b, MaxPayloadBytes)
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT. base:allocation is
// the only context.
func (n *negotiator) metaContext(opt uint32, data []byte) error {
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 4 || !n.s.structured {
		return n.invalid(opt)
	}
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	match := opt == optListMetaContext && count == 0
	for range count {
		var q string
		if q, rest, ok = takeString(rest); !ok {
			return n.invalid(opt)
		}
		if !strings.Contains(q, ":") {
			return n.invalid(opt)
		}
		match = match || q == metaAllocation || opt == optListMetaContext && q == "base:"
	}
	if len(rest) != 0 {
		return n.invalid(opt)
	}
	e := n.find(name)
	if e == nil {
		return n.reply(opt, repErrUnknown, fmt.Appendf(nil, "there is no export %q", name))
	}
	if opt == optSetMetaContext { // a new SET replaces what an older one agreed on
		n.s.metaFor = nil
		if match {
			n.s.metaFor = e
		}
	}
	if match {
		b := binary.BigEndian.AppendUint32(nil, metaAllocationID)
		if err := n.reply(opt, repMetaContext, append(b, metaAllocation...)); err != nil {
			return err
		}
	}
	return n.reply(opt, repAck, nil)
}
