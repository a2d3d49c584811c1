package place

import (
	"fmt"
	"slices"
	"strings"
)

// CPUModel is a named model of QEMU with the flags that it has beyond the one
// before it in Models.
type CPUModel struct {
	Name  string
	Flags []string // as Linux names them in /proc/cpuinfo
}

// Models are the models to choose from, each with all flags of those before it.
// They are QEMU's models without TSX, which microcode takes away, and without
// what depends on a nested hypervisor. Either vendor runs them under KVM.
var Models = []CPUModel{
	{Name: "Nehalem", Flags: []string{"cx16", "lahf_lm", "nx", "popcnt", "sse4_1", "sse4_2", "ssse3"}},
	{Name: "Westmere", Flags: []string{"aes", "pclmulqdq"}},
	{Name: "SandyBridge", Flags: []string{"avx", "rdtscp", "tsc_deadline_timer", "x2apic", "xsave"}},
	{Name: "IvyBridge", Flags: []string{"erms", "f16c", "fsgsbase", "rdrand", "smep"}},
	{Name: "Haswell-noTSX", Flags: []string{"abm", "avx2", "bmi1", "bmi2", "fma", "invpcid", "movbe", "pcid"}},
	{Name: "Broadwell-noTSX", Flags: []string{"3dnowprefetch", "adx", "rdseed", "smap"}},
}

// flagsOf lists all flags of a model; ok is false if Models does not have it.
func flagsOf(model string) (flags []string, ok bool) {
	for _, m := range Models {
		flags = append(flags, m.Flags...)
		if m.Name == model {
			return flags, true
		}
	}
	return nil, false
}

// LacksFor returns why a CPU with these flags (sorted) cannot run a machine of the
// model, or "". A model that is not in Models, or flags that are not known, are not
// judged: QEMU refuses by itself (enforce is its affair).
func LacksFor(model string, have []string) string {
	want, ok := flagsOf(model)
	if !ok || len(have) == 0 {
		return ""
	}
	for _, f := range want {
		if _, found := slices.BinarySearch(have, f); !found {
			return fmt.Sprintf("its CPU lacks %s of the machine's model %s", f, model)
		}
	}
	return ""
}

// Baseline is the common CPU model of the cluster: the newest of Models whose flags
// every node with KVM has. empty if no node has KVM, or one does not have the
// oldest model, or none has reported its flags: then the accelerator's own default
// is used. why says it in one line, naming the node that keeps it from the next
// one.
func Baseline(nodes []Node) (model, why string) {
	var kvm []Node
	for _, n := range nodes {
		if n.KVM && len(n.CPUFlags) > 0 {
			kvm = append(kvm, n)
		}
	}
	slices.SortFunc(kvm, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	if len(kvm) == 0 {
		return "", "no node has KVM: QEMU emulates the same CPU everywhere"
	}
	why = fmt.Sprintf("every node with KVM (%d) has it", len(kvm))
	for _, m := range Models {
		for _, n := range kvm {
			if lack := LacksFor(m.Name, n.CPUFlags); lack != "" {
				return model, strings.Replace(fmt.Sprintf("%s: %s", n.Name, lack), "the machine's model", "the next model", 1)
			}
		}
		model = m.Name
	}
	return model, why
}
