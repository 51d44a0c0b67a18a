package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// level is the source of a value. A higher level takes precedence over a lower one.
type level int

const (
	ofDefault level = iota
	ofFile
	ofEnvironment
	ofFlag
)

// withFiles adds, beside each setting that holds a secret, one that names a file with it, since
// Docker and Kubernetes provide secrets as files.
func withFiles(settings []Setting) (all []Setting) {
	for _, s := range settings {
		all = append(all, s)
		if s.secret {
			all = append(all, s.inFile())
		}
	}
	return all
}

// inFile returns the setting that names the file.
func (s Setting) inFile() Setting {
	return Setting{Name: s.Name + "-file", of: s.Name, Help: "`file` that holds the value of --" + s.Name + ", which keeps the secret out of process lists and the environment",
		set: func(c *Config, path string) error {
			if path == "" {
				return nil
			}
			text, err := readSecret(path)
			if err != nil {
				return err
			}
			if err := s.set(c, text); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			// only a higher level overrides it with the setting itself
			c.values[s.Name], c.levels[s.Name] = text, ofDefault
			return nil
		}}
}

// twin returns the other setting for the same secret, direct or in a file, or nil.
func (s Setting) twin() *Setting {
	i := slices.IndexFunc(settings, func(other Setting) bool {
		return s.of == other.Name && s.of != "" || other.of == s.Name
	})
	if i < 0 {
		return nil
	}
	return &settings[i]
}

// resolveTwin resolves a setting against its twin: on one level only one of them may be given;
// across levels, the higher one replaces the lower.
func (s Setting) resolveTwin(c *Config, value string) error {
	twin := s.twin()
	if twin == nil || value == "" {
		return nil
	}
	if c.level != ofDefault && c.levels[twin.Name] == c.level && c.values[twin.Name] != "" {
		return fmt.Errorf("%s is given as well: give one of the two", twin.key())
	}
	if twin.of != "" {
		delete(c.values, twin.Name)
		c.sources[twin.Name] = "default"
	}
	return nil
}

// maxSecret bounds a file with a secret, in bytes.
const maxSecret = 64 << 10

// readAtMost reads a file of at most most bytes. It does not check the size first: the reported
// size of a pipe or a device means nothing. Its errors name the file.
func readAtMost(path string, most int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return content, err
}

// UnlessEnded calls read, which reads files, and stops waiting when ctx ends. A read from a pipe
// without a writer blocks without a limit, and no signal ends it, so its goroutine is abandoned;
// the program ends soon after.
func UnlessEnded[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := read()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return *new(T), fmt.Errorf("reading the configuration: %w", ctx.Err())
	}
}

// readSecret reads a file without the line break at its end.
func readSecret(path string) (string, error) {
	content, err := readAtMost(path, maxSecret)
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	switch {
	case text == "":
		return "", fmt.Errorf("%s is empty", path)
	case strings.ContainsAny(text, "\n\r\x00"):
		return "", errors.New(path + " has more than one line")
	}
	return text, nil
}
