package member

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
)

func invitation() Invitation {
	return Invitation{Cluster: ids.New(), Fingerprint: strings.Repeat("0a", 32), Addresses: []string{"10.0.0.1:7443", "[fd00::1]:7443"}, Token: ids.New(), Secret: newSecret()}
}

func TestInvitationRoundTrip(t *testing.T) {
	want := invitation()
	got, err := ParseInvitation(" " + want.String() + "\n")
	if err != nil || got.String() != want.String() || got.Secret != want.Secret {
		t.Fatalf("got %+v, %v", got, err)
	}
	if strings.ContainsAny(want.String(), " \n+/=") {
		t.Errorf("token is not one word: %s", want)
	}
}

func TestInvitationDamage(t *testing.T) {
	good := invitation()
	noAddress, shortPrint, noSecret, badAddress := good, good, good, good
	noAddress.Addresses = nil
	shortPrint.Fingerprint = "0a"
	noSecret.Secret = ""
	badAddress.Addresses = []string{"10.0.0.1"}
	for name, text := range map[string]string{
		"empty": "", "other word": "hello", "cut": good.String()[:40], "foreign characters": good.String() + "!",
		"old prefix": strings.Replace(good.String(), "roseau1", "roseau0", 1), "no address": noAddress.String(),
		"fingerprint": shortPrint.String(), "secret": noSecret.String(), "address": badAddress.String(), "long": tokenPrefix + strings.Repeat("A", maxTokenText),
	} {
		if _, err := ParseInvitation(text); !errors.Is(err, errs.Invalid) || errs.Hint(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzInvitation(f *testing.F) {
	f.Add(invitation().String())
	f.Add("roseau1.e30")
	f.Add("roseau1.")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseInvitation(text)
		if err != nil {
			return
		}
		if again, err := ParseInvitation(v.String()); err != nil || again.String() != v.String() {
			t.Fatalf("%+v does not survive a round trip: %v", v, err)
		}
	})
}

func FuzzJoinRequest(f *testing.F) {
	f.Add(`{"token":"","secret":"s","node":"","csr":"","name":"n1","addresses":{"cluster":["10.0.0.1"]}}`)
	f.Add(`{"colour":1}`)
	f.Add(`{} {}`)
	f.Fuzz(func(t *testing.T, body string) {
		req, err := decodeJoin(strings.NewReader(body))
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		req.check(nil) // must not panic
		req.ips()
	})
}

func TestJoinRequestNamesUnknownField(t *testing.T) {
	_, err := decodeJoin(strings.NewReader(`{"colour":"red"}`))
	if err == nil || !strings.Contains(err.Error(), `"colour"`) {
		t.Errorf("got %v", err)
	}
}

func TestCheckToken(t *testing.T) {
	me, other, at := ids.New(), ids.New(), time.Unix(1e9, 0)
	fresh := model.Token{SecretSHA256: hashSecret("s"), Expires: at.Add(time.Hour)}
	bound, used, taken, witness := fresh, fresh, fresh, fresh
	witness.Witness = true
	bound.Node, taken.Node = me, other
	used.Node, used.Used = me, at
	for _, c := range []struct {
		name   string
		t      model.Token
		secret string
		now    time.Time
		words  string // "" = may join
	}{
		{"fresh", fresh, "s", at, ""},
		{"goes on with its own join", bound, "s", at, ""},
		{"wrong secret", fresh, "S", at, "secret is wrong"},
		{"empty secret", fresh, "", at, "secret is wrong"},
		{"used", used, "s", at, "used already"},
		{"used, wrong secret", used, "x", at, "secret is wrong"}, // tells strangers nothing
		{"bound to another", taken, "s", at, "another machine"},
		{"expired", fresh, "s", at.Add(61 * time.Minute), "expired"},
		{"a witness's", witness, "s", at, "for a witness"},
	} {
		err := checkToken(&c.t, JoinRequest{Secret: c.secret, Node: me}, c.now)
		if c.words == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if !errors.Is(err, errs.Denied) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", c.name, err, c.words)
		}
	}
}

func TestNodeRequest(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	for _, c := range []struct {
		name, addr, words string
	}{
		{"n1", "10.0.0.1", ""}, {"n1", "fd00::1", ""}, {"n1", "127.0.0.9", ""},
		{"N1", "10.0.0.1", "name node"}, {"", "10.0.0.1", "name node"}, {"n1", "", "want one IP address"},
		{"n1", "host", "want one IP address"}, {"n1", "0.0.0.0", "want one IP address"}, {"n1", "10.0.0.2", "not an address of this machine"},
	} {
		r := NodeRequest{Name: c.name, Addresses: map[model.NetworkRole][]string{model.RoleCluster: {c.addr}}}
		err := r.check(own)
		if c.words == "" {
			if err != nil || r.Addresses[model.RoleStorage][0] != c.addr {
				t.Errorf("%s %s: %v, %v", c.name, c.addr, r, err)
			}
		} else if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s %q: %v, want %q", c.name, c.addr, err, c.words)
		}
	}
	none := NodeRequest{Name: "n1", Addresses: map[model.NetworkRole][]string{"lan": {"10.0.0.1"}}}
	if err := none.check(own); !errors.Is(err, errs.Invalid) {
		t.Errorf("no cluster address: %v", err)
	}
}
