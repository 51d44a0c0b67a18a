package wire_test

import (
	"bytes"
	"math"
	"strconv"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/keyporter/keyporter/envoy/wire"
)

// A Writer's output is that of the standard encoder for the same values.
func TestWriter(t *testing.T) {
	for _, n := range []int64{0, 1, -1, 127, 128, 16383, 16384, math.MaxInt32, math.MaxInt64, math.MinInt64} {
		w := wire.Write(make([]byte, 100))
		w.Uint(3<<3|wire.Varint, uint64(n))
		w.Decimal(2<<3|wire.Bytes, n)
		w.Wrap(20<<3|wire.Bytes, 0)
		w.Text(1<<3|wire.Bytes, "ü")

		inner := protowire.AppendTag(nil, 2, protowire.BytesType)
		inner = protowire.AppendString(inner, strconv.FormatInt(n, 10))
		inner = protowire.AppendTag(inner, 3, protowire.VarintType)
		inner = protowire.AppendVarint(inner, uint64(n))
		want := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "ü")
		want = protowire.AppendBytes(protowire.AppendTag(want, 20, protowire.BytesType), inner)
		if !bytes.Equal(w.Message(), want) || w.Len() != len(want) {
			t.Errorf("%d: %x, want %x", n, w.Message(), want)
		}
	}
}

// A buffer that is too small causes a panic, and nothing is written elsewhere.
func TestWriterPanicsWhereThereIsNoRoom(t *testing.T) {
	buffer := []byte("0123456789")
	defer func() {
		if recover() == nil || string(buffer[:5]) != "01234" {
			t.Errorf("no panic, or written before the buffer: %q", buffer)
		}
	}()
	w := wire.Write(buffer[5:])
	w.Text(1<<3|wire.Bytes, "too long")
}

// A Reader goes through any message up to its broken part, and reports it; it never reads beyond
// the end.
func FuzzReader(f *testing.F) {
	message, err := proto.Marshal(structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewNumberValue(1), "b": structpb.NewStringValue("c")}}))
	if err != nil {
		f.Fatal(err)
	}
	schema := wire.NewSchema((&structpb.Value{}).ProtoReflect().Descriptor())
	if !schema.Accepts(message) {
		f.Fatal("a Value is not accepted")
	}
	f.Add(message)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, message []byte) {
		read := 0
		r := wire.Read(message)
		for r.Next() {
			read += len(r.Value)
		}
		if read > len(message) {
			t.Errorf("%d bytes of %d", read, len(message))
		}
		if schema.Accepts(message) && proto.Unmarshal(message, &structpb.Value{}) != nil {
			t.Error("accepted what the generated code refuses")
		}
	})
}
