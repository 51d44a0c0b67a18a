package wire

import (
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Schema knows the fields of one kind of message. It is immutable and safe for concurrent use.
type Schema struct {
	fields []field // by number
}

// field describes one field: its required tag, and its value.
type field struct {
	tag     Tag // 0: there is no such field, or it is unusual
	text    bool
	message *Schema // of the value; nil: it is no message
}

// NewSchema returns the Schema of a message, and of all messages that it can contain.
func NewSchema(m protoreflect.MessageDescriptor) *Schema {
	return newSchema(m, map[protoreflect.FullName]*Schema{})
}

// newSchema makes a Schema unless it is known: some messages can contain themselves.
func newSchema(m protoreflect.MessageDescriptor, known map[protoreflect.FullName]*Schema) *Schema {
	if s := known[m.FullName()]; s != nil {
		return s
	}
	s := &Schema{}
	known[m.FullName()] = s
	for i := range m.Fields().Len() {
		d := m.Fields().Get(i)
		if d.Number() > maxNumber {
			continue
		}
		for len(s.fields) <= int(d.Number()) {
			s.fields = append(s.fields, field{})
		}
		s.fields[d.Number()] = fieldOf(d, known)
	}
	return s
}

func fieldOf(d protoreflect.FieldDescriptor, known map[protoreflect.FullName]*Schema) field {
	const none Tag = 7
	encoding, f := none, field{}
	switch d.Kind() {
	case protoreflect.StringKind:
		encoding, f.text = Bytes, true
	case protoreflect.BytesKind:
		encoding = Bytes
	case protoreflect.MessageKind:
		encoding, f.message = Bytes, newSchema(d.Message(), known)
	case protoreflect.BoolKind, protoreflect.EnumKind, protoreflect.Int32Kind, protoreflect.Uint32Kind,
		protoreflect.Int64Kind, protoreflect.Uint64Kind, protoreflect.Sint32Kind, protoreflect.Sint64Kind:
		encoding = Varint
	case protoreflect.DoubleKind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		encoding = fixed64
	case protoreflect.FloatKind, protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind:
		encoding = fixed32
	}
	// A group, or repeated numbers, which have two encodings, is unusual.
	if encoding == none || d.IsList() && encoding != Bytes {
		return field{}
	}
	f.tag = Tag(d.Number())<<3 | encoding
	return f
}

// maxDepth is the maximum depth of nested messages; deeper ones are unusual.
const maxDepth = 50

// Accepts reports whether the generated code decodes a message of this kind, and knows all of its
// fields. If Accepts returns false, the generated code may still decode it.
func (s *Schema) Accepts(message []byte) bool { return s.accepts(message, maxDepth) }

func (s *Schema) accepts(message []byte, depth int) bool {
	r := Read(message)
	for r.Next() {
		if !s.acceptsField(&r, depth) {
			return false
		}
	}
	return r.Done()
}

// AcceptsField is [Schema.Accepts] for the field that r has found in a message of this kind.
func (s *Schema) AcceptsField(r *Reader) bool { return s.acceptsField(r, maxDepth) }

func (s *Schema) acceptsField(r *Reader, depth int) bool {
	number := int(r.Tag >> 3)
	if number >= len(s.fields) {
		return false
	}
	f := &s.fields[number]
	switch {
	case f.tag != r.Tag:
		return false
	case f.text:
		return utf8.Valid(r.Value)
	case f.message != nil:
		return depth > 0 && f.message.accepts(r.Value, depth-1)
	}
	return true
}

// Field returns the Schema of the message in a field of this kind, or nil.
func (s *Schema) Field(number int) *Schema {
	if number >= len(s.fields) {
		return nil
	}
	return s.fields[number].message
}
