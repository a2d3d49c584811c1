package member

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

const (
	tokenPrefix  = "roseau1."
	secretBytes  = 24
	maxTokenText = 4096
)

// Invitation is what the text of a join token says.
type Invitation struct {
	Cluster     ids.ID   `json:"c"`
	Fingerprint string   `json:"f"` // SHA-256 of the authority's certificate, hexadecimal
	Addresses   []string `json:"a"` // API of voters, "host:port"
	Token       ids.ID   `json:"t"`
	Secret      string   `json:"s"`
	Witness     bool     `json:"w,omitempty"` // for a witness, not for a node
}

// String returns the text of the token: a prefix and base64 without padding, one
// word that a terminal selects as a whole.
func (v Invitation) String() string {
	data, err := json.Marshal(v)
	if err != nil {
		panic("member: encode invitation: " + err.Error()) // strings and ids always encode
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(data)
}

// ParseInvitation reads the text of a token. Every field is checked: it comes
// from a person's clipboard.
func ParseInvitation(text string) (Invitation, error) {
	text = strings.TrimSpace(text)
	bad := func(why string) (Invitation, error) {
		return Invitation{}, errs.New(errs.Invalid, "read join token: %s", why).
			WithHint("copy the whole token: one word that begins with %s, printed by `roseau cluster token`", tokenPrefix)
	}
	if len(text) > maxTokenText {
		return bad("too long")
	}
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return bad("it does not begin with " + tokenPrefix)
	}
	data, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return bad("it is cut off or has foreign characters")
	}
	var v Invitation
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil || dec.More() {
		return bad("it is damaged")
	}
	if fp, err := hex.DecodeString(v.Fingerprint); err != nil || len(fp) != sha256.Size || v.Fingerprint != strings.ToLower(v.Fingerprint) {
		return bad("its fingerprint is damaged")
	}
	if v.Cluster.IsZero() || v.Token.IsZero() || v.Secret == "" || len(v.Addresses) == 0 {
		return bad("a part is missing")
	}
	for _, a := range v.Addresses {
		if _, port, err := net.SplitHostPort(a); err != nil || port == "" {
			return bad("an address in it is damaged")
		}
	}
	return v, nil
}

func newSecret() string {
	b := make([]byte, secretBytes)
	rand.Read(b) // never fails since Go 1.24
	return base64.RawURLEncoding.EncodeToString(b)
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func secretMatches(secret, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(hash)) == 1
}
