package admin

import (
	"iter"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/keyporter/keyporter/bearer"
)

// Send answers with a list of numbers.
func Send(w http.ResponseWriter, r *http.Request, rows iter.Seq2[int, error], asCSV bool) error {
	list, err := newStream(rows)
	if err != nil {
		return err
	}
	if asCSV {
		list.asCSV([]string{"number"}, func(n int) []string { return []string{strconv.Itoa(n)} })
	}
	s := &server{table: table(), metrics: newMetrics(nil, nil), config: Config{Log: slog.New(slog.DiscardHandler)}}
	s.send(w, &request{Request: r, caller: bearer.Caller{Name: "one"}}, list)
	return nil
}
