package probe

import "time"

// The second disk of a guest with a database, in bytes: a partition table, a
// read-only root file system with PostgreSQL and fio, room for the data, and a
// partition that fio writes and verifies: passes over and over in its first half,
// and in the second what is written before the faults and verified after them.
const (
	DBRootOffset = 1 << 20
	DBRootBytes  = 255 << 20
	DBDataOffset = DBRootOffset + DBRootBytes
	DBDataBytes  = 384 << 20
	FioOffset    = DBDataOffset + DBDataBytes
	FioBytes     = 32 << 20
	DBDiskBytes  = FioOffset + FioBytes
)

// DBAckPort is where a recorder connects to be told of each committed row.
const DBAckPort = 7001

// DBStatus is the body of GET /db.
type DBStatus struct {
	Ready     bool          `json:"ready"` // the database answers
	Error     string        `json:"error,omitempty"`
	Stage     string        `json:"stage"`                // what it does at present
	Fsck      string        `json:"fsck,omitempty"`       // what e2fsck said at this boot
	FsckFixed bool          `json:"fsck_fixed,omitempty"` // it had more to do than to replay the journal
	Recovered bool          `json:"recovered,omitempty"`  // PostgreSQL went through crash recovery at this boot
	Committed uint64        `json:"committed"`            // last row whose commit was answered
	Longest   time.Duration `json:"longest_ns"`           // longest commit since boot
	Load      bool          `json:"load"`
}

// DBAudit is the body of POST /db/audit, which has amcheck look at the running
// database, stops it cleanly, has the two other checkers look at everything, and
// starts it again.
type DBAudit struct {
	Indexes   int      `json:"indexes"`   // that amcheck compared with their tables
	Checksums string   `json:"checksums"` // last lines of pg_checksums
	Fsck      string   `json:"fsck"`      // of e2fsck -fn
	Problems  []string `json:"problems,omitempty"`
}

// RowSum is the SQL expression of a row's checksum over its columns seq and pad.
const RowSum = "md5(seq::text || pad)"

// FioStatus is the body of GET /fio.
type FioStatus struct {
	Running bool   `json:"running"` // passes are made
	Passes  int    `json:"passes"`  // that verified everything they wrote, since boot
	Error   string `json:"error,omitempty"`
}
