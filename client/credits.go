package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"time"
)

// PoolCredits describes the credits of a user in a month.
type PoolCredits struct {
	User        string `json:"user"`
	Account     string `json:"account"`
	Pool        string `json:"pool"`     // user or account: the owner of the credits
	Limit       Limit  `json:"limit"`    // of the plan and the grants
	Granted     int64  `json:"granted"`  // in addition to the plan
	Used        int64  `json:"used"`     // by all who share the credits, without refunds
	Refunded    int64  `json:"refunded"` // that came back
	Outstanding int64  `json:"outstanding"`
	Lost        int64  `json:"lost"` // part of Used: held by killed processes
	Unreported  int64  `json:"unreported"`
}

// Balance is the credits of a user in this month.
type Balance struct {
	PoolCredits
	Month     string    `json:"month"` // such as 2026-11
	Remaining Limit     `json:"remaining"`
	Resets    time.Time `json:"resets_at"`
}

// Granted is a grant of credits.
type Granted struct {
	User    string `json:"user"`
	Granted int64  `json:"granted"`
}

// Posting is one line of a statement.
type Posting struct {
	At      *time.Time `json:"at"` // nil for a sum
	Entry   string     `json:"entry"`
	User    string     `json:"user,omitempty"`
	Account string     `json:"account,omitempty"`
	Credits int64      `json:"credits"`
	Detail  string     `json:"detail"`
}

// Verification is the result of a check of the ledger.
type Verification struct {
	Checked int           `json:"checked"` // pools
	Wrong   []Discrepancy `json:"wrong"`   // empty if the ledger adds up
}

// Discrepancy is a pool that does not add up.
type Discrepancy struct {
	Month int64    `json:"month"`
	Pool  string   `json:"pool"` // user or account
	Name  string   `json:"name"`
	What  []string `json:"what"`
}

// Credits returns the credits of a user in this month.
func (c *Client) Credits(ctx context.Context, user string) (Balance, error) {
	return read[Balance](ctx, c, path("/v1/users/", user, "/credits"), nil)
}

// GrantCredits grants a user more credits for this month, from 1 on.
func (c *Client) GrantCredits(ctx context.Context, user string, credits int64) (Changed[Granted], error) {
	body := struct {
		Credits int64 `json:"credits"`
	}{credits}
	return change[Granted](ctx, c, http.MethodPost, path("/v1/users/", user, "/credits:grant"), body)
}

// Statement lists what happened to the credits of a user in a month such as 2026-11, or in this one
// if it is "".
func (c *Client) Statement(ctx context.Context, user, month string) iter.Seq2[Posting, error] {
	return pages[Posting](ctx, c, path("/v1/users/", user, "/credits/statement"), filter("month", month))
}

// AccountStatement lists what happened in a month to the credits of all users of an account.
func (c *Client) AccountStatement(ctx context.Context, account, month string) iter.Seq2[Posting, error] {
	return pages[Posting](ctx, c, path("/v1/accounts/", account, "/credits/statement"), filter("month", month))
}

// VerifyLedger checks that the ledger of credits adds up.
func (c *Client) VerifyLedger(ctx context.Context) (Verification, error) {
	return ask[Verification](ctx, c, "/v1/ledger:verify", nil, true)
}

// The values of [UsageQuery.GroupBy].
const (
	ByAccount = "account"
	ByUser    = "user"
	ByDay     = "day"
)

// UsageQuery selects usage. The zero UsageQuery is that of this month by account.
type UsageQuery struct {
	// From and To are the first and the last month, such as 2026-11, or by day also the first and the
	// last day, such as 2026-11-24. An empty To is now, an empty From the month of To.
	From, To string
	GroupBy  string // account, user or day; "": account
	Account  string // only of this account
	User     string // only of this user, by user or by day
}

// UsageRow is the usage of an account or of a user in a month, or of all that is selected on a day.
type UsageRow struct {
	Month    string `json:"month,omitempty"`
	Day      string `json:"day,omitempty"`
	Account  string `json:"account,omitempty"`
	User     string `json:"user,omitempty"`
	Used     int64  `json:"used"` // credits, including refunded ones
	Refunded int64  `json:"refunded"`
	Charged  int64  `json:"charged"` // used less refunded
	*UsageOpen
	// Requests counts requests by the reason of their decision; some may be missing.
	Requests map[string]int64 `json:"requests_best_effort,omitempty"`
}

// UsageOpen is the part of a month's usage that is not settled. Days do not have it.
type UsageOpen struct {
	Unreported  int64 `json:"unreported"`
	Lost        int64 `json:"lost"`
	Outstanding int64 `json:"outstanding"`
}

// Usage lists what accounts and users have used, as it arrives, however long the list is. An error
// ends the list, which is then not complete.
func (c *Client) Usage(ctx context.Context, q UsageQuery) iter.Seq2[UsageRow, error] {
	return func(yield func(UsageRow, error) bool) {
		body, err := c.usage(ctx, q, "")
		if err != nil {
			yield(UsageRow{}, err)
			return
		}
		defer body.Close()
		for row, err := range items[UsageRow](body) {
			if err != nil && ctx.Err() != nil {
				err = ctx.Err()
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// UsageCSV writes the same list as CSV, with a line of column names. After an error what was
// written is not complete.
func (c *Client) UsageCSV(ctx context.Context, w io.Writer, q UsageQuery) error {
	body, err := c.usage(ctx, q, "csv")
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err = io.Copy(w, body); err != nil {
		return fmt.Errorf("usage as CSV: %w", err)
	}
	return nil
}

func (c *Client) usage(ctx context.Context, q UsageQuery, format string) (io.ReadCloser, error) {
	query := filter("from", q.From, "to", q.To, "group_by", q.GroupBy, "account", q.Account, "user", q.User, "format", format)
	a, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/usage", query: query, safe: true, streamed: true})
	return a.stream, err
}

// errCutOff is the error of a list that ends before its end.
var errCutOff = errors.New("client: the list was broken off")

// items reads the items of a list while it arrives. Fields beside the list are skipped, since later
// versions of the API may have some.
func items[T any](body io.Reader) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		d := json.NewDecoder(body)
		if !delimited(d, '{') || !skipTo(d, "items") || !delimited(d, '[') {
			yield(*new(T), errCutOff)
			return
		}
		for d.More() {
			var item T
			if d.Decode(&item) != nil {
				yield(item, errCutOff)
				return
			}
			if !yield(item, nil) {
				return
			}
		}
		if !delimited(d, ']') || !skipTo(d, "") || !delimited(d, '}') {
			yield(*new(T), errCutOff)
		}
	}
}

// delimited reads a delimiter.
func delimited(d *json.Decoder, want json.Delim) bool {
	token, err := d.Token()
	return err == nil && token == want
}

// skipTo skips the fields of an object up to the value of one, or to its end if the name is "".
func skipTo(d *json.Decoder, name string) bool {
	for d.More() {
		field, err := d.Token()
		if err != nil {
			return false
		}
		if field == name {
			return true
		}
		if d.Decode(new(json.RawMessage)) != nil {
			return false
		}
	}
	return name == ""
}
