package qmp

import (
	"encoding/json"
	"time"

	"roseau/internal/base/errs"
)

// Event is something that QEMU reports by itself.
type Event struct {
	Name string          // "STOP", "RESUME", "SHUTDOWN", "MIGRATION", ...
	Data json.RawMessage // {} or nil if it has none
	Time time.Time       // QEMU's wall clock
}

// Decode reads the event's data into v.
func (e Event) Decode(v any) error {
	if len(e.Data) == 0 {
		return nil
	}
	if err := json.Unmarshal(e.Data, v); err != nil {
		return errs.New(errs.Corrupt, "decode event %s: %w", e.Name, err)
	}
	return nil
}

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

// Error says which command QEMU refused, and its words.
func (e *Error) Error() string { return "run " + e.Command + " in qemu: " + e.Desc }

type kind uint8

const (
	kindGreeting kind = iota + 1
	kindReturn
	kindError
	kindEvent
)

type message struct {
	kind  kind
	id    uint64 // of kindReturn and kindError; 0: none
	ret   json.RawMessage
	err   *Error
	event Event
	qemu  Version
}

// Version is that of the QEMU at the other end.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

// decode reads one line of the protocol.
func decode(line []byte) (message, error) {
	var w struct {
		QMP *struct {
			Version struct {
				QEMU Version `json:"qemu"`
			} `json:"version"`
		} `json:"QMP"`
		ID        json.RawMessage `json:"id"`
		Return    json.RawMessage `json:"return"`
		Error     *Error          `json:"error"`
		Event     string          `json:"event"`
		Data      json.RawMessage `json:"data"`
		Timestamp struct {
			Seconds      int64 `json:"seconds"`
			Microseconds int64 `json:"microseconds"`
		} `json:"timestamp"`
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return message{}, errs.New(errs.Corrupt, "decode qmp line: %w", err)
	}
	m := message{}
	if len(w.ID) > 0 {
		// Only ids of ours are numbers; anything else answers nobody.
		if err := json.Unmarshal(w.ID, &m.id); err != nil {
			m.id = 0
		}
	}
	switch {
	case w.QMP != nil:
		m.kind, m.qemu = kindGreeting, w.QMP.Version.QEMU
	case w.Event != "":
		m.kind = kindEvent
		m.event = Event{Name: w.Event, Data: w.Data,
			Time: time.Unix(w.Timestamp.Seconds, w.Timestamp.Microseconds*1000)}
	case w.Error != nil:
		m.kind, m.err = kindError, w.Error
	case w.Return != nil:
		m.kind, m.ret = kindReturn, w.Return
	default:
		return message{}, errs.New(errs.Corrupt, "decode qmp line: neither greeting, answer nor event")
	}
	return m, nil
}
