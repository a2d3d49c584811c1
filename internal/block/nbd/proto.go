package nbd

// The constants of the protocol (the NBD project's doc/proto.md), big endian on
// the wire.
const (
	magicInit   = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454F5054 // "IHAVEOPT"
	magicOptRep = 0x0003e889045565a9

	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	handshakeFixedNewstyle = 1 << 0
	handshakeNoZeroes      = 1 << 1
)

// Options of the negotiation.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrUnsup    = 1<<31 + 1
	repErrInvalid  = 1<<31 + 3
	repErrUnknown  = 1<<31 + 6
	repErrTooBig   = 1<<31 + 9
)

// Information types of INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	txHasFlags    = 1 << 0
	txReadOnly    = 1 << 1
	txFlush       = 1 << 2
	txFUA         = 1 << 3
	txTrim        = 1 << 5
	txWriteZeroes = 1 << 6
	txDF          = 1 << 7
	txMultiConn   = 1 << 8
	txFastZero    = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Flags of commands.
const (
	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3
	cmdFlagFast   = 1 << 4
)

// Chunks of structured replies.
const (
	chunkDone        = 1 << 0 // flag
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
)

// Error numbers of replies.
const (
	ePerm    = 1
	eIO      = 5
	eNoMem   = 12
	eInval   = 22
	eNoSpace = 28
	eNotSup  = 95
)

// Sizes.
const (
	requestBytes    = 28
	simpleBytes     = 16
	structuredBytes = 20

	// BlockBytes is the smallest unit of every request.
	BlockBytes = 4096
	// PreferredBytes is the announced preferred size of requests.
	PreferredBytes = 64 << 10
	// MaxPayloadBytes bounds a read or a write; longer ones end the connection.
	MaxPayloadBytes = 32 << 20

	maxOptionBytes = 64 << 10 // of an option that is understood
	skipBytes      = 1 << 20  // of an option that is skipped; more ends the connection

	metaAllocation   = "base:allocation"
	metaAllocationID = 1
	statusHole       = 1
	statusZero       = 2
)
