package sim

import (
	"testing"

	"github.com/anishathalye/porcupine"
)

// judge asks for an order of the operations on block 0.
func judge(t *testing.T, o *oracle) porcupine.CheckResult {
	t.Helper()
	return porcupine.CheckOperationsTimeout(register, o.history.blocks[0].ops, linearBudget*50)
}

func mustRead(t *testing.T, o *oracle, id uint64, v value) {
	t.Helper()
	o.issueRead(id, 0, 1)
	if err := o.ackRead(id, []value{v}); err != nil {
		t.Fatal(err)
	}
}

// Two reads, one after the other, that both meet a write under way: new, then old.
// Each alone is legal.
func TestHistoryHasOneOrder(t *testing.T) {
	for _, c := range []struct {
		first, second value
		want          porcupine.CheckResult
	}{{1, 2, porcupine.Ok}, {1, 1, porcupine.Ok}, {2, 2, porcupine.Ok}, {2, 1, porcupine.Illegal}} {
		o := newOracle(1)
		o.issueWrite(1, 0, []value{1}, false)
		o.ackWrite(1)
		o.issueWrite(2, 0, []value{2}, false)
		mustRead(t, o, 3, c.first)
		mustRead(t, o, 4, c.second)
		o.forgetWrites([]uint64{2})
		if got := judge(t, o); got != c.want {
			t.Errorf("read %d, then %d: %v, want %v", c.first, c.second, got, c.want)
		}
	}
}

// What a flush covered stays when every copy loses power; what came later may go,
// and what a read then shows stays.
func TestHistoryForgetsWhatIsVolatile(t *testing.T) {
	for _, c := range []struct {
		first, second value
		want          porcupine.CheckResult
	}{{1, 1, porcupine.Ok}, {2, 2, porcupine.Ok}, {1, 2, porcupine.Illegal}, {0, 0, porcupine.Illegal}} {
		o := newOracle(1)
		o.issueWrite(1, 0, []value{1}, false)
		o.ackWrite(1)
		o.issueFlush(2)
		o.ackFlush(2)
		o.issueWrite(3, 0, []value{2}, false)
		o.ackWrite(3)
		o.losePower(0, func(int) [][]int { return [][]int{{0}} })
		for id, v := range []value{c.first, c.second} {
			o.issueRead(uint64(10+id), 0, 1)
			delete(o.reads, uint64(10+id)) // the oracle is not asked
			o.history.read(uint64(10+id), 0, []value{v})
		}
		if got := judge(t, o); got != c.want {
			t.Errorf("read %d, then %d: %v, want %v", c.first, c.second, got, c.want)
		}
	}
}
