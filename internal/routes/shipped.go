package routes

import (
	_ "embed"
	"errors"

	"go.yaml.in/yaml/v4"

	"github.com/keyporter/keyporter/authz"
)

//go:embed routes.yaml
var shipped []byte

// Shipped returns the rules that Keyporter ships with, without those of the users' page, and the
// place of each.
func Shipped() (rules []authz.Rule, places []string, _ error) {
	d, node := Read("routes.yaml", shipped)
	if node != nil {
		d.Mapping(node, []string{"routes"}, func(_ string, _, value *yaml.Node) { rules, places = d.Rules(value) })
	}
	return rules, places, errors.Join(d.Problems...)
}

// Default returns the default rules, including those of the users' page.
func Default() ([]authz.Rule, error) {
	rules, _, err := Shipped()
	return authz.WithPage(rules, authz.DefaultPagePath), err
}
