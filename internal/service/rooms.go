package service

import (
	"context"

	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
	"github.com/keyporter/keyporter/store/feed"
	"github.com/keyporter/keyporter/store/ledger"
	"github.com/keyporter/keyporter/store/requests"
)

// rooms are the rooms of the open database.
type rooms struct {
	db       *store.DB
	keys     *directory.Keys
	sessions *directory.Sessions
	lookups  *directory.Lookups
	feed     *feed.Feed
	ledger   *ledger.Ledger
	saved    *requests.Log // the logs of requests in the database
}

func roomsOf(db *store.DB) rooms {
	return rooms{db, directory.NewKeys(db), directory.NewSessions(db), directory.NewLookups(db), feed.New(db), ledger.New(db), requests.New(db)}
}

// keep keeps the connections open until ctx ends.
func (r rooms) keep(ctx context.Context) { r.db.Keep(ctx, r.lookups.Try) }

// tidy deletes old records, but none of requests.
func (r rooms) tidy(ctx context.Context) error {
	if err := r.feed.Tidy(ctx); err != nil {
		return err
	}
	if err := r.sessions.Tidy(ctx); err != nil {
		return err
	}
	return r.ledger.Tidy(ctx)
}
