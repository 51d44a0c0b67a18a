package e2e_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// formerNames are names that gave way to the field's terms. No identifier has one of them.
var formerNames = []string{
	"Ending", "Due", "Stand", "hear", "heard", "Heard", "untold", "Untold", "unposted", "unpay", "forgot", "imposing",
	"creditMetrics", "limiterMetrics", "settleShare", "leastPause", "mostPause", "mostAsks", "leastReserve", "mostReserve", "mostItems",
	"Pace", "saying", "News", "Hint", "news", "readNews", "toldAtOnce", "tellTimeout", "telling", "throttle", "ErrUnsettled", "Unsettled", "ErrAway", "errUnsure", "CreditsConfig", "NewCredits", "SettleConfig", "NewSettle",
	"Say", "Dead", "NotThatWay", "CreditsGone", "LoginBad", "LoginAsk", "LoginElsewhere", "TeamShared",
	"Shares", "SharesOf", "shareOrder", "lookupShare", "leaseShare", "reportShare", "changeShare", "listenShare", "logShare", "settlesAt", "settledUse",
}

// templateFields matches the fields of Go values that a template shows.
var templateFields = regexp.MustCompile(`\.([A-Z]\w*)`)

// formerWords are the same for documents, SQL and templates: names that users see.
var formerWords = regexp.MustCompile(`\b(keyporter_credits_unsettled|unsettled|UNSETTLED|credit_heard|PPROF_LISTEN)\b`)

// One thing has one name, in all of the code and in all documents; the changelog alone knows the
// former ones.
func TestFormerNamesAreGone(t *testing.T) {
	t.Parallel()
	for _, name := range repositoryFiles(t, ".go") {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if ident, ok := n.(*ast.Ident); ok && slices.Contains(formerNames, ident.Name) {
				t.Errorf("%s has the former name %s", name, ident.Name)
			}
			return true
		})
	}
	for _, name := range repositoryFiles(t, ".html") {
		for _, field := range templateFields.FindAllStringSubmatch(readDocument(t, name).text, -1) {
			if slices.Contains(formerNames, field[1]) {
				t.Errorf("%s has the former name %s", name, field[1])
			}
		}
	}
	for _, extension := range []string{".md", ".sql", ".yaml", ".tmpl", ".html"} {
		for _, name := range repositoryFiles(t, extension) {
			if name == "CHANGELOG.md" {
				continue
			}
			if found := formerWords.FindAllString(readDocument(t, name).text, -1); found != nil {
				t.Errorf("%s has the former words %s", name, strings.Join(found, ", "))
			}
		}
	}
}
