package unit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"roseau/internal/base/errs"
)

// LabClient is the Controller of a lab node: HTTP and JSON on the socket of the
// node's init.
type LabClient struct {
	http *http.Client
}

var _ Controller = (*LabClient)(nil)

// NewLabClient returns a client of the init that listens on socket. It connects
// at the first call.
func NewLabClient(socket string) *LabClient {
	return &LabClient{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// LabRequest is the body of POST /units/{name}/{start,stop,kill}.
type LabRequest struct {
	Signal int `json:"signal,omitempty"` // of kill
}

// LabError is the body of an answer that is not 2xx.
type LabError struct {
	Kind  string `json:"kind"` // text of an errs kind, or ""
	Error string `json:"error"`
}

// Start implements Controller.
func (c *LabClient) Start(ctx context.Context, name Name) error {
	return c.do(ctx, http.MethodPost, unitPath(name)+"/start", LabRequest{}, nil)
}

// Stop implements Controller.
func (c *LabClient) Stop(ctx context.Context, name Name) error {
	return c.do(ctx, http.MethodPost, unitPath(name)+"/stop", LabRequest{}, nil)
}

// Kill implements Controller.
func (c *LabClient) Kill(ctx context.Context, name Name, signal int) error {
	return c.do(ctx, http.MethodPost, unitPath(name)+"/kill", LabRequest{Signal: signal}, nil)
}

// Status implements Controller.
func (c *LabClient) Status(ctx context.Context, name Name) (Status, error) {
	var st Status
	err := c.do(ctx, http.MethodGet, unitPath(name), nil, &st)
	return st, err
}

// List implements Controller.
func (c *LabClient) List(ctx context.Context) ([]Status, error) {
	var list []Status
	err := c.do(ctx, http.MethodGet, "/units", nil, &list)
	return list, err
}

// Close implements Controller.
func (c *LabClient) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

func unitPath(name Name) string { return "/units/" + url.PathEscape(string(name)) }

func (c *LabClient) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab-init"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return errs.New(errs.Unavailable, "ask the lab's init: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return errs.New(errs.Unavailable, "ask the lab's init: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		var e LabError
		if json.Unmarshal(data, &e) != nil || e.Error == "" {
			return fmt.Errorf("ask the lab's init: %s", resp.Status)
		}
		if kind := errs.ByName(e.Kind); kind != nil {
			return errs.New(kind, "%s", e.Error)
		}
		return fmt.Errorf("%s", e.Error)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}
