package model

import (
	"time"

	"roseau/internal/base/ids"
)

// Token lets one node join once. The secret itself is shown when the token is
// made and kept nowhere.
type Token struct {
	Meta
	SecretSHA256 string    `json:"secret_sha256"`     // hex
	Witness      bool      `json:"witness,omitempty"` // lets a witness join, not a node
	Expires      time.Time `json:"expires"`
	// Node is the node that uses the token, from the moment its join began: it
	// may go on with a join that broke, nobody else may.
	Node ids.ID `json:"node,omitzero"`
	// Used is when the join ended well; zero until then.
	Used time.Time `json:"used,omitzero"`
}
