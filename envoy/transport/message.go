package transport

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
)

// messageOf reads the only message in the data of a call, which is at most most bytes long. It
// returns the status of gRPC that says why there is none.
func messageOf(call *Call, h *head, data []byte, most int) (code int, text string) {
	if len(data) < prefix || int64(binary.BigEndian.Uint32(data[1:])) != int64(len(data)-prefix) {
		return internal, "the data is not one message"
	}
	call.Message = data[prefix:]
	switch {
	case data[0] == 0:
		return 0, ""
	case data[0] != 1 || h.encoding != "gzip":
		return internal, "a message is compressed without an encoding"
	}
	return unzip(call, most)
}

func unzip(call *Call, most int) (code int, text string) {
	r, err := gzip.NewReader(bytes.NewReader(call.Message))
	if err != nil {
		return internal, "a message cannot be decompressed"
	}
	all, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	switch {
	case err != nil:
		return internal, "a message cannot be decompressed"
	case len(all) > most:
		call.Message, call.TooLarge = nil, true
	default:
		call.Message = all
	}
	return 0, ""
}
