package store

import "unsafe"

// stringOf and bytesOf turn a key into the other type without a copy. The
// bytes are never changed: requests are not written to once they are decoded,
// and keys in responses and events are documented as read-only.

func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
