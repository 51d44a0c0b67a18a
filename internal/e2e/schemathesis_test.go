package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/keyporter/keyporter/client"
)

// schemathesis is the path of the program; "": it is not installed. `make schemathesis` sets it.
var schemathesis = take("KEYPORTER_SCHEMATHESIS")

// casesInFull is the least number of requests of `make schemathesis`.
const casesInFull = 20_000

// cases matches how many requests Schemathesis has sent.
var cases = regexp.MustCompile(`(\d+) generated`)

// Whatever Schemathesis makes of the document of the running service, valid and invalid, is
// answered as the document says: all of its checks pass, with a seed of its own in full, and always
// the same in short.
func TestSchemathesisFindsNothing(t *testing.T) {
	if schemathesis == "" {
		t.Skip("run `make schemathesis`, which installs it")
	}
	a := startAdministered(t, "", 1)
	a.makeAda(client.PlanChange{})
	confirmed(a.api(0, operatorToken, client.Options{}).CreateKey(t.Context(), "ada"))(t)
	checks, err := filepath.Abs(filepath.Join(root, "tools", "schemathesis", "checks.py"))
	if err != nil {
		t.Fatal(err)
	}
	// The check left out is done by one in checks.py, which says why.
	args := []string{"run", "http://" + a.apis[0] + "/v1/openapi.json", "--header", "Authorization: Bearer " + operatorToken,
		"--checks", "all", "--exclude-checks", "positive_data_acceptance", "--no-color", "--generation-database", "none", "--continue-on-failure"}
	least := 100
	if long {
		args, least = append(args, "--max-examples", "560"), casesInFull
	} else {
		args = append(args, "--phases", "fuzzing", "--max-examples", "5", "--seed", "1", "--no-shrink")
	}
	command := exec.CommandContext(t.Context(), schemathesis, args...)
	command.Dir = t.TempDir() // for what it keeps
	command.Env = append(os.Environ(), "SCHEMATHESIS_HOOKS="+checks, "PYTHONDONTWRITEBYTECODE=1")
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := cases.FindSubmatch(out)
	if found == nil {
		t.Fatalf("it does not say how many cases it has tried:\n%s", out)
	}
	n, _ := strconv.Atoi(string(found[1])) // of digits
	if n < least {
		t.Errorf("%d cases, want at least %d\n%s", n, least, out)
	}
	t.Logf("%d cases", n)
}
