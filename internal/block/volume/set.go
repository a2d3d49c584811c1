package volume

import (
	"context"

	"roseau/internal/base/errs"
)

var _ Opener = Open

// Open reads the records of the volumes, connects to their storage nodes, and
// owns nothing yet.
func Open(ctx context.Context, cfg Config) (Handle, error) {
	return nil, errs.New(errs.Unavailable, "open volumes: not built yet")
}
