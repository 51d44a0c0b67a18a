package ledger

import (
	"errors"
	"testing"
	"time"

	"github.com/keyporter/keyporter/usage"
)

// A report changes a pool and the block of its process as each row says.
func TestPost(t *testing.T) {
	const month = usage.Month(202611)
	now := month.Start().Add(time.Hour)
	user, account := Pool{Month: month, Kind: usage.PoolUser, Name: "ada"}, Pool{Month: month, Kind: usage.PoolAccount, Name: "acme"}
	payer := Payer{Month: month, Kind: usage.PoolUser, User: "ada", Account: "acme"}
	for _, row := range []struct {
		name     string
		balance  Balance // of the user's pool
		block    Block
		ask      Ask // without its pool
		replicas int
		refund   int64

		want   Balance
		taken  int64 // by the process, in total
		refuse error
	}{
		{name: "a first need is granted in full",
			balance: Balance{Sells: true, Plan: 100}, ask: Ask{Need: 10},
			want: Balance{Leased: 10, Granted: 100}, taken: 10},
		{name: "no need is granted beyond the limit",
			balance: Balance{Sells: true, Plan: 5}, ask: Ask{Need: 10},
			want: Balance{Leased: 5, Granted: 5}, taken: 5},
		{name: "an extra grant raises the limit",
			balance: Balance{Sells: true, Plan: 5, Extra: 3}, ask: Ask{Need: 10},
			want: Balance{Leased: 8, Granted: 8}, taken: 8},
		{name: "a reserve takes a quarter of what is free",
			balance: Balance{Sells: true, Plan: 100}, ask: Ask{Want: 1000}, replicas: 1,
			want: Balance{Leased: 25, Granted: 100}, taken: 25},
		{name: "with four replicas, a sixteenth",
			balance: Balance{Sells: true, Plan: 160}, ask: Ask{Want: 1000}, replicas: 4,
			want: Balance{Leased: 10, Granted: 160}, taken: 10},
		{name: "a use moves credits from the block to the used ones",
			balance: Balance{Sells: true, Plan: 100, Leased: 10, Granted: 100}, block: Block{Taken: 10}, ask: Ask{Used: 4, Keep: 10},
			want: Balance{Used: 4, Leased: 6, Granted: 100}, taken: 10},
		{name: "what is not kept is free again",
			balance: Balance{Sells: true, Plan: 100, Leased: 10, Granted: 100}, block: Block{Taken: 10}, ask: Ask{Used: 4, Keep: 4},
			want: Balance{Used: 4, Granted: 100}, taken: 4},
		{name: "a repeated report changes nothing",
			balance: Balance{Sells: true, Plan: 100, Used: 4, Leased: 6, Granted: 100}, block: Block{Taken: 10, Used: 4}, ask: Ask{Used: 4, Keep: 10},
			want: Balance{Used: 4, Leased: 6, Granted: 100}, taken: 10},
		{name: "a refund frees credits for a need of the same report",
			balance: Balance{Sells: true, Plan: 10, Used: 10, Granted: 10}, block: Block{Taken: 10, Used: 10}, ask: Ask{Used: 10, Keep: 10, Need: 3}, refund: 2,
			want: Balance{Used: 10, Refunded: 2, Leased: 2, Granted: 10}, taken: 12},
		{name: "a lowered limit takes nothing back",
			balance: Balance{Sells: true, Plan: 5, Used: 8, Leased: 2, Granted: 10}, block: Block{Taken: 10, Used: 8}, ask: Ask{Used: 8, Keep: 10, Need: 1},
			want: Balance{Used: 8, Leased: 2, Granted: 10}, taken: 10},
		{name: "a plan that takes no credits from the pool grants none, and counts the use",
			balance: Balance{Leased: 3, Granted: 3}, block: Block{Taken: 3}, ask: Ask{Used: 2, Keep: 2, Need: 5},
			want: Balance{Used: 2, Granted: 2}, taken: 2},
		{name: "a block that the database has lost counts by its use",
			balance: Balance{Sells: true, Plan: 100}, ask: Ask{Used: 7, Keep: 20},
			want: Balance{Used: 7, Granted: 100}, taken: 7},
		{name: "a use that goes back is refused",
			balance: Balance{Sells: true, Plan: 100, Used: 4, Leased: 6, Granted: 100}, block: Block{Taken: 10, Used: 4}, ask: Ask{Used: 3, Keep: 10},
			want: Balance{Used: 4, Leased: 6, Granted: 100}, taken: 10, refuse: ErrBackwards},
	} {
		t.Run(row.name, func(t *testing.T) {
			balance := row.balance
			b := Book{
				Now: now, Replicas: max(1, row.replicas), Pools: map[Pool]*Balance{user: &balance, account: {}},
				Blocks: map[Pool]Block{user: row.block}, Usages: map[Payer]int64{payer: row.block.Used},
			}
			row.ask.Pool = user
			report := Report{Asks: []Ask{row.ask}, Usages: []Usage{{Payer: payer, Used: row.ask.Used}}}
			var parts []Part
			if row.refund > 0 {
				parts = []Part{{Refund{Payer: payer, Charge: "h-1", Total: row.refund, Cause: CauseSettled}, row.refund}}
			}
			grants, err := b.Post(report, parts)
			want := row.want
			want.Sells, want.Plan, want.Extra = balance.Sells, balance.Plan, balance.Extra
			if !errors.Is(err, row.refuse) || balance != want || b.Blocks[user].Taken != row.taken {
				t.Errorf("%v: %+v, %d taken; want %+v, %d", err, balance, b.Blocks[user].Taken, want, row.taken)
			}
			if err == nil && grants[0].Taken != row.taken {
				t.Errorf("the answer grants %d, want %d", grants[0].Taken, row.taken)
			}
		})
	}
}

// A report whose blocks and users do not add up changes nothing.
func TestAReportMustAddUp(t *testing.T) {
	month := usage.Month(202611)
	pool := Pool{Month: month, Kind: usage.PoolUser, Name: "ada"}
	b := Book{Now: month.Start(), Pools: map[Pool]*Balance{pool: {Sells: true, Plan: 100}}, Blocks: map[Pool]Block{}, Usages: map[Payer]int64{}}
	if _, err := b.Post(Report{Asks: []Ask{{Pool: pool, Used: 5, Keep: 5}}}, nil); !errors.Is(err, ErrUnbalanced) || b.Pools[pool].Used != 0 {
		t.Errorf("%v, %+v", err, b.Pools[pool])
	}
}

// Credits of last month are granted to nobody.
func TestNoCreditsOfAnotherMonth(t *testing.T) {
	pool := Pool{Month: 202610, Kind: usage.PoolUser, Name: "ada"}
	b := Book{Now: usage.Month(202611).Start(), Pools: map[Pool]*Balance{pool: {Sells: true, Plan: 100}}, Blocks: map[Pool]Block{}, Usages: map[Payer]int64{}}
	if grants, err := b.Post(Report{Asks: []Ask{{Pool: pool, Need: 5, Want: 5}}}, nil); err != nil || grants[0].Taken != 0 {
		t.Errorf("%v, %+v", err, grants)
	}
}
