package volume

import (
	"slices"
	"testing"

	"roseau/internal/base/ids"
)

// What a node says of its storage process reaches the writer; what cannot be read
// says nothing, for a wrong word would cost the sick-link rule.
func TestNodeHints(t *testing.T) {
	h := nodeHints{alive: map[ids.ID]bool{}, broken: map[ids.ID]bool{}}
	id := ids.New()
	for _, c := range []struct {
		key, value    string
		changed       bool
		alive, broken int
	}{
		{nodePrefix + id.String() + aliveName, "1", true, 1, 0},
		{nodePrefix + id.String() + aliveName, "1", false, 1, 0},
		{nodePrefix + id.String() + "/other", "1", false, 1, 0},
		{reportPrefix + id.String(), `{"storage":true}`, false, 1, 0},
		{reportPrefix + id.String(), `{"storage":false,"why":"dead"}`, true, 1, 1},
		{reportPrefix + id.String(), `{"why":"dead"}`, true, 1, 0},
		{reportPrefix + id.String(), `nonsense`, false, 1, 0},
		{reportPrefix + id.String(), `{"storage":false}`, true, 1, 1},
		{reportPrefix + id.String(), "", true, 1, 0},
		{nodePrefix + id.String() + aliveName, "", true, 0, 0},
		{nodePrefix + "x" + aliveName, "1", false, 0, 0},
	} {
		var value []byte
		if c.value != "" {
			value = []byte(c.value)
		}
		changed := h.set(c.key, value)
		l := h.liveness()
		if changed != c.changed || len(l.Alive) != c.alive || len(l.Broken) != c.broken || c.broken == 1 && !slices.Contains(l.Broken, id) {
			t.Errorf("%s=%s: changed %v, %d alive, %d broken", c.key, c.value, changed, len(l.Alive), len(l.Broken))
		}
	}
}
