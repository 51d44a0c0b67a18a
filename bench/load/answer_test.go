package load

import (
	"errors"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

func denied(code typev3.StatusCode) *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &status.Status{Code: 16, Message: "unauthorized"},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: code},
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "content-type", Value: "application/json"}}},
			Body:    `{"success": false}`,
		}},
	}
}

// Answers are read like by Envoy, without the generated types.
func TestParseAnswer(t *testing.T) {
	withHeaders := &authv3.CheckResponse{
		Status: &status.Status{},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-keyporter-user", Value: "u"}}},
		}},
	}
	for name, c := range map[string]struct {
		response *authv3.CheckResponse
		want     Answer
	}{
		"no status allows":                     {&authv3.CheckResponse{}, Allow},
		"status OK allows":                     {&authv3.CheckResponse{Status: &status.Status{}}, Allow},
		"status OK with headers allows":        {withHeaders, Allow},
		"a denial carries its HTTP status":     {denied(401), 401},
		"so does one with another status":      {denied(429), 429},
		"a denial with status 200 is a denial": {denied(200), 200},
		"without an HTTP status it means 403":  {&authv3.CheckResponse{Status: &status.Status{Code: 7}}, 403},
	} {
		message, err := proto.Marshal(c.response)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseAnswer(message)
		if err != nil || got != c.want {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, c.want)
		}
	}
}

func TestBrokenAnswerIsWrong(t *testing.T) {
	whole, err := proto.Marshal(denied(401))
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range [][]byte{whole[:len(whole)-1], {0xff}, {0x0a, 0x05}} {
		if err := Answer(401).verify(message); !errors.Is(err, errWrongAnswer) {
			t.Errorf("%x: %v, want %v", message, err, errWrongAnswer)
		}
	}
}
