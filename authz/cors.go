package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CORS lists the pages of other origins that may send requests and read the answers (Fetch
// standard, https://fetch.spec.whatwg.org/#http-cors-protocol), on rules of kind [KindAPIKey] and
// [KindPublic] that lead to the upstream. With the zero CORS, no answer has a CORS header.
type CORS struct {
	// Origins are the origins of these pages, each as a browser sends it, such as
	// https://app.example.com; "*" alone means all.
	Origins []string
	// Headers are the request headers that pages may set. Nil means [DefaultCORSHeaders]: the
	// headers that may hold a key, and content-type.
	Headers []string
	// MaxAge is how long a browser may cache the answer to a preflight, from 1 s to 24 h. 0 means
	// [DefaultCORSMaxAge].
	MaxAge time.Duration
}

// DefaultCORSMaxAge is how long a browser may cache the answer to a preflight by default.
const DefaultCORSMaxAge = 10 * time.Minute

// DefaultCORSHeaders returns the request headers that pages may set by default.
func DefaultCORSHeaders() []string { return []string{"x-api-key", "authorization", "content-type"} }

// corsProblem returns an error if r's setting for pages of other origins is invalid.
func (r *Rule) corsProblem() error {
	if r.CORS != CORSTable && !r.maySpeakCORS() {
		return errors.New("cors is for rules of kind api_key and public that lead to the upstream: pages of other origins never use a session")
	}
	if r.CORS == CORSUpstream && r.Answer != AnswerDestination {
		return fmt.Errorf("cors: upstream: with answer %v no upstream is asked, so none answers preflights: leave cors out, or say off", r.Answer)
	}
	return nil
}

// maySpeakCORS reports whether pages of other origins may ever use r.
func (r *Rule) maySpeakCORS() bool {
	return (r.Kind == KindAPIKey || r.Kind == KindPublic) && r.To == ToUpstream
}

// IsZero reports whether c is the zero CORS.
func (c *CORS) IsZero() bool { return len(c.Origins) == 0 && c.Headers == nil && c.MaxAge == 0 }

// Problems returns all errors in c. Each text begins with the name of the setting.
func (c *CORS) Problems() (all []error) {
	if len(c.Origins) == 0 {
		all = append(all, errors.New("origins: name the origins of the pages, such as https://app.example.com"))
	}
	for i, origin := range c.Origins {
		switch err := originProblem(origin); {
		case origin == "*" && len(c.Origins) > 1:
			all = append(all, errors.New(`origins: "*" stands for all and must stand alone`))
		case origin != "*" && err != nil:
			all = append(all, fmt.Errorf("origins: %w", err))
		case slices.Contains(c.Origins[:i], origin):
			all = append(all, fmt.Errorf("origins: %q is there twice", origin))
		}
	}
	for _, name := range c.Headers {
		if name == "" || schemeLength(name) != len(name) || name == "*" {
			all = append(all, fmt.Errorf("headers: %.80q is not the name of a header", name))
		}
	}
	if c.MaxAge != 0 && (c.MaxAge < time.Second || c.MaxAge > 24*time.Hour) {
		all = append(all, fmt.Errorf("max_age: %v is not from 1s to 24h", c.MaxAge))
	}
	return all
}

var origins = regexp.MustCompile(`^([a-z][a-z0-9+.-]*)://([a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:([1-9][0-9]{0,4}))?$`)

// originProblem returns an error unless s is an origin in the form that browsers send.
func originProblem(s string) error {
	parts := origins.FindStringSubmatch(s)
	switch {
	case s == "null":
		return errors.New("null is what any sandboxed page and any local file sends, so it names nobody")
	case parts == nil:
		return fmt.Errorf("%.80q is not SCHEME://HOST or SCHEME://HOST:PORT in lower case, without a slash at its end", s)
	case parts[1] == "https" && parts[5] == "443", parts[1] == "http" && parts[5] == "80":
		return fmt.Errorf("%.80q: browsers leave the default port out", s)
	}
	if address := strings.Trim(parts[2], "[]"); address != parts[2] {
		if _, err := netip.ParseAddr(address); err != nil {
			return fmt.Errorf("%.80q has no IPv6 address between its brackets", s)
		}
	}
	return nil
}

// sharing is a [CORS] prepared for use in headers.
type sharing struct {
	config  CORS
	origins map[string]bool
	anybody bool
	headers string
	maxAge  string // in seconds
}

func newSharing(c CORS) *sharing {
	s := &sharing{config: c, origins: map[string]bool{}, anybody: c.Origins[0] == "*"}
	for _, origin := range c.Origins {
		s.origins[origin] = true
	}
	headers, maxAge := c.Headers, c.MaxAge
	if headers == nil {
		headers = DefaultCORSHeaders()
	}
	if maxAge == 0 {
		maxAge = DefaultCORSMaxAge
	}
	s.headers, s.maxAge = strings.Join(headers, ", "), strconv.FormatInt(int64(maxAge/time.Second), 10)
	return s
}

// CrossOrigin holds the CORS headers of an answer. The zero CrossOrigin adds none.
type CrossOrigin struct {
	// Vary tells caches that the answer depends on the origin and must not be reused for another
	// one.
	Vary bool
	// Origin is the value of access-control-allow-origin. If empty, the page may not read the
	// answer.
	Origin string
	// Methods, Headers and MaxAge are the values for a preflight; empty for other requests.
	Methods, Headers, MaxAge string
}

// preflightMethods returns the methods that a page may use: those of the rule, or else the common
// ones and the one asked for.
func (r *Rule) preflightMethods(asked string) string {
	if len(r.Methods) > 0 {
		return r.Allow()
	}
	const usual = "GET, HEAD, POST, PUT, PATCH, DELETE"
	if !r.Permits(asked) || schemeLength(asked) != len(asked) || slices.Contains(strings.Split(usual, ", "), asked) {
		return usual
	}
	return usual + ", " + asked
}

// isPreflight reports whether r is a CORS preflight. An OPTIONS request that lacks one of the two
// headers is an ordinary request.
func (r *Request) isPreflight() bool {
	return r.Method == "OPTIONS" && r.Origin != "" && r.RequestMethod != ""
}

// passesPreflight reports whether req is a preflight that goes to the upstream.
func (r *Rule) passesPreflight(req *Request) bool {
	return r.CORS == CORSUpstream && req.isPreflight()
}
