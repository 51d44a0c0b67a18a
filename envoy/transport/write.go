package transport

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// appendFrame appends the head of a frame with a payload of length bytes.
func appendFrame(b []byte, length int, kind http2.FrameType, flags http2.Flags, stream uint32) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(b, stream)
}

func appendSettings(b []byte, settings ...http2.Setting) []byte {
	b = appendFrame(b, 6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	return b
}

func appendWindowUpdate(b []byte, stream, increment uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameWindowUpdate, 0, stream), increment)
}

func appendReset(b []byte, stream uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, 4, http2.FrameRSTStream, 0, stream), uint32(code))
}

func appendPing(b []byte, flags http2.Flags, data [8]byte) []byte {
	return append(appendFrame(b, 8, http2.FramePing, flags, 0), data[:]...)
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, text string) []byte {
	b = appendFrame(b, 8+len(text), http2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, text...)
}

// appendMessage appends a message and what precedes it.
func appendMessage(b, message []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, 0), uint32(len(message)))
	return append(b, message...)
}

// encode returns a block of headers that refers to nothing but the protocol's own table.
func encode(pairs ...string) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	for ; len(pairs) > 0; pairs = pairs[2:] {
		encoder.WriteField(hpack.HeaderField{Name: pairs[0], Value: pairs[1]})
	}
	return block.Bytes()[1:] // without the change of the table's size that it begins with
}

// The blocks of every call that is answered.
var (
	callHeaders  = encode(":status", "200", "content-type", "application/grpc")
	callTrailers = encode("grpc-status", "0")
)

// failure returns the only headers of a call that has no answer but a status of gRPC.
func failure(code int, text string) []byte {
	return encode(":status", "200", "content-type", "application/grpc", "grpc-status", strconv.Itoa(code), "grpc-message", escaped(text))
}

// trailers returns the headers that end a call with a status of gRPC.
func trailers(code int, text string) []byte {
	if code == 0 {
		return callTrailers
	}
	return encode("grpc-status", strconv.Itoa(code), "grpc-message", escaped(text))
}

// escaped returns a text as grpc-message has it: percent-encoded, and of bounded length.
func escaped(text string) string {
	var b strings.Builder
	for _, c := range []byte(strings.ToValidUTF8(text[:min(len(text), maxStatusText)], "")) {
		if c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// text returns the headers of an answer in plain text.
func text(status int, length int) []byte {
	return encode(":status", strconv.Itoa(status), "content-type", "text/plain; charset=utf-8", "content-length", strconv.Itoa(length))
}
