package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyporter/keyporter/portal"
)

// LoginRedirect is the address to which a browser without a session is redirected. The default is
// the page's own login, which explains how to get a link.
func (c *Config) LoginRedirect() string { return cmp.Or(c.LoginURL, portal.LoginPath(c.PagePath)) }

// maxPageText bounds a name or the text of a link on the page, in characters.
const maxPageText = 60

func checkPageName(s string) error {
	if s == "" || !printable(s) {
		return fmt.Errorf("%.80q is not a name of 1 to %d printable characters", s, maxPageText)
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && utf8.RuneCountInString(s) <= maxPageText && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func checkPageURL(s string) error {
	u, err := url.Parse(s)
	if s == "" || err == nil && checkTarget(s) == nil && u.Host != "" && strings.Trim(u.Path, "/") == "" && u.RawQuery == "" && u.Fragment == "" && u.User == nil {
		return nil
	}
	return fmt.Errorf("%.80q is not of the form https://HOST[:PORT]", s)
}

// checkTarget accepts http:// and https:// URLs with a host, and paths of the same host. Browsers
// read a backslash as a slash and drop tabs and line breaks, so a text that looks like a path may
// lead to another host.
func checkTarget(s string) error {
	errTarget := errors.New("not a URL to send a browser to")
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '\\' || r == 0x7f || !unicode.IsPrint(r) }) {
		return errTarget
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
	case (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "":
		return nil
	case strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "//"):
		return nil
	}
	return errTarget
}

// hexColor matches the only accepted form of a colour.
var hexColor = regexp.MustCompile(`^#[0-9a-fA-F]{6}$`)

func checkColor(s string) error {
	if !hexColor.MatchString(s) {
		return fmt.Errorf("%.80q is not a colour such as #2f5bea", s)
	}
	return nil
}

// parseLinks parses a list such as Documentation=https://docs.example.com,
// Support=mailto:help@example.com.
func parseLinks(s string) (links []portal.Link, err error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	for item := range strings.SplitSeq(s, ",") {
		text, address, _ := strings.Cut(strings.TrimSpace(item), "=")
		text, address = strings.TrimSpace(text), strings.TrimSpace(address)
		if text == "" || !printable(text) {
			return nil, fmt.Errorf("%.80q is not of the form TEXT=URL", strings.TrimSpace(item))
		}
		if err := checkLink(address); err != nil {
			return nil, fmt.Errorf("link %q: %w", text, err)
		}
		links = append(links, portal.Link{Text: text, URL: address})
	}
	return links, nil
}

// checkLink rejects addresses that a browser would execute, such as javascript: URLs.
func checkLink(address string) error {
	u, err := url.Parse(address)
	if checkTarget(address) == nil || err == nil && u.Scheme == "mailto" && u.Opaque != "" {
		return nil
	}
	return errors.New("want a URL that begins with https://, http://, mailto: or /; a comma in it is written %2C")
}

// Brand reads the provider's name, logo, colour and links for the page.
func (c *Config) Brand() (portal.Brand, error) {
	b := portal.Brand{Name: c.PageName, Color: c.PageColor, Links: c.PageLinks}
	if c.PageLogo == "" {
		return b, nil
	}
	content, err := readAtMost(c.PageLogo, maxLogo)
	if err != nil {
		return b, fmt.Errorf("--page-logo-file: %w", err)
	}
	b.Logo = content
	switch kind := http.DetectContentType(content); {
	case kind == "image/png":
		b.LogoType = kind
	case bytes.Contains(content[:min(len(content), 1<<10)], []byte("<svg")):
		b.LogoType = "image/svg+xml"
	default:
		return b, fmt.Errorf("--page-logo-file: %s is neither SVG nor PNG", c.PageLogo)
	}
	return b, nil
}

// maxLogo bounds a logo, in bytes.
const maxLogo = 1 << 20
