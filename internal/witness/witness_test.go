package witness

import "testing"

func TestBehind(t *testing.T) {
	for _, c := range []struct {
		says         string
		own, cluster Count
		want         bool
	}{
		{"the first start", Count{1, 0}, Count{}, false},
		{"a restart", Count{5, 80}, Count{4, 80}, false},
		{"a restart after a tick that did not reach the cluster", Count{5, 81}, Count{4, 80}, false},
		{"a start that did not reach the cluster", Count{6, 80}, Count{4, 80}, false},
		{"put back by one start", Count{4, 80}, Count{4, 80}, true},
		{"put back by many", Count{2, 3}, Count{4, 80}, true},
		{"put back within the same run", Count{5, 79}, Count{4, 80}, true},
	} {
		if got := Behind(c.own, c.cluster); got != c.want {
			t.Errorf("%s: own %v, cluster %v: %v", c.says, c.own, c.cluster, got)
		}
	}
}
