package authz

// Problem is the fault of a request that is refused with 400. The zero Problem means none.
type Problem uint8

// The problems.
const (
	NoProblem         Problem = iota
	PathMissing               // there is no path, or it is not UTF-8
	PathRelative              // it does not begin with a slash
	PathTooLong               // longer than maxPath bytes
	PathDotSegment            // a segment is . or ..
	PathEmptySegment          // two slashes in a row
	PathCharacter             // a byte that must be encoded, or is a separator to some
	PathEscape                // a % without two hexadecimal digits
	PathSeparator             // an escaped separator, control byte or escape
	PathNeedless              // an escaped character that needs no escape
	PathNotText               // the escapes do not decode to UTF-8
	PathUnclear               // a ! that may stand for another byte
	QueryCharacter            // a blank, a control byte or a fragment
	QueryNotASCII             // a byte of 0x80 or above
	QueryDisguisedKey         // a name that becomes api_key only when decoded
	HostMalformed             // a host that programs read differently
	ProtocolsEmpty            // sec-websocket-protocol holds nothing but keys
	PreflightBody             // a preflight that goes to the upstream announces a body
	problemCount
)

// problems maps each problem to a reason, for metrics, and a text for the client. A text names the
// refused part of the request but never quotes it, because it may hold a key.
var problems = [problemCount]struct {
	reason Reason
	text   string
}{
	PathMissing:       {BadPath, "The path was refused: it is missing, or is not UTF-8."},
	PathRelative:      {BadPath, "The path was refused: it does not begin with a slash."},
	PathTooLong:       {BadPath, "The path was refused: it is longer than 8192 bytes."},
	PathDotSegment:    {BadPath, "The path was refused: it has a segment that is one dot or two."},
	PathEmptySegment:  {BadPath, "The path was refused: it has two slashes in a row."},
	PathCharacter:     {BadPath, "The path was refused: it holds a backslash, a semicolon, a fragment, or a character that must be percent-encoded."},
	PathEscape:        {BadPath, "The path was refused: it holds a percent sign without two hexadecimal digits."},
	PathSeparator:     {BadPath, "The path was refused: it encodes a separator, a percent sign or a control character."},
	PathNeedless:      {BadPath, "The path was refused: it encodes a letter, a digit or another character that needs no encoding."},
	PathNotText:       {BadPath, "The path was refused: it encodes bytes that are not UTF-8."},
	PathUnclear:       {BadPath, "The path was refused: it holds an exclamation mark, which cannot be told from a byte that must be percent-encoded here. Send the key in a header."},
	QueryCharacter:    {BadQuery, "The query was refused: it holds a blank, a control character or a fragment."},
	QueryNotASCII:     {BadQuery, "The query was refused: it holds a character that must be percent-encoded."},
	QueryDisguisedKey: {DisguisedKey, "The query was refused: the name api_key is encoded, or stands behind a semicolon. Send it as api_key=KEY."},
	HostMalformed:     {BadHeader, "The header host was refused: it is not one name or address, with or without a port."},
	ProtocolsEmpty:    {BadHeader, "The header sec-websocket-protocol was refused: it names no protocol but a key."},
	PreflightBody:     {BadHeader, "The request headers were refused: a CORS preflight has no body."},
}

// Problems returns all problems but NoProblem.
func Problems() []Problem {
	all := make([]Problem, 0, problemCount-1)
	for p := NoProblem + 1; p < problemCount; p++ {
		all = append(all, p)
	}
	return all
}

// known maps values outside the table to NoProblem, which has no text.
func (p Problem) known() Problem {
	if p >= problemCount {
		return NoProblem
	}
	return p
}

// Outcome returns the client's view of p. NoProblem and unknown values give a 503.
func (p Problem) Outcome() Outcome {
	problem := problems[p.known()]
	o := problem.reason.Outcome()
	if problem.text != "" {
		o.Text = problem.text
	}
	return o
}

// String returns the text for the client.
func (p Problem) String() string { return problems[p.known()].text }
