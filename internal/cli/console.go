package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"roseau/internal/base/errs"
)

// escapeKey ends a console: Ctrl-], as in telnet.
const escapeKey = 0x1d

func newVMConsoleCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "console VM", Short: "Attach to the serial console (Ctrl-] leaves)", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.console(cmd, "vm "+args[0], vmPath(args[0]), vmPath(args[0])+"/console")
	}}
}

// console connects the terminal with the websocket at path. Asking for the
// object first finds an address that answers, and says plainly that there is no
// such thing.
func (a *app) console(cmd *cobra.Command, what, object, path string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var ignore any
	if err := c.Get(cmd.Context(), object, &ignore); err != nil {
		return err
	}
	hc, base := c.HTTP()
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, base+path, &websocket.DialOptions{HTTPClient: hc})
	if err != nil {
		return consoleError(what, resp, err)
	}
	conn := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	defer conn.Close()
	restore, err := rawTerminal(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer restore()
	done := make(chan error, 2)
	go func() { _, err := io.Copy(cmd.OutOrStdout(), conn); done <- err }()
	go func() { done <- copyKeys(conn, cmd.InOrStdin()) }()
	select {
	case <-ctx.Done():
	case <-done:
	}
	return nil
}

// consoleError is the node's own words if it refused, else the way's failure.
func consoleError(what string, resp *http.Response, err error) error {
	if resp != nil && resp.Body != nil {
		var p struct{ Detail, Kind, Hint string }
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if json.Unmarshal(data, &p) == nil && p.Detail != "" {
			if kind := errs.ByName(p.Kind); kind != nil {
				return errs.New(kind, "%s", p.Detail).WithHint("%s", p.Hint)
			}
			return errors.New(p.Detail)
		}
	}
	return errs.New(errs.Unavailable, "console of %s: %w", what, err)
}

// rawTerminal makes the terminal pass every key, if there is one.
func rawTerminal(w io.Writer) (restore func(), err error) {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	fmt.Fprint(w, "connected, Ctrl-] leaves\r\n")
	return func() {
		term.Restore(fd, old)
		fmt.Fprintln(w)
	}, nil
}

// copyKeys copies until the escape key; the end of input (a pipe) leaves the
// console open for what the guest still says.
func copyKeys(w io.Writer, r io.Reader) error {
	buf := make([]byte, 1024)
	for {
		n, err := r.Read(buf)
		for i := range n {
			if buf[i] == escapeKey {
				w.Write(buf[:i])
				return nil
			}
		}
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			select {} // the other copy ends the command
		}
		if err != nil {
			return err
		}
	}
}
