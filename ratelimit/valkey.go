package ratelimit

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/valkey-io/valkey-go"
)

// The scripts that run in Valkey, each preceded by the clock.
var (
	//go:embed clock.lua
	clockLua string
	//go:embed admit.lua
	admitLua string
	//go:embed peek.lua
	peekLua string
	//go:embed release.lua
	releaseLua string
	//go:embed add.lua
	addLua string
	//go:embed identity.lua
	identityLua string
	//go:embed probe.lua
	probeLua string
)

// Valkey keeps the logs of all users in a Valkey or Redis that several replicas share. Requests
// that wait at the same time share one script, which counts by the server's clock. [Shared] makes a
// log for several replicas of it. Its methods are safe for concurrent use.
type Valkey struct {
	option                                       valkey.ClientOption
	name                                         string // of this process, random
	batches                                      *batches
	admit, peek, release, add, identity, probing *valkey.Lua

	mu     sync.RWMutex
	client valkey.Client // guarded by mu; nil: not connected yet
}

// connectTimeout bounds connecting, and the silence of a connection that is waited for.
const connectTimeout = time.Second

// errURL gives no details, because they may contain a password.
var errURL = errors.New("want redis://USER:PASSWORD@HOST:PORT/NUMBER, or rediss:// for TLS")

// NewValkey returns a Valkey for a URL such as redis://user:password@host:6379/0, rediss://host for
// TLS, or redis://sentinel:26379?master_set=name. [Valkey.Identity] connects it. The caller must
// close it.
func NewValkey(address string) (*Valkey, error) {
	option, err := valkey.ParseURL(address)
	if err != nil {
		return nil, errURL
	}
	option.DisableCache = true // nothing is read twice
	option.DisableRetry = true // a script that was sent may have run
	// One connection: [Shared] relies on the connection that it looked at. With several, questions
	// were lost on the others after each return.
	option.PipelineMultiplex = -1
	option.ForceSingleClient = option.Sentinel.MasterSet == ""
	option.ConnWriteTimeout = connectTimeout
	option.Dialer.Timeout = connectTimeout
	option.Sentinel.TopologyRefreshInterval = 5 * connectTimeout // an announcement may be missed
	v := &Valkey{option: option, name: rand.Text()}
	v.batches = newBatches(v.count)
	v.load(clockLua)
	return v, nil
}

// load prepares the scripts for a clock.
func (v *Valkey) load(clock string) {
	v.admit, v.peek, v.release = valkey.NewLuaScript(clock+admitLua), valkey.NewLuaScript(clock+peekLua), valkey.NewLuaScript(clock+releaseLua)
	v.add, v.identity, v.probing = valkey.NewLuaScript(clock+addLua), valkey.NewLuaScript(clock+identityLua), valkey.NewLuaScript(clock+probeLua)
}

// CheckValkeyURL returns an error if [NewValkey] would. The error does not contain the URL.
func CheckValkeyURL(address string) error {
	_, err := valkey.ParseURL(address)
	u, wrong := url.Parse(address)
	if err != nil || wrong != nil || !slices.Contains([]string{"redis", "rediss", "valkey", "valkeys"}, u.Scheme) || u.Hostname() == "" {
		return errURL
	}
	return nil
}

// MaskValkeyURL returns a URL without any parts that may contain a password.
func MaskValkeyURL(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Opaque != "" || u.Fragment != "" {
		return "…" // a password with an unescaped / ? or #
	}
	if u.User != nil {
		u.User = url.User("xxxxx")
	}
	if u.RawQuery != "" {
		u.RawQuery = "…"
	}
	return u.String()
}

var errNotConnected = errors.New("not connected yet")

// connected returns the client, or errNotConnected.
func (v *Valkey) connected() (valkey.Client, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.client == nil {
		return nil, errNotConnected
	}
	return v.client, nil
}

// connect returns the client, and makes one if there is none. It may take a few seconds.
func (v *Valkey) connect() (valkey.Client, error) {
	if client, err := v.connected(); err == nil {
		return client, nil
	}
	client, err := valkey.NewClient(v.option)
	if err != nil {
		if client != nil {
			client.Close()
		}
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.client = client
	return client, nil
}

// Close ends the connections. [Valkey.Identity] makes new ones.
func (v *Valkey) Close() {
	v.mu.Lock()
	client := v.client
	v.client = nil
	v.mu.Unlock()
	if client != nil {
		client.Close() // may take a second
	}
}

const identityKey = "keyporter:identity"

// logKey is the key of a user's log.
func logKey(user string) string { return "keyporter:{" + user + "}:log" }

func recordKey(user, request string) string { return "keyporter:{" + user + "}:check:" + request }

// errForgotten says that the server's identity differs from the caller's.
var errForgotten = errors.New("the server has forgotten what was counted")

// Admit counts a request, unless the limit was reached in the window before it, on a server with
// the given identity. It waits at most timeout until it may ask, and at most timeout again for the
// answer. It does not stop when the caller leaves, because a script that was sent may have run.
func (v *Valkey) Admit(timeout time.Duration, identity string, a Attempt) (Verdict, error) {
	return v.batches.admit(timeout, identity, a)
}

// count counts the requests of a batch.
func (v *Valkey) count(ctx context.Context, b *batch) ([]Verdict, error) {
	client, err := v.connected()
	if err != nil {
		return nil, err
	}
	keys, args := []string{identityKey}, []string{b.identity, milliseconds(maxRemembered)}
	for i := range b.attempts {
		a := &b.attempts[i]
		keys = append(keys, logKey(a.User), recordKey(a.User, a.ID))
		args = append(args, strconv.FormatInt(int64(a.Limit), 10), microseconds(a.Window), a.ID, a.Charge.Name, milliseconds(a.remembered()))
	}
	answer, err := v.admit.Exec(ctx, client, keys, args).ToArray()
	if err != nil {
		return nil, fmt.Errorf("asking Valkey: %w", err)
	}
	return verdictsOf(answer, len(b.attempts))
}

// Peek returns what Admit would, by the log as it is. It changes nothing.
func (v *Valkey) Peek(ctx context.Context, a Attempt) (Verdict, error) {
	client, err := v.connected()
	if err != nil {
		return Verdict{}, err
	}
	answer, err := v.peek.Exec(ctx, client, []string{logKey(a.User)}, []string{strconv.FormatInt(int64(a.Limit), 10), microseconds(a.Window)}).AsIntSlice()
	if err != nil {
		return Verdict{}, fmt.Errorf("asking Valkey: %w", err)
	}
	if len(answer) != 2 {
		return Verdict{}, fmt.Errorf("asking Valkey: %d values in the answer, want 2", len(answer))
	}
	left := max(0, int64(a.Limit)-answer[0])
	return Verdict{Admitted: left > 0, Remaining: left, Used: answer[0], Reset: time.Duration(answer[1]) * time.Microsecond}, nil
}

// verdictsOf reads the answer of admit.lua about n requests.
func verdictsOf(answer []valkey.ValkeyMessage, n int) ([]Verdict, error) {
	const each = 4
	if len(answer) == 1 {
		return nil, errForgotten
	}
	if len(answer) != each*n {
		return nil, fmt.Errorf("asking Valkey: %d values in the answer, want %d", len(answer), each*n)
	}
	all := make([]Verdict, n)
	for i := range all {
		one := answer[each*i:]
		kind, err1 := one[0].AsInt64()
		remaining, err2 := one[1].AsInt64()
		reset, err3 := one[2].AsInt64()
		charge, err4 := one[3].ToString()
		if err := cmp.Or(err1, err2, err3, err4); err != nil {
			return nil, fmt.Errorf("asking Valkey: %w", err)
		}
		all[i] = Verdict{
			Admitted: kind > 0, Duplicate: kind == 2, Charge: ChargeRef{Name: charge},
			Remaining: remaining, Reset: time.Duration(reset) * time.Microsecond,
		}
	}
	return all, nil
}

// Release takes a request back, unless it was admitted twice: then it stands.
func (v *Valkey) Release(ctx context.Context, user, request string) (stands bool, err error) {
	client, err := v.connected()
	if err != nil {
		return false, err
	}
	keys := []string{logKey(user), recordKey(user, request)}
	answer, err := v.release.Exec(ctx, client, keys, []string{request}).AsInt64()
	if err != nil {
		return false, fmt.Errorf("asking Valkey: %w", err)
	}
	return answer == 1, nil
}

// Identity returns the name of the server's memory, and how long the server has kept it. It
// connects if necessary, and must not be called concurrently.
func (v *Valkey) Identity(ctx context.Context) (name string, age time.Duration, err error) {
	client, err := v.connect()
	if err != nil {
		return "", 0, fmt.Errorf("connecting to Valkey: %w", err)
	}
	answer, err := v.identity.Exec(ctx, client, []string{identityKey}, []string{rand.Text()}).ToArray()
	if _, refused := valkey.IsValkeyErr(err); refused {
		v.Close() // a primary that became a standby stays one: look for the new one
	}
	if err != nil {
		return "", 0, fmt.Errorf("asking Valkey: %w", err)
	}
	if len(answer) != 2 {
		return "", 0, fmt.Errorf("asking Valkey: %d values in the answer, want 2", len(answer))
	}
	name, err1 := answer[0].ToString()
	since, err2 := answer[1].AsInt64()
	return name, time.Duration(since) * time.Microsecond, errors.Join(err1, err2)
}

// Add counts requests that were admitted without Valkey, by user; now is the time on the clock of
// the admissions. A repeated report counts once. The server answers nobody else while it counts.
func (v *Valkey) Add(ctx context.Context, now time.Duration, users map[string][]admission) error {
	client, err := v.connected()
	if err != nil {
		return err
	}
	var calls []valkey.LuaExec
	for user, all := range users {
		calls = append(calls, v.replayCall(user, now, all))
	}
	for _, answer := range v.add.ExecMulti(ctx, client, calls...) {
		if err := answer.Error(); err != nil {
			return fmt.Errorf("telling Valkey what was admitted: %w", err)
		}
	}
	return nil
}

// replayCall returns the call that replays a user's admissions, at least one, with the window of
// the newest.
func (v *Valkey) replayCall(user string, now time.Duration, all []admission) valkey.LuaExec {
	call := valkey.LuaExec{Keys: []string{logKey(user)}, Args: []string{microseconds(all[len(all)-1].window)}}
	for _, one := range all {
		call.Keys = append(call.Keys, recordKey(user, one.request))
		call.Args = append(call.Args, microseconds(now-one.at), v.name+":"+strconv.FormatUint(one.number, 10))
	}
	return call
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
func microseconds(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
