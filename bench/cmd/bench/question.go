package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/keyporter/keyporter/bench/load"
)

// question is a request to an authorizer, and its required answer.
type question struct {
	server *server
	answer string   // name in the table
	path   string   // of a GET
	keys   []string // sent in turn
	status int      // 200 means allow
	code   string   // in the body of a denial
	joined bool     // send joined headers, and the key as a Bearer token
}

// dialStraight connects to the authorizer like an Envoy: 4 connections with 32 streams.
func (q question) dialStraight(ctx context.Context, alone bool) (asker, error) {
	return load.DialChecks(ctx, q.config(alone))
}

// manyKeys is the number of keys from which all connections together send the keys in turn,
// starting at a random one, so that each is sent about equally often. With fewer keys, each
// connection sends all of them.
const manyKeys = 1000

// readAll asks a server that has just started until all keys are in memory. In such a burst some
// Checks may time out with a 503, and are retried.
func (q question) readAll(ctx context.Context) error {
	config := q.config(false)
	config.Also = http.StatusServiceUnavailable
	return q.server.readKeys(ctx, config)
}

// readKeys asks a Keyporter for all keys of a load until they are in memory, and then for as many
// once more: entries that a change has touched are still in memory, but are invalid.
func (s *server) readKeys(ctx context.Context, config load.ChecksConfig) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readPatience, fmt.Errorf("not all keys were in memory after %v", readPatience))
	defer cancel()
	const slice = 100 * time.Millisecond // short, because users have a limit
	return with(ctx, config, func(c *load.Checks) error {
		for left := len(config.Keys); left > 0; {
			result, err := c.Ask(ctx, slice)
			if err != nil {
				return cmp.Or(context.Cause(ctx), err)
			}
			entries, err := s.metric(ctx, cacheEntries)
			if err != nil {
				return err
			}
			if int(entries) >= len(config.Keys) {
				left -= len(result.Latencies)
			}
		}
		return nil
	})
}

// readPatience exceeds the time for a million keys.
const readPatience = 10 * time.Minute

// cacheEntries is Keyporter's metric for the number of keys in memory.
const cacheEntries = `keyporter_cache_entries{cache="keys"}`

func (q question) config(alone bool) load.ChecksConfig {
	config := load.ChecksConfig{Addr: q.server.grpc, Checks: q.checks, Answer: load.Answer(q.status)}
	if len(q.keys) >= manyKeys {
		one := q
		one.keys = q.keys[:1]
		config.Checks, config.Keys, config.Begin = one.checks, q.keys, rand.IntN(len(q.keys))
	}
	if q.status == http.StatusOK {
		config.Answer = load.Allow
	}
	if alone {
		config.Connections, config.Streams = 1, 1
	}
	return config
}

func (q question) checks() ([]*load.Check, error) {
	var checks []*load.Check
	newCheck := load.NewCheck
	if q.joined {
		newCheck = load.NewJoinedCheck
	}
	for _, key := range q.keys {
		check, err := newCheck(q.path, key)
		if err != nil {
			return nil, err
		}
		checks = append(checks, check)
	}
	return checks, nil
}

// dialEnvoy connects to an Envoy with 32 connections.
func (q question) dialEnvoy(ctx context.Context, front string, alone bool) (asker, error) {
	config := load.RequestsConfig{Addr: front, Requests: q.requests(), Status: q.status, Body: q.code}
	if alone {
		config.Connections = 1
	}
	return load.DialRequests(ctx, config)
}

func (q question) requests() [][]byte {
	var requests [][]byte
	for _, key := range q.keys {
		requests = append(requests, fmt.Appendf(nil, "GET %s HTTP/1.1\r\nhost: api.example.com\r\n"+
			"user-agent: Mozilla/5.0 (X11; Linux x86_64) example-client/3.1\r\naccept: application/json\r\n"+
			"accept-encoding: gzip, deflate, br\r\nx-api-key: %s\r\n\r\n", q.path, key))
	}
	return requests
}
