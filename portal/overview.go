package portal

import (
	"cmp"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/usage"
)

// overview answers GET /api.
func (p *page) overview(r *request) (answer, error) {
	o, err := p.gather(r)
	if err != nil {
		return answer{}, err
	}
	if !r.html {
		return answer{status: http.StatusOK, json: p.overviewJSON(o)}, nil
	}
	return answer{status: http.StatusOK, template: "overview", data: p.view(r, r.text.Title, p.overviewPage(r, o, apikey.Token{}))}, nil
}

// overviewPage is the data of the page for people.
type overviewPage struct {
	Notices       []notice
	Key           *Key
	Masked        string
	Revealed      string // the key, if requested
	CanBeShown    bool
	NotKept       bool
	Imported      bool // another system made the key
	CopyKey       copyButton
	UsageKnown    bool
	LastUsed      string
	OldKeys       *usage.KeyUsage
	Credits, Rate *meterView
	PlanText      template.HTML // the account and plan of the user, in one sentence
	Chart         *chart
	RequestsKnown bool
	Requests      []requestRow
	Older         string
	Paged         bool
	Examples      []example
}

type notice struct {
	Level string // good, warn or bad
	Text  string
	First bool
}

// meterView is a usage figure with a bar.
type meterView struct {
	Figure, Left, Reset string
	Limited             bool
	Percent             int    // of the bar
	Level               string // "", warn or bad
}

type requestRow struct {
	DateTime, When, Method, Path, Status, Class, Credits string
	Refunded                                             bool
}

// masked returns the placeholder of a hidden key. It depends on no part of the key.
func (p *page) masked() string {
	return cmp.Or(p.config.KeyPrefix, apikey.DefaultPrefix) + bullets
}

// bullets stand for the hidden part of a key.
var bullets = strings.Repeat("•", 24)

func (p *page) overviewPage(r *request, o *overview, revealed apikey.Token) *overviewPage {
	data := &overviewPage{
		Key: o.key, Masked: p.masked(), CanBeShown: p.canBeShown(o.key), CopyKey: copyButton{r.text, "copy", "key"},
		UsageKnown: o.keyUsage != nil, PlanText: planText(r.text, &o.principal), Paged: r.URL.Query().Get("before") != "",
		Credits: creditsView(r.text, o.credits), Rate: rateView(r.text, o.rate),
		RequestsKnown: o.requestsKnown, Older: o.next, Examples: p.examples(r),
	}
	data.NotKept = o.key != nil && o.key.Sealed == nil
	data.Imported = o.key != nil && o.key.Imported
	if data.Imported {
		data.Masked = bullets
	}
	if !revealed.IsZero() {
		data.Revealed = revealed.Reveal()
	}
	if o.keyUsage != nil && !o.keyUsage.Last.IsZero() {
		data.LastUsed = r.text.At(o.keyUsage.Last)
	}
	if o.oldKeys != nil && o.oldKeys.All > 0 {
		data.OldKeys = o.oldKeys
		data.OldKeys.Address, data.OldKeys.Agent = cmp.Or(data.OldKeys.Address, "?"), cmp.Or(data.OldKeys.Agent, "?")
	}
	if o.days != nil {
		data.Chart = newChart(r.text, o.days)
	}
	for _, record := range o.requests {
		data.Requests = append(data.Requests, newRequestRow(r.text, record))
	}
	data.Notices = notices(r.text, o)
	return data
}

// planText returns a sentence about the user's plan, account and shared credits.
func planText(t *texts, p *authz.Principal) template.HTML {
	switch {
	case p.Account == p.User:
		return t.FormatHTML(t.PlanOfUser, p.Plan)
	case p.Pool == usage.PoolAccount && p.Credits != usage.Unlimited:
		return t.FormatHTML(t.PlanShared, p.Account, p.Plan)
	}
	return t.FormatHTML(t.PlanOfAccount, p.Account, p.Plan)
}

// notices returns warnings about everything that disables the key, or soon will.
func notices(t *texts, o *overview) []notice {
	var all []notice
	switch {
	case !o.principal.AccountActive:
		all = append(all, notice{Level: "bad", Text: t.Suspended})
	case !o.principal.APIAccess:
		all = append(all, notice{Level: "bad", Text: t.NoAccess})
	}
	if c := o.credits; c.Limited() {
		switch {
		case c.Remaining() == 0:
			all = append(all, notice{Level: "bad", Text: t.Format(t.CreditsExhausted, t.Day(resetsAt(c)))})
		case percent(c.Used, int64(c.Limit)) >= warnAt:
			all = append(all, notice{Level: "warn", Text: t.Format(t.CreditsLow, t.percent(percent(c.Used, int64(c.Limit))))})
		}
	}
	if len(all) > 0 {
		all[0].First = true
	}
	return all
}

// warnAt is the percentage of used credits that causes a warning.
const warnAt = 80

func (t *texts) percent(n int) string {
	if t.Language == "tr" {
		return "%" + itoa(n)
	}
	return itoa(n) + "%"
}

// percent returns a percentage, rounded down so that 100 means all of it.
func percent(used, limit int64) int {
	if limit <= 0 {
		return 100
	}
	return int(min(100, max(0, float64(used)/float64(limit)*100)))
}

func level(percent int) string {
	switch {
	case percent >= 100:
		return "bad"
	case percent >= warnAt:
		return "warn"
	}
	return ""
}

func creditsView(t *texts, c usage.Credits) *meterView {
	if !c.Counted {
		return nil
	}
	if !c.Limited() {
		return &meterView{Figure: t.Format(t.CreditsUnlimited, t.Number(c.Used))}
	}
	full := percent(c.Used, int64(c.Limit))
	return &meterView{
		Limited: true, Figure: t.Format(t.CreditsUsed, t.Number(c.Used), t.Number(int64(c.Limit))), Percent: full, Level: level(full),
		Left: t.Format(t.CreditsLeft, t.Number(c.Remaining())), Reset: t.Format(t.CreditsReset, t.Day(resetsAt(c))),
	}
}

func rateView(t *texts, r usage.Rate) *meterView {
	switch {
	case r.Limit == usage.Unlimited && r.Window > 0:
		return &meterView{Figure: t.RateUnlimited}
	case !r.Limited():
		return nil
	}
	full := percent(r.Used, int64(r.Limit))
	m := &meterView{
		Limited: true, Figure: t.Format(t.RateUsed, t.Number(r.Used), t.Number(int64(r.Limit)), t.Window(r.Window)), Percent: full, Level: level(full),
		Left: t.Format(t.RateFree, t.Number(r.Remaining)),
	}
	if r.Remaining == 0 {
		m.Left = t.Format(t.RateFull, t.Number(int64((r.Reset+time.Second-1)/time.Second)))
	}
	return m
}

func newRequestRow(t *texts, r usage.Record) requestRow {
	at := r.At.UTC()
	row := requestRow{
		DateTime: at.Format(time.RFC3339), When: itoa(at.Day()) + " " + t.months[at.Month()-1] + " " + at.Format("15:04:05"),
		Method: r.Method, Path: r.Path, Status: t.NoAnswer, Class: "failed", Credits: t.Number(r.Credits), Refunded: r.Refunded,
	}
	if r.Status > 0 {
		row.Status = itoa(r.Status)
	}
	switch r.Status / 100 {
	case 2, 3:
		row.Class = "fine"
	case 4:
		row.Class = "refused"
	}
	return row
}

// chart shows the credits of 30 days as bars.
type chart struct {
	Width, Height int
	Bars          []dayBar
	Total         string
	First, Last   string
}

type dayBar struct {
	X, Y, W, H         int
	Title, Date, Value string
}

const (
	chartHeight = 96
	barWidth    = 8
	barStep     = 11
)

// newChart returns a chart; it has no bars if no credits were used.
func newChart(t *texts, days []usage.Day) *chart {
	c := &chart{Width: barStep*len(days) - barStep + barWidth, Height: chartHeight}
	most, total := int64(0), int64(0)
	for _, d := range days {
		used := max(0, d.Used-d.Refunded)
		most, total = max(most, used), total+used
	}
	if most == 0 {
		return c
	}
	for i, d := range days {
		used := max(0, d.Used-d.Refunded)
		h := int(float64(used) / float64(most) * chartHeight)
		if used > 0 {
			h = max(h, 2)
		}
		c.Bars = append(c.Bars, dayBar{
			X: i * barStep, Y: chartHeight - h, W: barWidth, H: h,
			Title: t.Format(t.DayBar, t.Day(d.Date), t.Number(used)), Date: t.Day(d.Date), Value: t.Number(used),
		})
	}
	c.Total = t.Format(t.DaysTotal, t.Number(total))
	c.First, c.Last = c.Bars[0].Date, c.Bars[len(c.Bars)-1].Date
	return c
}

// example is a call to copy.
type example struct {
	Name, ID, Code string
	Open           bool
	Copy           copyButton
}

// plainHost matches hosts that cannot change the meaning of a snippet.
var plainHost = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?$`)

// examples returns calls of the API at the address that the browser used for the page.
func (p *page) examples(r *request) []example {
	host := r.Host
	if _, err := netip.ParseAddrPort(host); err != nil && !plainHost.MatchString(host) {
		host = "api.example.com"
	}
	scheme := "https"
	if r.Header.Get("X-Forwarded-Proto") == "http" { // set by Envoy
		scheme = "http"
	}
	address := scheme + "://" + host + cmp.Or(p.config.Example, "/api/v1/brands")
	var all []example
	for i, e := range []struct{ id, name, code string }{
		{"curl", "curl", `curl -H "X-API-Key: $API_KEY" "%s"`},
		{"python", "Python", `import os, requests

response = requests.get("%s",
                        headers={"X-API-Key": os.environ["API_KEY"]}, timeout=30)
response.raise_for_status()
print(response.json())`},
		{"javascript", "JavaScript", `const response = await fetch("%s", {
  headers: { "X-API-Key": process.env.API_KEY },
});
if (!response.ok) throw new Error(await response.text());
console.log(await response.json());`},
		{"go", "Go", `request, err := http.NewRequest("GET", "%s", nil)
if err != nil {
	log.Fatal(err)
}
request.Header.Set("X-API-Key", os.Getenv("API_KEY"))
response, err := http.DefaultClient.Do(request)`},
	} {
		id := "example-" + e.id
		all = append(all, example{e.name, id, fmt.Sprintf(e.code, address), i == 0, copyButton{r.text, "copy-" + e.id, id}})
	}
	return all
}
