// Package secret is the sealed form of the cluster's secrets and what must be
// done to it when nodes come and go: values only, no I/O but the system's
// randomness. Package svc/secret keeps boxes in etcd. The scheme stands in
// docs/design/secrets.md.
package secret

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Format is the version of the sealed form.
const Format = 1

// Limits.
const (
	MaxContentBytes = 64 << 10
	maxBoxBytes     = 256 << 10
	maxReaders      = 256
	keyBytes        = 32
	nonceBytes      = 12
)

// Text is a secret in memory. It prints as "(secret)" in every format, and so
// does its JSON: it cannot get into logs, errors or answers by accident.
type Text []byte

// Hidden is what a Text prints.
const Hidden = "(secret)"

func (Text) String() string { return Hidden }

// GoString hides the text from %#v.
func (Text) GoString() string { return Hidden }

// Format hides the text from every verb of fmt.
func (Text) Format(f fmt.State, _ rune) { io.WriteString(f, Hidden) }

// MarshalJSON hides the text.
func (Text) MarshalJSON() ([]byte, error) { return json.Marshal(Hidden) }

// MarshalText hides the text.
func (Text) MarshalText() ([]byte, error) { return []byte(Hidden), nil }

// ID says which secret it is: a kind and its owner, each 1 to 63 of [a-z0-9-].
type ID struct {
	Kind  string `json:"kind"`
	Owner string `json:"owner"`
}

func (id ID) String() string { return id.Kind + "/" + id.Owner }

// Check refuses what cannot be part of a key.
func (id ID) Check() error {
	for _, p := range []string{id.Kind, id.Owner} {
		if len(p) < 1 || len(p) > 63 || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return errs.New(errs.Invalid, "name secret %q: want KIND/OWNER, each 1 to 63 of a-z, 0-9 and dashes", id)
		}
	}
	return nil
}

// Reader is a node that can open boxes: the key of its certificate.
type Reader struct {
	Node ids.ID
	Key  *ecdh.PublicKey // P-256
}

// KeyHash names a certificate key: SHA-256 of its point, in hexadecimal digits.
func KeyHash(k *ecdh.PublicKey) string {
	sum := sha256.Sum256(k.Bytes())
	return hex.EncodeToString(sum[:])
}

// Wrap is a box's data key for one node.
type Wrap struct {
	Node    ids.ID `json:"node"`
	KeyHash string `json:"key_sha256"` // of the certificate key that opens it
	Sealed  []byte `json:"sealed"`     // HPKE: encapsulated key and ciphertext
}

// Box is a sealed secret.
type Box struct {
	Format  int       `json:"format"`
	ID      ID        `json:"id"`
	Cluster ids.ID    `json:"cluster"`
	Set     time.Time `json:"set"`   // when the content was given
	Sealed  time.Time `json:"since"` // when this data key was drawn
	Wraps   []Wrap    `json:"wraps"` // by node
	Nonce   []byte    `json:"nonce"`
	Content []byte    `json:"content"`
	// Exposed names nodes that could read this content and have left the cluster.
	Exposed []string `json:"exposed,omitempty"`
}

// Seal makes the box of a content for readers, under a data key of its own. At
// least one reader is wanted.
func Seal(cluster ids.ID, id ID, content Text, readers []Reader, now time.Time) (*Box, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	switch {
	case len(content) == 0 || len(content) > MaxContentBytes:
		return nil, errs.New(errs.Invalid, "seal secret %s: it has %d bytes, want 1 to %d", id, len(content), MaxContentBytes)
	case len(readers) == 0 || len(readers) > maxReaders:
		return nil, errs.New(errs.Invalid, "seal secret %s: %d nodes are to read it, want 1 to %d", id, len(readers), maxReaders)
	}
	b := &Box{Format: Format, ID: id, Cluster: cluster, Set: now, Sealed: now, Nonce: make([]byte, nonceBytes)}
	key := make([]byte, keyBytes)
	rand.Read(key)     // never fails since Go 1.24
	rand.Read(b.Nonce) // a key seals one content
	aead, err := gcm(key)
	if err != nil {
		return nil, fmt.Errorf("seal secret %s: %w", id, err)
	}
	b.Content = aead.Seal(nil, b.Nonce, content, b.bind())
	for _, r := range readers {
		if err := b.wrap(key, r); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Open returns the content to the node whose certificate key is given. Denied:
// the box is not for it. Corrupt: it was changed, or is for something else.
func (b *Box) Open(node ids.ID, key *ecdh.PrivateKey) (Text, error) {
	dataKey, err := b.unwrap(node, key)
	if err != nil {
		return nil, err
	}
	aead, err := gcm(dataKey)
	if err != nil {
		return nil, fmt.Errorf("open secret %s: %w", b.ID, err)
	}
	content, err := aead.Open(nil, b.Nonce, b.Content, b.bind())
	if err != nil {
		return nil, errs.New(errs.Corrupt, "open secret %s: its content was changed", b.ID)
	}
	return content, nil
}

// wrapFor adds readers to the box, in place of what they had. node and key are
// those of a reader that it has.
func (b *Box) wrapFor(node ids.ID, key *ecdh.PrivateKey, readers []Reader) (*Box, error) {
	dataKey, err := b.unwrap(node, key)
	if err != nil {
		return nil, err
	}
	c := *b
	c.Wraps = slices.DeleteFunc(slices.Clone(b.Wraps), func(w Wrap) bool {
		return slices.ContainsFunc(readers, func(r Reader) bool { return r.Node == w.Node })
	})
	for _, r := range readers {
		if err := c.wrap(dataKey, r); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

func (b *Box) wrap(key []byte, r Reader) error {
	fail := func(err error) error { return fmt.Errorf("seal secret %s for node %s: %w", b.ID, r.Node, err) }
	pub, err := hpke.NewDHKEMPublicKey(r.Key)
	if err != nil {
		return fail(err)
	}
	sealed, err := hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), b.bindNode(r.Node), key)
	if err != nil {
		return fail(err)
	}
	b.Wraps = append(b.Wraps, Wrap{Node: r.Node, KeyHash: KeyHash(r.Key), Sealed: sealed})
	slices.SortFunc(b.Wraps, func(x, y Wrap) int { return x.Node.Compare(y.Node) })
	return nil
}

func (b *Box) unwrap(node ids.ID, key *ecdh.PrivateKey) ([]byte, error) {
	i := slices.IndexFunc(b.Wraps, func(w Wrap) bool { return w.Node == node })
	if i < 0 {
		return nil, errs.New(errs.Denied, "open secret %s: it is not sealed for node %s", b.ID, node).
			WithHint("another node of the cluster adds it within seconds, if it is one of them: `roseau secret list`")
	}
	priv, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("open secret %s: %w", b.ID, err)
	}
	dataKey, err := hpke.Open(priv, hpke.HKDFSHA256(), hpke.AES256GCM(), b.bindNode(node), b.Wraps[i].Sealed)
	if err != nil || len(dataKey) != keyBytes {
		return nil, errs.New(errs.Corrupt, "open secret %s: its key for node %s was changed, or is for another certificate", b.ID, node)
	}
	return dataKey, nil
}

// bind is what the content belongs to.
func (b *Box) bind() []byte {
	return fmt.Appendf(nil, "roseau secret %d\x00%s\x00%s\x00%s", b.Format, b.Cluster, b.ID.Kind, b.ID.Owner)
}

func (b *Box) bindNode(node ids.ID) []byte { return fmt.Appendf(b.bind(), "\x00%s", node) }

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Decode reads a box of etcd and refuses what cannot be one.
func Decode(data []byte) (*Box, error) {
	bad := func(format string, args ...any) (*Box, error) {
		return nil, errs.New(errs.Corrupt, "decode secret: %s", fmt.Sprintf(format, args...))
	}
	if len(data) > maxBoxBytes {
		return bad("%d bytes, more than %d", len(data), maxBoxBytes)
	}
	b := new(Box)
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(b); err != nil {
		return bad("%v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("more than one value")
	}
	switch {
	case b.Format != Format:
		return bad("format %d: this version knows %d", b.Format, Format)
	case b.ID.Check() != nil:
		return bad("name %q", b.ID)
	case len(b.Nonce) != nonceBytes:
		return bad("nonce of %d bytes", len(b.Nonce))
	case len(b.Content) == 0 || len(b.Content) > MaxContentBytes+32:
		return bad("content of %d bytes", len(b.Content))
	case len(b.Wraps) == 0 || len(b.Wraps) > maxReaders:
		return bad("%d wraps", len(b.Wraps))
	}
	for i, w := range b.Wraps {
		if i > 0 && b.Wraps[i-1].Node.Compare(w.Node) >= 0 {
			return bad("wraps are not in order")
		}
	}
	return b, nil
}
