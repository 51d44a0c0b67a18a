package codec

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/keyporter/keyporter/envoy/wire"
)

// The fields of a CheckResponse and of the messages in it, named after the messages.
const (
	responseStatus   = 1<<3 | wire.Bytes
	responseDenied   = 2<<3 | wire.Bytes
	responseOK       = 3<<3 | wire.Bytes
	responseMetadata = 4<<3 | wire.Bytes

	statusCode = 1<<3 | wire.Varint

	okHeaders  = 2<<3 | wire.Bytes
	okRemove   = 5<<3 | wire.Bytes
	okResponse = 6<<3 | wire.Bytes

	deniedStatus  = 1<<3 | wire.Bytes
	deniedHeaders = 2<<3 | wire.Bytes
	deniedBody    = 3<<3 | wire.Bytes

	optionHeader = 1<<3 | wire.Bytes
	headerKey    = 1<<3 | wire.Bytes
	headerValue  = 2<<3 | wire.Bytes

	structFields = 1<<3 | wire.Bytes
	entryKey     = 1<<3 | wire.Bytes
	entryValue   = 2<<3 | wire.Bytes
	valueString  = 3<<3 | wire.Bytes
	valueStruct  = 5<<3 | wire.Bytes
)

// modeOptions are the parts of a HeaderValueOption after the header, by mode: see [option].
var modeOptions = [modes][]byte{
	overwrites: {
		2<<3 | 2, 0, // append: false, set explicitly
		3 << 3, byte(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD),
	},
	yields:  {3 << 3, byte(corev3.HeaderValueOption_ADD_IF_ABSENT)},
	appends: {2<<3 | 2, 2, 1 << 3, 1}, // append: true; the action is the default one
}

// Size is an upper bound of the length of [Answer.Write]'s output, in bytes.
func (a *Answer) Size() int {
	const head = 12 // the tags and lengths of one item
	n := 8*head + len(MetadataKey) + len(a.body)
	for _, headers := range [...]*list[header]{&a.headers, &a.back, &a.metadata} {
		for i := range headers.n {
			n += 4*head + len(headers.all[i].name) + max(len(headers.all[i].value), 20)
		}
	}
	for _, names := range [...][]string{a.spoofed, a.remove.items()} {
		for _, name := range names {
			n += head + len(name)
		}
	}
	return n
}

// Write writes a as a CheckResponse, from the end to the beginning, with the fields in the order of
// the generated code.
func (a *Answer) Write(w *wire.Writer) {
	inside := w.Len()
	code, status := a.verdict()
	tag := responseOK
	if a.passes {
		writeHeaders(w, okResponse, a.back.items())
		writeTexts(w, okRemove, a.remove.items())
		writeTexts(w, okRemove, a.spoofed)
		writeHeaders(w, okHeaders, a.headers.items())
	} else {
		tag = responseDenied
		if a.body != "" {
			w.Text(deniedBody, a.body)
		}
		writeHeaders(w, deniedHeaders, a.headers.items())
		writeStatus(w, deniedStatus, uint64(status))
	}
	w.Wrap(tag, inside)
	a.writeFacts(w)
	writeStatus(w, responseStatus, uint64(code))
}

// writeStatus writes one of the two kinds of status. The first field of both is the code.
func writeStatus(w *wire.Writer, tag wire.Tag, code uint64) {
	inside := w.Len()
	if code != 0 {
		w.Uint(statusCode, code)
	}
	w.Wrap(tag, inside)
}

func writeTexts(w *wire.Writer, tag wire.Tag, texts []string) {
	for _, text := range slices.Backward(texts) {
		w.Text(tag, text)
	}
}

func writeHeaders(w *wire.Writer, tag wire.Tag, headers []header) {
	for i := len(headers) - 1; i >= 0; i-- {
		option := w.Len()
		h := &headers[i]
		w.Raw(modeOptions[h.mode])
		inside := w.Len()
		switch {
		case h.counts:
			w.Decimal(headerValue, h.number)
		case h.value != "":
			w.Text(headerValue, h.value)
		}
		w.Text(headerKey, h.name)
		w.Wrap(optionHeader, inside)
		w.Wrap(tag, option)
	}
}

// writeFacts writes the metadata: a Struct with one field, which is a Struct of texts.
func (a *Answer) writeFacts(w *wire.Writer) {
	metadata := w.Len()
	value := w.Len()
	for i := a.metadata.n - 1; i >= 0; i-- {
		entry := w.Len()
		w.Text(valueString, a.metadata.all[i].value)
		w.Wrap(entryValue, entry)
		w.Text(entryKey, a.metadata.all[i].name)
		w.Wrap(structFields, entry)
	}
	w.Wrap(valueStruct, metadata)
	w.Wrap(entryValue, value)
	w.Text(entryKey, MetadataKey)
	w.Wrap(structFields, metadata)
	w.Wrap(responseMetadata, metadata)
}
