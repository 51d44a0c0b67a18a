package operations

import (
	"context"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// ReplicaList is the list of running replicas.
type ReplicaList struct {
	Epoch      lease.Epoch `json:"epoch"` // of the database
	RateLimits RateLimits  `json:"rate_limits"`
	Replicas   []Replica   `json:"replicas"`
}

// Replica is a replica and its state.
type Replica struct {
	feed.ReplicaStatus
	State       string `json:"state"`
	LeaseMS     int64  `json:"lease_ms"`
	LeaseLeftMS *int64 `json:"lease_left_ms"` // null if unknown
}

// RateLimits is the scope of rate limits.
type RateLimits struct {
	Valkey    bool `json:"valkey"`
	DividedBy int  `json:"divided_by"` // 1: limits are exact
}

func limitsOf(c config.Config, all []feed.ReplicaStatus) RateLimits {
	limits := RateLimits{Valkey: c.Redis != "", DividedBy: 1}
	if limits.Valkey {
		return limits
	}
	live := 0
	for _, r := range all {
		if r.Live() {
			live++
		}
	}
	limits.DividedBy = max(1, live)
	return limits
}

// ListReplicas lists the running replicas. How they count rate limits is not on their list: it
// follows from the configuration, which has to be that of the replicas.
func ListReplicas(ctx context.Context, db *store.DB, c config.Config) (ReplicaList, error) {
	all, newest, err := feed.New(db).Replicas(ctx)
	if err != nil {
		return ReplicaList{}, err
	}
	list := ReplicaList{Epoch: newest, RateLimits: limitsOf(c, all), Replicas: make([]Replica, len(all))}
	for i, r := range all {
		one := Replica{ReplicaStatus: r, State: "silent", LeaseMS: r.Life.Milliseconds()}
		if r.Live() {
			one.State = "live"
		}
		if d, ok := r.Left(); ok {
			ms := d.Milliseconds()
			one.LeaseLeftMS = &ms
		}
		list.Replicas[i] = one
	}
	return list, nil
}
