package meter

import (
	"context"
	"errors"

	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/meter/ledger"
)

// mostPending bounds the refunds that wait for the ledger, and the users of whom it has to be told.
const mostPending = 100_000

// refund gives the credits of a charge back with the next report.
func (c *Credits) refund(r Receipt, cause string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.refunds) >= mostPending {
		c.metrics.dropped.Inc()
		return
	}
	c.refunds[r.Charge()] = ledger.Refund{
		Payer: ledger.Payer{Month: r.Month, User: r.User, Account: r.Account}, Charge: r.Charge(), Credits: r.Cost, Cause: cause,
	}
}

// Refund gives the credits of a charge back at once, and reports false if they had been given back
// before. When it returns, that is durable. On an error they may come back all the same, a moment later.
func (c *Credits) Refund(ctx context.Context, r Receipt, cause string) (bool, error) {
	done := make(chan bool, 1)
	c.mu.Lock()
	if c.watched[r.Charge()] != nil {
		c.mu.Unlock()
		return false, ErrUnsettled // somebody else waits for the same
	}
	c.watched[r.Charge()] = done
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.watched, r.Charge())
		c.mu.Unlock()
	}()
	c.hear(r)
	c.refund(r, cause)
	c.wake()
	select {
	case fresh := <-done:
		return fresh, nil
	case <-ctx.Done():
		return false, errors.Join(ErrUnsettled, ctx.Err())
	}
}

// month is what was heard of one user in one month.
type month struct {
	month authz.Month
	user
}

// before returns the month before m.
func before(m authz.Month) authz.Month { return authz.MonthOf(m.Start().AddDate(0, 0, -1)) }

// hear counts a charge whose request has come to an end, of this month or the last one.
func (c *Credits) hear(r Receipt) {
	if now := c.calendar.Load().month; now == 0 || r.Month < before(now) {
		return
	}
	c.metrics.heard.Add(float64(r.Cost))
	c.mu.Lock()
	defer c.mu.Unlock()
	u := month{r.Month, user{r.User, r.Account}}
	h := c.heard[u]
	if h == nil {
		if len(c.heard) >= mostPending {
			c.metrics.dropped.Inc()
			return
		}
		h = &ledger.Heard{Month: r.Month, User: r.User, Account: r.Account}
		c.heard[u] = h
	}
	h.Credits += r.Cost
	c.news[u] = true
}

// collectNews puts what was heard and what is to be given back into a report.
func (c *Credits) collectNews(r *ledger.Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for u := range c.news {
		if len(r.Heard) >= mostAsks {
			break
		}
		r.Heard = append(r.Heard, *c.heard[u])
		delete(c.news, u)
	}
	for charge, refund := range c.refunds {
		if len(r.Refunds) >= mostRefunds {
			break
		}
		r.Refunds = append(r.Refunds, refund)
		delete(c.refunds, charge)
	}
}

// unposted takes back what collectNews has put into a report that failed.
func (c *Credits) unposted(r *ledger.Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range r.Heard {
		if u := (month{h.Month, user{h.User, h.Account}}); c.heard[u] != nil {
			c.news[u] = true
		}
	}
	for _, refund := range r.Refunds {
		c.refunds[refund.Charge] = refund
	}
}

// posted tells those who wait for a refund, and has the pools to which something came back asked again.
func (c *Credits) posted(r *ledger.Report, result *ledger.Result) {
	fresh := map[string]bool{}
	for _, refund := range result.Refunds {
		fresh[refund.Charge] = true
	}
	c.mu.Lock()
	for _, refund := range r.Refunds {
		if done := c.watched[refund.Charge]; done != nil {
			done <- fresh[refund.Charge]
			delete(c.watched, refund.Charge)
		}
	}
	c.mu.Unlock()
	for _, refund := range result.Refunds {
		for _, o := range []owner{{authz.PoolUser, refund.User}, {authz.PoolAccount, refund.Account}} {
			s := c.shard(o.name)
			s.mu.Lock()
			if w := s.wallets[o]; w != nil {
				w.empty = false
				w.others -= refund.Credits
			}
			s.mu.Unlock()
		}
	}
}

// forget drops what was heard of the months before the last one.
func (c *Credits) forget(now authz.Month) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for u := range c.heard {
		if u.month < before(now) {
			delete(c.heard, u)
			delete(c.news, u)
		}
	}
}

// pressing reports whether somebody waits for a refund.
func (c *Credits) pressing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.watched) > 0
}
