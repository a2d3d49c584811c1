package secret

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

type node struct {
	id  ids.ID
	key *ecdh.PrivateKey
}

func newNode(t testing.TB) node {
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return node{ids.New(), k}
}

func (n node) member(name string) Member {
	return Member{ID: n.id, Name: name, Key: n.key.PublicKey()}
}

var (
	now    = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	bmcOne = ID{"bmc", "one"}
)

func TestRoundTripAndEveryFlippedBit(t *testing.T) {
	a, stranger, cluster := newNode(t), newNode(t), ids.New()
	b, err := Seal(cluster, bmcOne, Text("hunter2"), Readers([]Member{a.member("a")}), now)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Open(a.id, a.key); err != nil || string(got) != "hunter2" {
		t.Fatalf("open: %q, %v", string(got), err)
	}
	if _, err := b.Open(stranger.id, stranger.key); !errors.Is(err, errs.Denied) {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := b.Open(a.id, stranger.key); !errors.Is(err, errs.Corrupt) {
		t.Errorf("another key under the node's name: %v", err)
	}
	for name, change := range map[string]func(*Box){
		"owner": func(b *Box) { b.ID.Owner = "two" }, "kind": func(b *Box) { b.ID.Kind = "s3" }, "cluster": func(b *Box) { b.Cluster = ids.New() },
	} {
		c := *b
		change(&c)
		if _, err := c.Open(a.id, a.key); !errors.Is(err, errs.Corrupt) {
			t.Errorf("opened with another %s: %v", name, err)
		}
	}
	for name, part := range map[string][]byte{"content": b.Content, "nonce": b.Nonce, "wrap": b.Wraps[0].Sealed} {
		for i := range len(part) * 8 {
			part[i/8] ^= 1 << (i % 8)
			if _, err := b.Open(a.id, a.key); !errors.Is(err, errs.Corrupt) {
				t.Errorf("bit %d of the %s flipped: %v", i, name, err)
			}
			part[i/8] ^= 1 << (i % 8)
		}
	}
}

// A node that left opens what it had, and nothing that was sealed after it; one
// that joined opens it.
func TestNodesComeAndGo(t *testing.T) {
	a, b, c, cluster := newNode(t), newNode(t), newNode(t), ids.New()
	members := []Member{a.member("a"), b.member("b"), {ID: c.id, Name: "c"}}
	box, err := Seal(cluster, bmcOne, Text("one"), Readers(members), now)
	if err != nil {
		t.Fatal(err)
	}
	if s := Plan(box, members); !s.Nothing() {
		t.Errorf("a fresh box wants %+v", s)
	}
	if s := Plan(box, nil); !s.Nothing() {
		t.Errorf("an empty list of nodes led to %+v", s)
	}
	members[2].Key = c.key.PublicKey() // c published its certificate
	s := Plan(box, members)
	if len(s.Add) != 1 || s.Add[0].Node != c.id || len(s.Gone) != 0 {
		t.Fatalf("c came: %+v", s)
	}
	if box, err = box.Apply(s, members, a.id, a.key, nil, now); err != nil {
		t.Fatal(err)
	}
	if got, err := box.Open(c.id, c.key); err != nil || string(got) != "one" {
		t.Fatalf("the node that joined: %q, %v", string(got), err)
	}
	if !Plan(box, members).Nothing() {
		t.Error("not settled after c came")
	}
	old := box
	members[1].Leaving = true
	s = Plan(box, members)
	if len(s.Gone) != 1 || s.Gone[0] != b.id {
		t.Fatalf("b leaves: %+v", s)
	}
	if box, err = box.Apply(s, members, c.id, c.key, map[ids.ID]string{b.id: "b"}, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := box.Open(b.id, b.key); !errors.Is(err, errs.Denied) {
		t.Errorf("the node that left opens the new box: %v", err)
	}
	// Not even with the data key that it knows.
	box2 := *box
	box2.Wraps = old.Wraps
	if _, err := box2.Open(b.id, b.key); !errors.Is(err, errs.Corrupt) {
		t.Errorf("the old data key opens the new box: %v", err)
	}
	if len(box.Exposed) != 1 || box.Exposed[0] != "b" || !box.Set.Equal(now) {
		t.Errorf("exposed to %v, set %v", box.Exposed, box.Set)
	}
	for _, n := range []node{a, c} {
		if got, err := box.Open(n.id, n.key); err != nil || string(got) != "one" {
			t.Errorf("a node that stays: %q, %v", string(got), err)
		}
	}
	// A new certificate of a node is a new reader.
	renewed := node{a.id, newNode(t).key}
	members[0] = renewed.member("a")
	if s := Plan(box, members); len(s.Add) != 1 || len(s.Gone) != 0 {
		t.Errorf("a's new certificate: %+v", s)
	} else if box, err = box.Apply(s, members, c.id, c.key, nil, now); err != nil {
		t.Error(err)
	} else if _, err := box.Open(a.id, renewed.key); err != nil || len(box.Wraps) != 2 {
		t.Errorf("a's new certificate: %d wraps, %v", len(box.Wraps), err)
	}
}

func TestRefusals(t *testing.T) {
	a := newNode(t)
	r := Readers([]Member{a.member("a")})
	for name, err := range map[string]error{
		"no readers": second(Seal(ids.New(), bmcOne, Text("x"), nil, now)),
		"empty":      second(Seal(ids.New(), bmcOne, nil, r, now)),
		"large":      second(Seal(ids.New(), bmcOne, make(Text, MaxContentBytes+1), r, now)),
		"slash":      second(Seal(ids.New(), ID{"bmc", "a/b"}, Text("x"), r, now)),
	} {
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ *Box, err error) error { return err }

func TestTextShowsNothing(t *testing.T) {
	s := Text("hunter2")
	js, err := json.Marshal(map[string]any{"a": s, "b": &s, "c": []Text{s}})
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%s %v %+v %#v %q %x %d %s", s, s, struct{ P Text }{s}, s, s, s, s, js)
	if strings.Contains(out, "hunter2") || strings.Contains(out, "68756e") || strings.Contains(out, "104 117") || strings.Contains(out, "aHVudGVy") {
		t.Errorf("shown: %s", out)
	}
}

func FuzzDecode(f *testing.F) {
	a := newNode(f)
	b, err := Seal(ids.New(), bmcOne, Text("x"), Readers([]Member{a.member("a")}), now)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1}`))
	f.Add([]byte(`{"format":1,"id":{"kind":"bmc","owner":"a"},"wraps":[{}],"nonce":"AAAAAAAAAAAAAAAA","content":"AA=="}`))
	f.Add(append(good, good...))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Decode(data)
		if err != nil {
			if !errors.Is(err, errs.Corrupt) {
				t.Fatalf("no kind: %v", err)
			}
			return
		}
		if _, err := b.Open(a.id, a.key); err == nil && string(data) != string(good) {
			// Only what stands outside the seals may differ: names, times, other wraps.
			if b.ID != bmcOne {
				t.Fatalf("opened as %s", b.ID)
			}
		}
		again, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("decodes, encodes, and does not decode again: %v", err)
		}
	})
}
