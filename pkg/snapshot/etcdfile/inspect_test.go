package etcdfile

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestDescribe: a file that people have compressed or encrypted is told as such.
func TestDescribe(t *testing.T) {
	binary := strings.Repeat("\xff\x00", 200)
	tar := make([]byte, 512)
	copy(tar, "keelson.db")
	copy(tar[257:], "ustar")
	for name, c := range map[string]struct{ head, want string }{
		// What gpg 2 writes: -c; -e to RSA, to Curve25519 and to nobody known; -s.
		"gpg -c":                  {unhex("8c0d04090302a9417f36863dee9cffd23b014e8d7afe1fe4"), "OpenPGP"},
		"gpg -e, RSA":             {unhex("85018c0333d8dd661531a4d6010c009b"), "OpenPGP"},
		"gpg -e, Curve25519":      {unhex("845e0333d8dd661531a4d612010740aa"), "OpenPGP"},
		"gpg -e --throw-keyids":   {unhex("85018c030000000000000000010bfe3c"), "OpenPGP"},
		"gpg -s":                  {unhex("a30101b70548fa900d03000a01229045"), "OpenPGP"},
		"a new packet, 6":         {unhex("c1c0210600"), "OpenPGP"},
		"a new packet, 4":         {unhex("c32e0407030a"), "OpenPGP"},
		"a new packet, long":      {unhex("c1ff000100000300"), "OpenPGP"},
		"a key":                   {unhex("99018d046b022760010c00b4"), "no database of etcd"},
		"another version":         {unhex("8c0d09090302a941"), "no database of etcd"},
		"its beginning":           {unhex("8501"), "no database of etcd"},
		"gpg -a":                  {"-----BEGIN PGP MESSAGE-----\n\njA0E", "OpenPGP"},
		"age":                     {"age-encryption.org/v1\n-> X25519 ", "with age"},
		"age -a":                  {"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl", "with age"},
		"openssl enc":             {"Salted__" + binary, "with openssl"},
		"openssl enc -a":          {"U2FsdGVkX1+2gWc5\n", "with openssl"},
		"gzip":                    {"\x1f\x8b\x08\x00" + binary, "with gzip"},
		"zstd":                    {"\x28\xb5\x2f\xfd\x04" + binary, "with zstd"},
		"xz":                      {"\xfd7zXZ\x00" + binary, "with xz"},
		"lz4":                     {"\x04\x22\x4d\x18" + binary, "with lz4"},
		"bzip2":                   {"BZh9" + binary, "with bzip2"},
		"zip":                     {"PK\x03\x04" + binary, "zip archive"},
		"7z":                      {"7z\xbc\xaf\x27\x1c" + binary, "7z archive"},
		"tar":                     {string(tar), "tar archive"},
		"SQLite":                  {"SQLite format 3\x00" + binary, "SQLite"},
		"a dump":                  {"PGDMP" + binary, "PostgreSQL"},
		"an empty file":           {"", "empty"},
		"a text":                  {"apiVersion: v1\n", "text"},
		"something":               {binary, "no database of etcd, or it is encrypted or damaged"},
		"a byte with the top bit": {"\x8c", "no database of etcd"},
	} {
		if got := describe([]byte(c.head)); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %q", name, got, c.want)
		}
	}
}

func unhex(text string) string {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return string(b)
}
