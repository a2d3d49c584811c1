package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"roseau/internal/base/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\n"

// script plays QEMU: answer is called for each command after the negotiation.
func script(t *testing.T, answer func(w net.Conn, cmd string, id uint64)) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fmt.Fprint(server, greeting)
		r := bufio.NewScanner(server)
		for r.Scan() {
			var c struct {
				Execute string
				ID      uint64
			}
			if err := json.Unmarshal(r.Bytes(), &c); err != nil {
				t.Error(err)
			}
			if c.Execute == "qmp_capabilities" {
				fmt.Fprintf(server, `{"return": {}, "id": %d}`+"\n", c.ID)
				continue
			}
			answer(server, c.Execute, c.ID)
		}
	}()
	t.Cleanup(func() { server.Close(); <-done })
	return client
}

func connect(t *testing.T, conn net.Conn) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := New(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRun(t *testing.T) {
	c := connect(t, script(t, func(w net.Conn, cmd string, id uint64) {
		switch cmd {
		case "long":
			fmt.Fprintf(w, `{"return": %q, "id": %d}`+"\n", strings.Repeat("x", 1<<20), id)
		case "bad":
			fmt.Fprintf(w, `{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}`+"\n", id)
		}
	}))
	if v := c.Version(); v.Major != 7 || v.Minor != 2 {
		t.Errorf("version %+v", v)
	}
	var s string
	if err := c.Run(t.Context(), "long", nil, &s); err != nil || len(s) != 1<<20 {
		t.Fatalf("%d bytes, %v", len(s), err)
	}
	var e *Error
	if err := c.Run(t.Context(), "bad", nil, nil); !errors.As(err, &e) || e.Desc != "no such thing" || e.Command != "bad" {
		t.Fatalf("error %v", err)
	}
}

// A monitor that is blocked must hold up neither Fire nor a Run with a context,
// and the late answer must reach nobody else.
func TestBlockedMonitor(t *testing.T) {
	var stuck uint64
	c := connect(t, script(t, func(w net.Conn, cmd string, id uint64) {
		switch cmd {
		case "stop":
			stuck = id
			fmt.Fprint(w, `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`+"\n")
		case "query-status":
			if stuck != 0 {
				fmt.Fprintf(w, `{"return": {}, "id": %d}`+"\n", stuck)
			}
			fmt.Fprintf(w, `{"return": {"status": "paused"}, "id": %d}`+"\n", id)
		}
	}))
	if err := c.Fire("stop", nil); err != nil {
		t.Fatal(err)
	}
	if e := <-c.Events(); e.Name != "STOP" || e.Time.Unix() != 1 {
		t.Fatalf("event %+v", e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Run(ctx, "never", nil, nil); !errors.Is(err, errs.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	var st struct{ Status string }
	if err := c.Run(t.Context(), "query-status", nil, &st); err != nil || st.Status != "paused" {
		t.Fatalf("%v %v", st, err)
	}
}

// Events that nobody reads do not hold up answers, and none is lost.
func TestEventsNeverBlock(t *testing.T) {
	const n = 5000
	c := connect(t, script(t, func(w net.Conn, _ string, id uint64) {
		for i := range n {
			fmt.Fprintf(w, `{"timestamp": {"seconds": 0, "microseconds": 0}, "event": "E", "data": {"i": %d}}`+"\n", i)
		}
		fmt.Fprintf(w, `{"return": {}, "id": %d}`+"\n", id)
	}))
	if err := c.Run(t.Context(), "go", nil, nil); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var d struct{ I int }
		if e := <-c.Events(); e.Decode(&d) != nil || d.I != i {
			t.Fatalf("event %d is %+v", i, d)
		}
	}
}

func TestEndOfConnection(t *testing.T) {
	c := connect(t, script(t, func(w net.Conn, _ string, _ uint64) { w.Close() }))
	if err := c.Run(t.Context(), "quit", nil, nil); !errors.Is(err, errs.Unavailable) {
		t.Fatalf("error %v", err)
	}
	<-c.Done()
	if err := c.Fire("stop", nil); !errors.Is(err, errs.Unavailable) {
		t.Fatalf("error %v", err)
	}
	if _, ok := <-c.Events(); ok {
		t.Fatal("an event after the end")
	}
}

func TestRealQEMU(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64")
	}
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "q")
	cmd := exec.CommandContext(t.Context(), qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
		"-accel", "tcg", "-m", "32", "-S", "-qmp", "unix:"+sock+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var c *Client
	for {
		if c, err = Dial(ctx, sock); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	defer c.Close()
	var schema []json.RawMessage
	if err := c.Run(ctx, "query-qmp-schema", nil, &schema); err != nil || len(schema) < 500 {
		t.Fatalf("%d entries, %v", len(schema), err)
	}
	if err := c.Fire("cont", nil); err != nil {
		t.Fatal(err)
	}
	for e := range c.Events() {
		if e.Name == "RESUME" {
			break
		}
	}
	if err := c.Run(ctx, "quit", nil, nil); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{greeting, `{"return": {}, "id": 7}`, `{"error": {"class":"c","desc":"d"}, "id": 1}`,
		`{"event":"STOP","timestamp":{"seconds":1,"microseconds":2},"data":{"a":1}}`, `{"id":"x","return":null}`, `[]`, `{}`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			if !errors.Is(err, errs.Corrupt) {
				t.Fatalf("error without kind: %v", err)
			}
			return
		}
		if m.kind == kindEvent && m.event.Name == "" || m.kind == kindError && m.err == nil || m.kind == 0 {
			t.Fatalf("half a message: %+v", m)
		}
	})
}
