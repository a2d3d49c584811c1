package lab

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/lab/cable"
	"roseau/internal/lab/labclient"
)

// serveSockets hands out sockets made in the lab's namespaces until ctx ends.
func (l *Lab) serveSockets(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		tasks.Add(1)
		go func() {
			defer tasks.Done()
			defer c.Close()
			if err := l.giveSocket(c.(*net.UnixConn)); err != nil {
				l.log.Warn("hand out a socket", "err", err)
			}
		}()
	}
}

func (l *Lab) giveSocket(c *net.UnixConn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	var req labclient.SocketRequest
	if err := json.NewDecoder(c).Decode(&req); err != nil {
		return err
	}
	var answer labclient.SocketAnswer
	f, err := l.makeSocket(req)
	if err != nil {
		answer.Error = err.Error()
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	var oob []byte
	if f != nil {
		defer f.Close()
		oob = unix.UnixRights(int(f.Fd()))
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

func (l *Lab) makeSocket(req labclient.SocketRequest) (*os.File, error) {
	ns, err := l.board.Namespace(req.Namespace)
	if err != nil {
		return nil, err
	}
	return cable.Socket(ns, req.Domain, req.Type, req.Protocol)
}
