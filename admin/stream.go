package admin

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"io"
	"iter"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"
)

const csvType = "text/csv"

// streamed is a result of any length, which is written while it is read. It is a [stream].
type streamed interface {
	contentType() string
	write(io.Writer) error
	item() reflect.Type
	close()
}

// stream is a list that begins without an error. An error further on breaks its answer off.
type stream[T any] struct {
	first T
	some  bool
	next  func() (T, error, bool)
	stop  func()

	columns []string // of CSV; nil for JSON
	cells   func(T) []string
}

// newStream reads the first row, so that a query that is wrong is a problem and no broken answer.
func newStream[T any](rows iter.Seq2[T, error]) (*stream[T], error) {
	next, stop := iter.Pull2(rows)
	first, err, some := next()
	if err != nil {
		stop()
		return nil, err
	}
	return &stream[T]{first: first, some: some, next: next, stop: stop}, nil
}

// asCSV makes the rows lines of CSV after one with the names of the columns.
func (s *stream[T]) asCSV(columns []string, cells func(T) []string) {
	s.columns, s.cells = columns, cells
}

func (s *stream[T]) item() reflect.Type { return reflect.TypeFor[T]() }

func (s *stream[T]) close() { s.stop() }

func (s *stream[T]) contentType() string {
	if s.columns != nil {
		return csvType + "; charset=utf-8; header=present"
	}
	return jsonType
}

// all lists the rows.
func (s *stream[T]) all() iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for row, err, some := s.first, error(nil), s.some; some; row, err, some = s.next() {
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}

// write writes all rows.
func (s *stream[T]) write(to io.Writer) error {
	if s.columns != nil {
		return s.writeCSV(csv.NewWriter(to))
	}
	w := bufio.NewWriter(to)
	between := `{"items": [`
	for row, err := range s.all() {
		if err != nil {
			return err
		}
		text, err := json.Marshal(row)
		if err != nil {
			return err
		}
		_, _ = w.WriteString(between + "\n")
		if _, err := w.Write(text); err != nil {
			return err
		}
		between = ","
	}
	if between != "," {
		_, _ = w.WriteString(between)
	}
	_, _ = w.WriteString("\n]}\n")
	return w.Flush()
}

func (s *stream[T]) writeCSV(w *csv.Writer) error {
	_ = w.Write(s.columns)
	for row, err := range s.all() {
		if err != nil {
			return err
		}
		if err := w.Write(s.cells(row)); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

// pace is how fast the reader of a list must be, so that a slow one does not keep its place.
type pace struct {
	each  time.Duration // for each pacePart
	whole time.Duration // for the whole list
}

// pacePart is the number of bytes after which a reader has more time.
const pacePart = 32 << 10

// writer returns a writer whose time grows with what is written. It replaces the time limit of the
// server.
func (p pace) writer(w http.ResponseWriter) io.Writer {
	paced := &pacedWriter{ResponseWriter: w, pace: p, end: time.Now().Add(p.whole)}
	paced.extend()
	return paced
}

type pacedWriter struct {
	http.ResponseWriter
	pace
	end  time.Time
	left int // bytes until the next extension
}

// Write implements [io.Writer].
func (w *pacedWriter) Write(part []byte) (int, error) {
	n, err := w.ResponseWriter.Write(part)
	if w.left -= n; w.left <= 0 && err == nil {
		w.extend()
	}
	return n, err
}

func (w *pacedWriter) extend() {
	w.left = pacePart
	until := time.Now().Add(w.each)
	if until.After(w.end) {
		until = w.end
	}
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(until) // a recorder has none
}

// prefersCSV reports whether a header Accept names CSV, and JSON not before it.
func prefersCSV(accept string) bool {
	qualities := map[string]float64{}
	for part := range strings.SplitSeq(accept, ",") {
		kind, parameters, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		quality := 1.0
		if q, given := parameters["q"]; given {
			if quality, err = strconv.ParseFloat(q, 64); err != nil {
				continue
			}
		}
		qualities[kind] = quality
	}
	return qualities[csvType] > qualities[jsonType]
}
