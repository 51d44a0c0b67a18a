package ratelimit

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// pieceSize is the size that ends a piece of a snapshot, in bytes.
const pieceSize = 1 << 20

// Save hands out a snapshot of all logs, in pieces, to be kept while no process runs. It stops at
// the first error. clock is the keeper's clock; Save reads it after it has fixed the ages, so that
// nothing seems older than it is.
//
// A piece is its time in Unix microseconds, and for each user the name, the window, the number of
// requests that count, and the age of each, oldest first. All numbers are varints, all times
// microseconds.
func (m *Memory) Save(clock func() (time.Time, error), keep func(piece []byte) error) error {
	at := m.clock()
	now, err := clock()
	if err != nil {
		return err
	}
	header := binary.AppendVarint(nil, now.UnixMicro())
	piece := append([]byte(nil), header...)
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		for user, r := range s.users {
			// A request admitted since then has age 0, not a negative one.
			if now := r.expire(at, r.window()); r.n() > 0 {
				piece = r.append(piece, user, now)
			}
		}
		s.mu.Unlock()
		if len(piece) > pieceSize || i == shards-1 && len(piece) > len(header) {
			if err := keep(piece); err != nil {
				return err
			}
			piece = append(piece[:0], header...)
		}
	}
	return nil
}

func (r slidingLog) append(b []byte, user string, now time.Duration) []byte {
	b = binary.AppendUvarint(b, uint64(len(user)))
	b = append(b, user...)
	b = binary.AppendUvarint(b, uint64(r.window().Microseconds()))
	b = binary.AppendUvarint(b, uint64(r.n()))
	for i := range r.n() {
		b = binary.AppendUvarint(b, uint64((now - *r.at(i)).Microseconds()))
	}
	return b
}

// errDamaged says that a piece of a snapshot cannot be read.
var errDamaged = errors.New("the saved rate log is damaged")

// Restore counts the requests that an earlier process admitted. It must run before this process
// admits anything. Several snapshots add up. If the clock was set back since the snapshot, no time
// is taken to have passed.
func (m *Memory) Restore(now time.Time, piece []byte) error {
	p := snapshotReader{piece}
	made, n := binary.Varint(p.rest)
	if n <= 0 {
		return errDamaged
	}
	p.rest = p.rest[n:]
	gone := max(0, now.Sub(time.UnixMicro(made)))
	for len(p.rest) > 0 {
		user, window, ages, ok := p.user()
		if !ok {
			return errDamaged
		}
		m.restore(user, window, ages, gone)
	}
	return nil
}

// restore adds to the known log of a user, because several stopped processes may have admitted
// requests of one user. It keeps requests that may be outside the current window: they go with the
// next request, or with the user.
func (m *Memory) restore(user string, window time.Duration, ages []time.Duration, gone time.Duration) {
	now := m.clock()
	s, _ := m.shard(user, "")
	s.mu.Lock()
	defer s.mu.Unlock()
	var times []time.Duration // a time before this clock's start is negative
	if known := s.users[user]; known != nil {
		window = max(window, known.window())
		for i := range known.n() {
			times = append(times, *known.at(i))
		}
	}
	for _, age := range ages {
		times = append(times, now-age-gone)
	}
	if len(times) == 0 {
		return
	}
	slices.Sort(times)
	var r slidingLog
	for _, at := range times {
		r = r.add(at, window, 0)
	}
	s.users[user] = r
}

// snapshotReader reads a piece.
type snapshotReader struct{ rest []byte }

func (p *snapshotReader) number(most uint64) (uint64, bool) {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 || v > most {
		return 0, false
	}
	p.rest = p.rest[n:]
	return v, true
}

// user reads the log of one user.
func (p *snapshotReader) user() (name string, window time.Duration, ages []time.Duration, ok bool) {
	const longest = uint64(25 * time.Hour / time.Microsecond)
	length, ok := p.number(uint64(len(p.rest)))
	if !ok || length > uint64(len(p.rest)) {
		return "", 0, nil, false
	}
	name, p.rest = string(p.rest[:length]), p.rest[length:]
	micros, ok1 := p.number(longest)
	n, ok2 := p.number(uint64(len(p.rest)))
	if !ok1 || !ok2 {
		return "", 0, nil, false
	}
	for range n {
		age, ok := p.number(longest)
		if !ok {
			return "", 0, nil, false
		}
		ages = append(ages, time.Duration(age)*time.Microsecond)
	}
	return name, time.Duration(micros) * time.Microsecond, ages, true
}
