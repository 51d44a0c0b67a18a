package operations

import (
	"context"

	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/lease"
)

// Replicas are the running replicas of the service.
type Replicas struct{ feed *feed.Feed }

// Replicas returns the operations on replicas.
func (o Operator) Replicas() Replicas { return Replicas{feed.New(o.db)} }

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

// limitsOf returns how replicas count: with Valkey together, else each of the live ones a share.
func limitsOf(valkey bool, all []feed.ReplicaStatus) RateLimits {
	if valkey {
		return RateLimits{Valkey: true, DividedBy: 1}
	}
	live := 0
	for _, r := range all {
		if r.Live() {
			live++
		}
	}
	return RateLimits{DividedBy: max(1, live)}
}

// List lists the running replicas. The argument valkey says that they count rate limits together in
// Valkey: their list does not, so that it has to come from their configuration.
func (r Replicas) List(ctx context.Context, valkey bool) (ReplicaList, error) {
	all, newest, err := r.feed.Replicas(ctx)
	if err != nil {
		return ReplicaList{}, err
	}
	list := ReplicaList{Epoch: newest, RateLimits: limitsOf(valkey, all), Replicas: make([]Replica, len(all))}
	for i, one := range all {
		list.Replicas[i] = newReplica(one)
	}
	return list, nil
}

func newReplica(status feed.ReplicaStatus) Replica {
	r := Replica{ReplicaStatus: status, State: "silent", LeaseMS: status.Life.Milliseconds()}
	if status.Live() {
		r.State = "live"
	}
	if d, ok := status.Left(); ok {
		ms := d.Milliseconds()
		r.LeaseLeftMS = &ms
	}
	return r
}

// AcceptedHistory says that replicas go on with the history of the database.
type AcceptedHistory struct {
	Accepted bool `json:"accepted"`
}

// AcceptHistory lets replicas resume after the database lost changes.
func (r Replicas) AcceptHistory(ctx context.Context) (Committed[AcceptedHistory], error) {
	done, err := r.feed.AcceptHistory(ctx)
	return committed(AcceptedHistory{true}, feed.Confirmation{Confirmation: done}, err)
}
