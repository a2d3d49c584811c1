package ha

import (
	"slices"
	"strings"
	"testing"
)

// TestCheckAfter: a circle is refused with its members in order.
func TestCheckAfter(t *testing.T) {
	if err := CheckAfter(map[string][]string{"web": {"db", "dns"}, "db": {"dns"}, "dns": nil}); err != nil {
		t.Error(err)
	}
	err := CheckAfter(map[string][]string{"web": {"db"}, "db": {"dns"}, "dns": {"web"}, "mail": {"dns"}})
	if err == nil || !strings.Contains(err.Error(), "db after dns after web after db") {
		t.Error(err)
	}
}

// TestStartOrder: those that are waited for take the rank of those that wait, and
// a circle ends.
func TestStartOrder(t *testing.T) {
	names := func(vms []VM) (out []string) {
		for _, i := range startOrder(vms) {
			out = append(out, vms[i].Name)
		}
		return out
	}
	got := names([]VM{{Name: "batch", HA: "best-effort", Priority: 90}, {Name: "web", Priority: 50, After: []string{"db"}}, {Name: "mail", Priority: 10}, {Name: "db"}, {Name: "a"}})
	if want := []string{"db", "web", "mail", "a", "batch"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := names([]VM{{Name: "x", After: []string{"y"}}, {Name: "y", After: []string{"x"}, Priority: 1}}); len(got) != 2 {
		t.Error(got)
	}
}
