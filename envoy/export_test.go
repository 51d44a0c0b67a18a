package envoy

// ReadLog reads one message of the access log.
var ReadLog = (*Server).readLog

// StreamLife is how long a stream of the access log lives.
const StreamLife = streamLife
