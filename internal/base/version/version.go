// Package version names the build.
package version

// version is set by the linker (see Makefile).
var version = "unknown"

// String returns the build's version: a tag, a tag and commits after it, or a
// commit.
func String() string { return version }
