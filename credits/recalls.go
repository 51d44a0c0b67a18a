package credits

// Recalls tells an [Allocator] that other processes may want its unused credits. It is made before
// the Allocator, for the part that hears of recalls. Its zero value tells nothing.
type Recalls chan struct{}

// NewRecalls returns Recalls for one Allocator.
func NewRecalls() Recalls { return make(Recalls, 1) }

// Announce never blocks: an announcement that was not taken yet stands for all. It is safe for
// concurrent use.
func (r Recalls) Announce() {
	select {
	case r <- struct{}{}:
	default:
	}
}
