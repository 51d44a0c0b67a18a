package operations

import "github.com/keyporter/keyporter/store/directory"

// Plan is a plan, with its window in words.
type Plan struct {
	directory.Plan
	RateWindow string `json:"rate_window"`
}

// PlanOf returns a plan of the store as a result.
func PlanOf(p directory.Plan) Plan { return Plan{p, p.RateWindow.String()} }
