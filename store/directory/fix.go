package directory

// Fix is an operation that makes a refused one possible.
type Fix uint8

// The fixes.
const (
	CreatePlan Fix = iota + 1
	CreateAccount
	CreateUser
	CreateKey
	RegenerateKey
	ReleaseSubject // of another user
)

// FixableError is a refusal that another operation makes possible. Its text does not name that
// operation, because a command and a request over HTTP spell it differently.
type FixableError struct {
	error
	Fix  Fix
	Name string // of what the fix creates, or of the user who needs it
}

func (e FixableError) Unwrap() error { return e.error }
