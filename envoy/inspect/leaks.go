package inspect

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
)

// The rules about logs, where a key may be read. An accepted key is stripped before; a refused one
// is not, and a key may be refused only temporarily.

// leak is something that a log writes down.
type leak struct {
	path       Path
	what       string
	credential bool // a header with a credential; else the query, which may hold one
}

func findLeaks(credential bool) finder {
	return eachManager(func(c *config, m *manager, report report) {
		for i, l := range m.GetAccessLog() {
			for _, k := range m.leaks(c, l, m.path.At("access_log").Item(i).At("typed_config")) {
				if k.credential == credential {
					report(k.path, k.what)
				}
			}
		}
	})
}

func (m *manager) leaks(c *config, l *accesslogv3.AccessLog, at Path) []leak {
	message, err := l.GetTypedConfig().UnmarshalNew()
	if err != nil {
		return c.formatLeaks(at) // an unknown type may have a format all the same
	}
	var found []leak
	switch settings := message.(type) {
	case *grpclogv3.HttpGrpcAccessLogConfig:
		return m.grpcLeaks(c, settings, at)
	case *filelogv3.FileAccessLog:
		if settings.GetPath() == "/dev/null" {
			return nil
		}
		if settings.GetAccessLogFormat() == nil {
			found = append(found, defaultFormat(at))
		}
	case *streamlogv3.StdoutAccessLog:
		if settings.GetAccessLogFormat() == nil {
			found = append(found, defaultFormat(at))
		}
	case *streamlogv3.StderrAccessLog:
		if settings.GetAccessLogFormat() == nil {
			found = append(found, defaultFormat(at))
		}
	}
	return append(found, c.formatLeaks(at)...)
}

// formatLeaks are the leaks of all formats in the settings of a log of any type.
func (c *config) formatLeaks(at Path) []leak {
	var found []leak
	for _, t := range c.raw.texts(at) {
		for _, command := range commands.FindAllStringSubmatch(t.text, -1) {
			if what, credential := leakOf(command[1], command[2]); what != "" {
				found = append(found, leak{t.path, what, credential})
			}
		}
	}
	return found
}

func defaultFormat(at Path) leak {
	return leak{path: at, what: "Envoy's default format has the path with its query"}
}

// grpcLeaks are the leaks of a log with a fixed form that includes the path with its query.
// Keyporter may receive that.
func (m *manager) grpcLeaks(c *config, settings *grpclogv3.HttpGrpcAccessLogConfig, at Path) []leak {
	var found []leak
	to := settings.GetCommonConfig().GetGrpcService().GetEnvoyGrpc().GetClusterName()
	if !m.asks(c, to) {
		found = append(found, leak{path: at, what: fmt.Sprintf("it sends each path with its query to %q", to)})
	}
	for _, name := range settings.GetAdditionalRequestHeadersToLog() {
		if isCredential(name) {
			found = append(found, leak{at.At("additional_request_headers_to_log"), "it contains " + strings.ToLower(name), true})
		}
	}
	return found
}

// commands matches the commands in a format: %NAME(ARGUMENTS):LENGTH%.
var commands = regexp.MustCompile(`(?s)%([A-Z][A-Z0-9_]*)(?:\((.*?)\))?(?::\d+)?%`)

// leakOf describes the secret that a command writes down, or returns "".
func leakOf(command, arguments string) (what string, credential bool) {
	switch command {
	case "REQ", "REQUEST_HEADER":
		for name := range strings.SplitSeq(arguments, "?") {
			switch name = strings.ToLower(name); {
			case isCredential(name):
				return "it contains " + name, true
			case isPath(name):
				return "it contains the query: " + name, false
			}
		}
	case "PATH":
		if with, _, _ := strings.Cut(arguments, ":"); with != "NQ" {
			return "it contains the query: PATH", false
		}
	case "QUERY_PARAM":
		if arguments == "api_key" {
			return "it contains the parameter api_key", true
		}
	case "QUERY_PARAMS":
		return "it contains the query", false
	case "CEL":
		return celLeakOf(arguments)
	}
	return "", false
}

// celQuery and celHeader match the parts of a request that an expression may read.
var (
	celQuery  = regexp.MustCompile(`\brequest\.(path|query)\b`)
	celHeader = regexp.MustCompile(`\brequest\.headers(?:\.get)?[\[(]\s*['"]([^'"]+)['"]`)
)

func celLeakOf(expression string) (what string, credential bool) {
	for _, header := range celHeader.FindAllStringSubmatch(expression, -1) {
		switch name := strings.ToLower(header[1]); {
		case isCredential(name):
			return "it contains " + name, true
		case isPath(name):
			return "it contains the query: " + name, false
		}
	}
	if read := celQuery.FindString(expression); read != "" {
		return "it contains the query: " + read, false
	}
	return "", false
}

func isCredential(header string) bool {
	return slices.Contains([]string{"authorization", "x-api-key", "cookie", "sec-websocket-protocol"}, strings.ToLower(header))
}

func isPath(header string) bool { return header == ":path" || header == "x-envoy-original-path" }

func findTracing(_ *config, m *manager, report report) {
	tracing := m.GetTracing()
	if tracing.GetProvider() != nil && (tracing.GetMaxPathTagLength() == nil || tracing.GetMaxPathTagLength().GetValue() > 0) {
		report(m.path.At("tracing"), "each span has http.url, with the query")
	}
}

func findTracedCredentials(_ *config, m *manager, report report) {
	for i, tag := range m.GetTracing().GetCustomTags() {
		if name := tag.GetRequestHeader().GetName(); isCredential(name) {
			report(m.path.At("tracing").At("custom_tags").Item(i), "it contains "+strings.ToLower(name))
		}
	}
}
