package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// history returns the events of the example, in the order in which they happened.
func history(t *testing.T) (all []event) {
	t.Helper()
	files, err := filepath.Glob("events/*.json")
	if err != nil || len(files) != 7 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var e event
		if err := json.Unmarshal(text, &e); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// enter enters events, and returns the account's state after them.
func enter(t *testing.T, b *books, events ...event) [2]string {
	t.Helper()
	for _, e := range events {
		if _, err := b.take(e); err != nil {
			t.Fatal(err)
		}
	}
	plan, status := b.state("acme")
	return [2]string{plan, status}
}

// Each event of the example has its effect when it arrives in time.
func TestEachEventHasItsEffect(t *testing.T) {
	var b books
	want := [][2]string{{"free", "active"}, {"pro", "active"}, {"pro", "active"}, {"pro", "suspended"}, {"pro", "active"}, {"pro", "cancelled"}, {"pro", "active"}}
	for i, e := range history(t) {
		if got := enter(t, &b, e); got != want[i] {
			t.Errorf("after %s: %v, want %v", e.ID, got, want[i])
		}
	}
}

// Once an event is known, no event that happened before it changes anything, whenever and however
// often it arrives; all events in any order end in the same books.
func TestTheOrderOfArrivalDoesNotMatter(t *testing.T) {
	events := history(t)
	var straight books
	enter(t, &straight, events...)
	for range 2000 {
		shuffled := append(append([]event{}, events...), events[rand.IntN(len(events)):]...)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		var b books
		enter(t, &b, shuffled...)
		if diff := cmp.Diff(straight, b); diff != "" {
			var order []string
			for _, e := range shuffled {
				order = append(order, e.ID)
			}
			t.Fatalf("%v: in order (-) and so (+):\n%s", order, diff)
		}
	}
}
