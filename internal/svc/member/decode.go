package member

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	"roseau/internal/base/errs"
)

// decodeJoin reads a join request from a stranger: unknown fields are refused
// by name.
func decodeJoin(r io.Reader) (JoinRequest, error) {
	var req JoinRequest
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		var te *json.UnmarshalTypeError
		if errors.As(err, &te) {
			return JoinRequest{}, errs.New(errs.Invalid, "read join request: field %q: want %s", te.Field, te.Type)
		}
		return JoinRequest{}, errs.New(errs.Invalid, "read join request: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if dec.More() {
		return JoinRequest{}, errs.New(errs.Invalid, "read join request: more than one value")
	}
	return req, nil
}
