// Command roseau is every process of Roseau: node, storage, guard, lab and CLI.
package main

import (
	"os"

	"roseau/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
