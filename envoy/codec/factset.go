package codec

import (
	"fmt"
	"slices"
	"strings"
)

// FactSet is a set of facts about an allowed request. Each one in an answer costs Envoy about a
// microsecond (bench/README.md). The zero value stands for the default set of its use.
type FactSet uint8

// The facts.
const (
	FactUser FactSet = 1 << iota
	FactAccount
	FactPlan
	FactKeyID
	FactCharge
	none // makes the empty set differ from the zero value
)

// The default sets. Keyporter itself reads the user, the key and the receipt of the charge in
// Envoy's access log, so the metadata always has these and the reason.
const (
	DefaultHeaders  = FactUser | FactAccount | FactPlan | FactKeyID
	DefaultMetadata = none
)

var (
	headerFacts   = []FactSet{FactUser, FactAccount, FactPlan, FactKeyID, FactCharge}
	metadataFacts = []FactSet{FactAccount, FactPlan}
)

// String returns the names of f's facts as [ParseHeaders] and [ParseMetadata] read them.
func (f FactSet) String() string {
	var names []string
	for _, one := range headerFacts {
		if f&one != 0 {
			names = append(names, one.name())
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ",")
}

// name returns the name of one fact.
func (f FactSet) name() string {
	switch f {
	case FactUser:
		return "user"
	case FactAccount:
		return "account"
	case FactPlan:
		return "plan"
	case FactKeyID:
		return "key-id"
	}
	return "charge"
}

// ParseHeaders reads the set of identity headers for the upstream: names with commas between them,
// or none.
func ParseHeaders(s string) (FactSet, error) { return parseFacts(s, headerFacts) }

// ParseMetadata reads the set of facts that Envoy's dynamic metadata has beside those that
// Keyporter needs there: account, plan, both with a comma between them, or none.
func ParseMetadata(s string) (FactSet, error) { return parseFacts(s, metadataFacts) }

func parseFacts(s string, permitted []FactSet) (FactSet, error) {
	if s == "none" {
		return none, nil
	}
	all := none
	for name := range strings.SplitSeq(s, ",") {
		i := slices.IndexFunc(permitted, func(f FactSet) bool { return f.name() == strings.TrimSpace(name) })
		if i < 0 {
			var names []string
			for _, f := range permitted {
				names = append(names, f.name())
			}
			return 0, fmt.Errorf("%.80q is none of %s: want some of them with commas in between, or none", name, strings.Join(names, ", "))
		}
		all |= permitted[i]
	}
	return all, nil
}

// Selection is what the answers to allowed requests carry. The zero value is the default.
type Selection struct {
	Headers  FactSet // identity headers for the upstream; 0: DefaultHeaders. The others are removed.
	Metadata FactSet // account and plan in the metadata; 0: neither
}

// header reports whether the upstream gets a fact.
func (s Selection) header(one FactSet) bool {
	if s.Headers == 0 {
		return DefaultHeaders&one != 0
	}
	return s.Headers&one != 0
}
