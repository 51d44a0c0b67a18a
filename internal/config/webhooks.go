package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/events"
	"github.com/keyporter/keyporter/internal/routes"
	"github.com/keyporter/keyporter/store/outbox"
)

// The bounds of a file of webhooks.
const (
	maxWebhooks   = 20
	maxWebhookURL = 2048 // bytes
)

var webhookName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// Webhooks reads the endpoints of events, and the files with their secrets. Without a file there are
// none.
func (c *Config) Webhooks() ([]events.Endpoint, error) {
	if c.WebhooksFile == "" {
		return nil, nil
	}
	text, err := readAtMost(c.WebhooksFile, maxConfigFile)
	if err != nil {
		return nil, fmt.Errorf("reading the webhooks: %w", err)
	}
	d, node := routes.Read(c.WebhooksFile, text)
	w := webhooks{Document: d}
	switch {
	case node != nil:
		d.Mapping(node, []string{"webhooks"}, func(_ string, _, value *yaml.Node) { w.readAll(value) })
	case len(d.Problems) == 0:
		d.Problems = append(d.Problems, fmt.Errorf("%s: want `webhooks:` and a list of endpoints, which may be empty: []", c.WebhooksFile))
	}
	if err := errors.Join(d.Problems...); err != nil {
		return nil, err
	}
	return w.all, nil
}

// webhooks is a file of webhooks being read.
type webhooks struct {
	*routes.Document
	all []events.Endpoint
}

func (w *webhooks) readAll(list *yaml.Node) {
	if list.Kind != yaml.SequenceNode {
		w.Complain(list, "webhooks: want a list of endpoints")
		return
	}
	if len(list.Content) > maxWebhooks {
		w.Complain(list, "webhooks: there are more than %d", maxWebhooks)
		return
	}
	for _, node := range list.Content {
		before := len(w.Problems)
		e := events.Endpoint{Types: outbox.Types()}
		w.Mapping(node, []string{"name", "url", "types", "secret_file"}, func(name string, _, value *yaml.Node) { w.read(&e, name, value) })
		if len(w.Problems) > before {
			continue
		}
		switch {
		case e.Name == "" || e.URL == "" || len(e.Secrets) == 0:
			w.Complain(node, "an endpoint needs name, url and secret_file")
		case slices.ContainsFunc(w.all, func(other events.Endpoint) bool { return other.Name == e.Name }):
			w.Complain(node, "name: an earlier endpoint is named %s too", e.Name)
		default:
			w.all = append(w.all, e)
		}
	}
}

func (w *webhooks) read(e *events.Endpoint, name string, value *yaml.Node) {
	if name == "types" {
		if e.Types = w.Texts(name, value); len(slices.Compact(slices.Sorted(slices.Values(e.Types)))) < len(e.Types) {
			w.Complain(value, "types: one is named twice")
		}
		for _, kind := range e.Types {
			if !slices.Contains(outbox.Types(), kind) {
				w.Complain(value, "types: there is no type %.80q%s", kind, routes.Nearest(kind, outbox.Types()))
			}
		}
		return
	}
	w.Parsed(name, value, func(text string) (err error) {
		switch name {
		case "name":
			if e.Name = text; !webhookName.MatchString(text) {
				err = errors.New("want 1 to 63 small letters, digits and _ -, the first a letter or digit")
			}
		case "url":
			e.URL, err = text, checkWebhookURL(text)
		case "secret_file":
			e.Secrets, err = w.secrets(text)
		}
		return err
	})
}

// secrets reads a file that is named relative to the folder of the webhooks.
func (w *webhooks) secrets(file string) ([]events.Secret, error) {
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(w.File), file)
	}
	text, err := readAtMost(file, maxSecret)
	if err != nil {
		return nil, err
	}
	all, err := events.ParseSecrets(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&OthersWrite != 0 {
		return nil, fmt.Errorf("%s: everybody on this machine may change it: chmod o-w %[1]s", file)
	}
	return all, nil
}

// checkWebhookURL does not show the URL, which may hold a secret.
func checkWebhookURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || len(text) > maxWebhookURL || u.Opaque != "" || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("want https://HOST/PATH of at most %d bytes, or http://… inside a trusted network", maxWebhookURL)
	case u.User != nil:
		return errors.New("leave the user name and password out: the signature says who calls")
	case u.Fragment != "":
		return errors.New("leave out what follows #: it is never sent")
	}
	return nil
}

// parsePrefixes reads ranges of addresses with commas in between.
func parsePrefixes(text string) (all []netip.Prefix, err error) {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil || prefix != prefix.Masked() {
			return nil, fmt.Errorf("%q is no range of addresses: want one such as 10.1.0.0/16, or several with commas in between", part)
		}
		all = append(all, prefix)
	}
	return all, nil
}
