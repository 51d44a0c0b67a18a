package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/routes"
)

func (c *Config) setPagePath(s string) error {
	c.PagePath = ""
	if err := authz.CheckPagePath(s); err != nil {
		return err
	}
	c.PagePath = s
	return nil
}

// makeRoutes builds the route table from the rules of a file, or else the shipped rules, and from
// the page's own. Valid rules that may be unintended become warnings.
func (c *Config) makeRoutes() error {
	if c.PagePath == "" {
		return nil // the table would only repeat the error
	}
	shipped := len(c.places) == 0
	if shipped {
		var err error
		if c.Rules, c.places, err = routes.Shipped(); err != nil {
			// cannot happen: a test reads the table
			return fmt.Errorf("the table that Keyporter ships with: %w", err)
		}
		c.sources["routes"] = "default"
	}
	c.Rules = authz.WithPage(c.Rules, c.PagePath)
	table, err := authz.NewRouteTable(c.Rules)
	if err != nil {
		return c.placed(err)
	}
	if !shipped {
		for _, w := range append(table.Warnings(), table.PageWarnings(c.PagePath)...) {
			c.Warnings = append(c.Warnings, c.place(w.Index)+w.Text)
		}
	}
	if table, err = table.WithCORS(c.CORS); err != nil {
		return err
	}
	if c.Routes, err = table.WithKeyFormats(c.KeyFormats); err != nil {
		return c.placedFormats(err)
	}
	return errors.Join(c.checkDestinations(), about("--login-url", c.checkLogin()))
}

// checkLogin returns an error if the login needs a session or a key, because browsers would be
// redirected in a circle or rejected. The login belongs to this service if its URL is only a path,
// or names one of the hosts.
func (c *Config) checkLogin() error {
	u, err := url.Parse(c.LoginURL)
	page, _ := url.Parse(c.PageURL)
	if c.LoginURL == "" || err != nil || page == nil { // already reported
		return nil
	}
	table := c.Routes.For(strings.ToLower(cmp.Or(u.Hostname(), page.Hostname())))
	asked := path.Clean("/" + u.Path) // as browsers and Envoy normalise it
	if strings.HasSuffix(u.Path, "/") && asked != "/" {
		asked += "/"
	}
	rule := table.Match(asked)
	if rule == nil || rule.Kind != authz.KindSession && rule.Kind != authz.KindAPIKey {
		return nil
	}
	if u.Host == "" || strings.EqualFold(u.Host, page.Host) || table.Host != "" {
		return fmt.Errorf("%s opens only to those who are logged in or have a key, by the rule %q (%s): name an address that anybody may open", maskLoginURL(c.LoginURL), rule.Path, rule.Kind)
	}
	if rule.To == authz.ToPage {
		c.Warnings = append(c.Warnings, fmt.Sprintf("--login-url: if %s is the page's own host, browsers are sent round in a circle: %q is for those who are logged in", u.Host, rule.Path))
	}
	return nil
}

// checkDestinations returns an error for each rule that leads to an unknown upstream.
func (c *Config) checkDestinations() error {
	var problems []error
	for i, r := range c.Rules {
		_, known := c.Upstreams[r.To.String()]
		switch {
		case known, r.To == authz.ToPage, r.Kind == authz.KindNone, r.Name != "", r.Answer != authz.AnswerDestination:
		case r.To != authz.ToUpstream:
			problems = append(problems, fmt.Errorf("%s%q leads to %q, and `upstreams` has none of that name", c.place(i), r.Path, r.To))
		case len(c.Upstreams) > 0:
			problems = append(problems, fmt.Errorf("%s%q does not say which upstream it leads to, and `upstreams` has none called default: add `to` to the rule, or that upstream",
				c.place(i), r.Path))
		}
	}
	return errors.Join(problems...)
}

// CheckPage returns an error if this replica serves the page but no user could log in.
func (c *Config) CheckPage() error {
	if c.Routes == nil || c.ListenHTTP == "off" {
		return nil
	}
	err := c.Routes.PageProblem(c.PagePath)
	if err == nil {
		return nil
	}
	return errors.Join(c.placed(err), fmt.Errorf("--page-path: the users' page cannot be used at %s: leave its paths out of `routes`, since its rules "+
		"are added anyway; or give it another path; or set --listen-http off where nobody is to use it", c.PagePath))
}

// placed adds to each problem of a route table the place of the rule concerned.
func (c *Config) placed(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var problems []error
	for _, problem := range joined.Unwrap() {
		if wrong := (*authz.RuleError)(nil); errors.As(problem, &wrong) {
			problem = fmt.Errorf("%s%w", c.place(wrong.Index), wrong.Err)
		}
		problems = append(problems, problem)
	}
	return errors.Join(problems...)
}

// place returns the source of a rule: its place in a file, or the page.
func (c *Config) place(rule int) string {
	switch {
	case rule < len(c.places):
		return c.places[rule] + ": routes: "
	case c.Rules[rule].To == authz.ToPage:
		return "--page-path: "
	}
	return "routes: "
}
