package transport

// Held returns the number of bytes of messages that s holds.
func Held(s *Server) int64 { return s.shared.held.Load() }

// Waiting returns the number of calls with a goroutine of their own.
func Waiting(s *Server) int { return len(s.shared.waiting) }

// Places returns the number of places that calls with a goroutine of their own have taken.
func Places(s *Server) int {
	n := len(s.shared.waiting) + len(s.shared.others) + len(s.shared.limitedOthers)
	for _, places := range s.shared.streaming {
		n += len(places)
	}
	return n
}
