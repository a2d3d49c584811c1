package sim

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestZZ(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("ZZ"))
	f, _ := os.Create("/tmp/writer/trace")
	r := Run(Options{Seed: uint64(n), Trace: func(l string) { fmt.Fprintln(f, l) }})
	f.Close()
	fmt.Println(r.Err)
}
