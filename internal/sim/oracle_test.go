package sim

import "testing"

func readOne(t *testing.T, o *oracle, block int, v value, legal bool) {
	t.Helper()
	const id = 1 << 40
	o.issueRead(id, block, 1)
	if err := o.ackRead(id, []value{v}); (err == nil) != legal {
		t.Fatalf("read of %d: %v, want legal=%v", v, err, legal)
	}
}

func allLost(int) [][]int { return [][]int{{0, 1}} }

func TestOracleAckedWriteIsTheOnlyValue(t *testing.T) {
	o := newOracle(2)
	readOne(t, o, 0, 0, true)
	o.issueWrite(1, 0, []value{7}, false)
	readOne(t, o, 0, 0, true)
	readOne(t, o, 0, 7, true)
	o.ackWrite(1)
	readOne(t, o, 0, 0, false)
	readOne(t, o, 0, 7, true)
	readOne(t, o, 1, 7, false)
}

func TestOracleUnansweredWriteMayAppearThenStays(t *testing.T) {
	o := newOracle(1)
	o.issueWrite(1, 0, []value{7}, false)
	o.forgetWrites([]uint64{1})
	readOne(t, o, 0, 7, true)
	readOne(t, o, 0, 0, false) // stable reads
}

func TestOraclePowerLossGoesBackToTheFloorOnly(t *testing.T) {
	o := newOracle(1)
	o.issueWrite(1, 0, []value{1}, false)
	o.ackWrite(1)
	o.issueFlush(2)
	o.ackFlush(2)
	o.issueWrite(3, 0, []value{3}, false)
	o.ackWrite(3)
	o.losePower(0, allLost)
	o.issueRead(9, 0, 1)
	if o.ackRead(9, []value{1}) == nil {
		t.Fatal("one member left: the acknowledged write must be there")
	}
	o.losePower(1, allLost)
	o.issueRead(10, 0, 1)
	if o.ackRead(10, []value{0}) == nil {
		t.Fatal("older than the flush")
	}
	readOne(t, o, 0, 1, true)
}

func TestOracleFlushCoversOnlyWhatWasAcked(t *testing.T) {
	o := newOracle(1)
	o.issueWrite(1, 0, []value{1}, false)
	o.issueFlush(2)
	o.ackWrite(1)
	o.ackFlush(2)
	o.losePower(0, allLost)
	o.losePower(1, allLost)
	readOne(t, o, 0, 0, true)
}

// A write that was under way when a flush was issued, and was overwritten before
// the flush was answered, may be what a power cut leaves.
func TestOracleFlushLeavesWhatWasPending(t *testing.T) {
	o := newOracle(1)
	o.issueWrite(1, 0, []value{1}, false)
	o.issueFlush(2)
	o.ackWrite(1)
	o.issueWrite(3, 0, []value{3}, false)
	o.ackWrite(3)
	o.ackFlush(2)
	o.losePower(0, allLost)
	o.losePower(1, allLost)
	readOne(t, o, 0, 1, true)
}

// Three flushes under way at a time, answered in order: the last covers no write
// that was issued after it.
func TestOracleFlushesOverlap(t *testing.T) {
	o := newOracle(1)
	write := func(v value) {
		o.issueWrite(uint64(v), 0, []value{v}, false)
		o.ackWrite(uint64(v))
	}
	write(1)
	o.issueFlush(101)
	write(2)
	o.issueFlush(102)
	o.ackFlush(101)
	write(3)
	write(4)
	o.ackFlush(102)
	o.losePower(0, allLost)
	o.losePower(1, allLost)
	readOne(t, o, 0, 3, true)
	readOne(t, o, 0, 1, false)
}

func TestOracleFUAIsItsOwnFlush(t *testing.T) {
	o := newOracle(1)
	o.issueWrite(1, 0, []value{1}, true)
	o.ackWrite(1)
	o.losePower(0, allLost)
	o.losePower(1, allLost)
	readOne(t, o, 0, 0, false)
	readOne(t, o, 0, 1, true)
}
