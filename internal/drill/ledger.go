package drill

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
)

// logEntry is what a slot of the guest's log region holds.
type logEntry struct {
	seq  uint64
	boot string
}

// readLog parses the guest's answer to GET /log. Slots with a broken block are
// absent, and named in bad.
func readLog(text string) (entries map[uint32]logEntry, bad []string, err error) {
	entries = map[uint32]logEntry{}
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) == 1 && f[0] == "end" {
			return entries, bad, nil
		}
		if len(f) == 3 && f[1] != "error" {
			slot, err := strconv.ParseUint(f[0], 10, 32)
			seq, err2 := strconv.ParseUint(f[1], 10, 64)
			if err == nil && err2 == nil {
				entries[uint32(slot)] = logEntry{seq, f[2]}
				continue
			}
		}
		bad = append(bad, sc.Text())
	}
	return nil, bad, errs.New(errs.Unavailable, "read the log region back: the answer broke off")
}

// lostWrites lists the slots that hold an older write than the newest one
// acknowledged there. A slot may hold a newer one.
func lostWrites(onDisk map[uint32]logEntry, newest map[uint32]uint64) (slots []uint32) {
	for slot, seq := range newest {
		if onDisk[slot].seq < seq {
			slots = append(slots, slot)
		}
	}
	return slots
}

// foreignWrites lists the slots that another guest wrote while the one that
// answers, st, ran: it began above every number that stood on the disk, so what
// has such a number is its own. Anything else there means that two epochs wrote,
// or that the memory of an old guest goes on with a newer disk.
func foreignWrites(onDisk map[uint32]logEntry, st probe.Status) (slots []uint32) {
	for slot, e := range onDisk {
		if st.First > 0 && e.seq >= st.First && e.boot != st.Boot {
			slots = append(slots, slot)
		}
	}
	return slots
}

// readBack compares what is on the guest's disk with every acknowledgement that
// the recorder holds, and returns how many acknowledged writes are lost. Writes of
// another guest among its own are an error of kind Fenced.
func (p *probeVM) readBack(ctx context.Context) (acked, lost int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	body, err := p.call(ctx, "GET", "/log")
	if err != nil {
		return 0, 0, fmt.Errorf("read the log region back: %w", err)
	}
	onDisk, bad, err := readLog(string(body))
	if err != nil {
		return 0, 0, err
	}
	for _, line := range bad { // it counts below, if a write there was acknowledged
		p.env.say("on the guest's disk: %s", line)
	}
	newest, count := p.acks.ledger()
	slots := lostWrites(onDisk, newest)
	for _, slot := range slots[:min(5, len(slots))] {
		p.env.say("lost: slot %d holds write %d, write %d was acknowledged", slot, onDisk[slot].seq, newest[slot])
	}
	st, err := p.status(ctx)
	if err != nil {
		return 0, 0, err
	}
	if f := foreignWrites(onDisk, st); len(f) > 0 {
		e := onDisk[f[0]]
		return count, len(slots), errs.New(errs.Fenced, "%d writes of another guest stand among those of boot %s, which began with number %d: slot %d holds %d of boot %s",
			len(f), st.Boot, st.First, f[0], e.seq, e.boot)
	}
	return count, len(slots), nil
}
