package admin

import (
	"iter"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/keyporter/keyporter/bearer"
)

// ReaderTime is the time of a reader for each 32 KiB.
const ReaderTime = 300 * time.Millisecond

// Send answers with a list of numbers.
func Send(w http.ResponseWriter, r *http.Request, rows iter.Seq2[int, error], asCSV bool) error {
	list, err := newStream(rows)
	if err != nil {
		return err
	}
	if asCSV {
		list.asCSV([]string{"number"}, func(n int) []string { return []string{strconv.Itoa(n)} })
	}
	s := &server{table: table(), pace: pace{ReaderTime, time.Hour}, metrics: newMetrics(nil, nil), config: Config{Log: slog.New(slog.DiscardHandler)}}
	s.send(w, &request{Request: r, caller: bearer.Caller{Name: "one"}}, list)
	return nil
}
