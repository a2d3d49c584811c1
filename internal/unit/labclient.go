package unit

import (
	"context"
	"net/http"
	"net/url"

	"roseau/internal/driver/ctlsock"
)

// LabClient is the Controller of a lab node: HTTP and JSON on the socket of the
// node's init.
type LabClient struct{ sock *ctlsock.Client }

var (
	_ Controller = (*LabClient)(nil)
	_ Machine    = (*LabClient)(nil)
)

// NewLabClient returns a client of the init that listens on socket. It connects
// at the first call.
func NewLabClient(socket string) *LabClient {
	return &LabClient{ctlsock.New(ctlsock.Client{Socket: socket, Who: "the lab's init"}, true)}
}

// LabRequest is the body of POST /units/{name}/{start,stop,kill}.
type LabRequest struct {
	Signal int `json:"signal,omitempty"` // of kill
}

// Start implements Controller.
func (c *LabClient) Start(ctx context.Context, name Name) error {
	return c.sock.Call(ctx, http.MethodPost, unitPath(name)+"/start", LabRequest{}, nil)
}

// Stop implements Controller.
func (c *LabClient) Stop(ctx context.Context, name Name) error {
	return c.sock.Call(ctx, http.MethodPost, unitPath(name)+"/stop", LabRequest{}, nil)
}

// Kill implements Controller.
func (c *LabClient) Kill(ctx context.Context, name Name, signal int) error {
	return c.sock.Call(ctx, http.MethodPost, unitPath(name)+"/kill", LabRequest{Signal: signal}, nil)
}

// Status implements Controller.
func (c *LabClient) Status(ctx context.Context, name Name) (Status, error) {
	var st Status
	err := c.sock.Call(ctx, http.MethodGet, unitPath(name), nil, &st)
	return st, err
}

// List implements Controller.
func (c *LabClient) List(ctx context.Context) ([]Status, error) {
	var list []Status
	err := c.sock.Call(ctx, http.MethodGet, "/units", nil, &list)
	return list, err
}

// Power implements Machine.
func (c *LabClient) Power(ctx context.Context, reboot bool) error {
	path := "/power/off"
	if reboot {
		path = "/power/reboot"
	}
	return c.sock.Call(ctx, http.MethodPost, path, LabRequest{}, nil)
}

// Close implements Controller.
func (c *LabClient) Close() error {
	c.sock.Close()
	return nil
}

func unitPath(name Name) string { return "/units/" + url.PathEscape(string(name)) }
