package jwt

import (
	"errors"

	"github.com/go-jose/go-jose/v4/jwt"
)

// ErrInvalid means that a token is invalid. [Verifier.Verify] returns it as a [RefusedError].
var ErrInvalid = errors.New("the token is not valid")

// Cause is the part of a token that is invalid: a header, a claim, or the whole. It is a label of
// metrics.
type Cause string

// The causes.
const (
	TooLong      Cause = "too_long"
	Malformed    Cause = "malformed"
	BadAlgorithm Cause = "alg"
	BadType      Cause = "typ"
	UnknownKey   Cause = "kid"
	BadSignature Cause = "signature"
	WrongIssuer  Cause = "iss"
	WrongTarget  Cause = "aud"
	Expired      Cause = "exp"
	NotYetValid  Cause = "nbf"
	IssuedLater  Cause = "iat"
	BadSubject   Cause = "subject" // the claim that names the user
)

// Causes returns all causes.
func Causes() []Cause {
	return []Cause{TooLong, Malformed, BadAlgorithm, BadType, UnknownKey, BadSignature, WrongIssuer, WrongTarget,
		Expired, NotYetValid, IssuedLater, BadSubject}
}

// RefusedError is an [ErrInvalid] with its cause. It holds nothing of the token.
type RefusedError struct {
	Cause Cause
	why   string
}

func (e RefusedError) Error() string { return ErrInvalid.Error() + ": " + e.why }

// Is reports whether the target is [ErrInvalid].
func (e RefusedError) Is(target error) bool { return target == ErrInvalid }

func refuse(cause Cause, why string) error { return RefusedError{cause, why} }

// refusal translates an error of the library about claims.
func refusal(err error) error {
	for _, row := range []struct {
		err   error
		cause Cause
		why   string
	}{
		{jwt.ErrInvalidIssuer, WrongIssuer, "its claim iss is not the issuer that is trusted"},
		{jwt.ErrInvalidAudience, WrongTarget, "its claim aud does not name the audience that is expected"},
		{jwt.ErrExpired, Expired, "its claim exp says that it has expired"},
		{jwt.ErrNotValidYet, NotYetValid, "its claim nbf says that it is not valid yet"},
		{jwt.ErrIssuedInTheFuture, IssuedLater, "its claim iat lies in the future"},
	} {
		if errors.Is(err, row.err) {
			return refuse(row.cause, row.why)
		}
	}
	return refuse(Malformed, "its claims are not acceptable")
}
