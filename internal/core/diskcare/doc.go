// Package diskcare decides what is said of a disk: how many blocks went bad
// lately and whether it should be retired (Ledger), whether it is slower than its
// like (Detector), and what its own health report means (Judge). It decides
// nothing that takes a disk out: that is a person's word, or the writer's hard
// limit. The design is docs/design/disk-care.md.
package diskcare
