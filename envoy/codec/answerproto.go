package codec

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Response returns a in the generated types. [Answer.Write] writes the same message.
func (a *Answer) Response() *authv3.CheckResponse {
	code, status := a.verdict()
	r := &authv3.CheckResponse{Status: &statuspb.Status{Code: int32(code)}, DynamicMetadata: metadataOf(a.metadata.items())}
	if a.passes {
		r.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: options(a.headers.items()), HeadersToRemove: slices.Concat(a.spoofed, a.remove.items()), ResponseHeadersToAdd: options(a.back.items()),
		}}
		return r
	}
	r.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(status)}, Headers: options(a.headers.items()), Body: a.body,
	}}
	return r
}

func options(headers []header) []*corev3.HeaderValueOption {
	var all []*corev3.HeaderValueOption
	for i := range headers {
		all = append(all, option(&headers[i]))
	}
	return all
}

// option sets how a header combines with an existing one. Envoy's versions disagree on which of two
// fields counts. For overwrites both are set: a client's value must never stand beside ours. For
// yields only the action can express it, so the other field, which would win, is left out.
func option(h *header) *corev3.HeaderValueOption {
	o := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: h.name, Value: h.text()}}
	switch h.mode {
	case overwrites:
		o.Append = wrapperspb.Bool(false) //lint:ignore SA1019 the one that Envoy up to 1.36 and from 1.38 on reads
		o.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	case yields:
		o.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
	case appends:
		o.Append = wrapperspb.Bool(true) //lint:ignore SA1019 see above
		o.AppendAction = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
	}
	return o
}

func metadataOf(facts []header) *structpb.Struct {
	fields := map[string]*structpb.Value{}
	for i := range facts {
		fields[facts[i].name] = structpb.NewStringValue(facts[i].text())
	}
	own := structpb.NewStructValue(&structpb.Struct{Fields: fields})
	return &structpb.Struct{Fields: map[string]*structpb.Value{MetadataKey: own}}
}
