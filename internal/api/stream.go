package api

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
)

// Stream answers with newline-delimited JSON: run writes one value a line until
// it returns. An error after the first line ends the stream as a last line
// {"problem": ...}.
func Stream(run func(ctx context.Context, write func(v any) error) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		req, w := humachi.Unwrap(hc)
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
		rc := http.NewResponseController(w)
		rc.Flush()
		enc := json.NewEncoder(w)
		err := run(req.Context(), func(v any) error {
			if err := enc.Encode(v); err != nil {
				return err
			}
			return rc.Flush()
		})
		if err != nil && req.Context().Err() == nil {
			enc.Encode(StreamEnd{Problem: ProblemOf(err)})
		}
	}}
}

// StreamEnd is the last line of a stream that broke.
type StreamEnd struct {
	Problem *Problem `json:"problem"`
}

// JSON answers with v in one piece, for operations that can also stream.
func JSON(v any) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humachi.Unwrap(hc)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v) // the client may be gone: nobody to tell
	}}
}
