package envoy

// ReadLog reads one message of the access log.
var ReadLog = (*Server).readLog

// Unread is how much of an answer Envoy takes before it waits for the client.
const Unread = unread

// StreamLife is how long a stream of the access log lives.
const StreamLife = streamLife
