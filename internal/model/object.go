package model

import (
	"roseau/internal/base/errs"
)

// Object is what the store keeps: a pointer to a struct that embeds Meta.
type Object[T any] interface {
	*T
	// Kind names the kind; it does not look at the receiver, which may be nil.
	Kind() Kind
	// Head returns the object's own Meta.
	Head() *Meta
}

// Head returns m, so that every type that embeds Meta is an Object.
func (m *Meta) Head() *Meta { return m }

// Kind returns KindNode.
func (*Node) Kind() Kind { return KindNode }

// Kind returns KindDisk.
func (*Disk) Kind() Kind { return KindDisk }

// Kind returns KindPool.
func (*Pool) Kind() Kind { return KindPool }

// Kind returns KindVolume.
func (*Volume) Kind() Kind { return KindVolume }

// Kind returns KindImage.
func (*Image) Kind() Kind { return KindImage }

// Kind returns KindVM.
func (*VM) Kind() Kind { return KindVM }

// Kind returns KindNetwork.
func (*Network) Kind() Kind { return KindNetwork }

// Kind returns KindTask.
func (*Task) Kind() Kind { return KindTask }

// Kind returns KindToken.
func (*Token) Kind() Kind { return KindToken }

// Kind returns KindWitness.
func (*Witness) Kind() Kind { return KindWitness }

// Singular returns the noun of one object of the kind, as the CLI and errors
// use it: "vm", "volume".
func (k Kind) Singular() string {
	if k == KindWitness {
		return "witness"
	}
	if n := len(k); n > 1 && k[n-1] == 's' {
		return string(k[:n-1])
	}
	return string(k)
}

// CheckName refuses names that are not 1 to 63 of [a-z0-9-] without a dash at
// either end. A name that reads as an id is refused too: commands take either.
func CheckName(kind Kind, name string) error {
	ok := len(name) >= 1 && len(name) <= 63 && name[0] != '-' && name[len(name)-1] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	if !ok {
		return errs.New(errs.Invalid, "name %s %q: want 1 to 63 of a-z, 0-9 and dashes, no dash at either end", kind.Singular(), name)
	}
	if len(name) == 36 && name[8] == '-' && name[13] == '-' && name[18] == '-' && name[23] == '-' {
		return errs.New(errs.Invalid, "name %s %q: looks like an id", kind.Singular(), name)
	}
	return nil
}
