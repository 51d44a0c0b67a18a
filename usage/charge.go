package usage

// Charge records the amount charged for a request and its user's usage after it. A rejected request
// is not charged.
type Charge struct {
	// ID names the charge to the upstream, and Receipt names it in Envoy's access log. Each is
	// authenticated, and neither can replace the other. Both are empty if nothing was charged.
	ID, Receipt string

	User, Request string // the rate log and its entry for this request; empty: not counted
	Account       string
	Pool          PoolKind // the kind of pool that was charged
	Month         Month
	Cost          int64  // in credits; 0: nothing was charged
	Number        uint64 // sequence number in the process that made the charge

	Rate    Rate
	Credits Credits
}
