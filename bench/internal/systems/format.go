package systems

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Format names the format of the files that the program writes, so that they
// can be kept for another build of it; "" if there is no telling. Of etcd and
// kine the program's name has the version; keelson writes its schema's version
// into a new database, which is made in dir.
func (s System) Format(ctx context.Context, program, dir string) (string, error) {
	switch {
	case s.Forgets, s.Nodes > 0: // a cluster's data has its addresses in it
		return "", nil
	case s.program != "keelson":
		return filepath.Base(program) + "-" + s.Name, nil
	case s.postgres != nil:
		return "", nil // loaded in seconds
	}
	srv, err := s.Start(ctx, program, dir, false)
	if err != nil {
		return "", err
	}
	srv.Stop()
	b, err := os.ReadFile(filepath.Join(dir, "data", "keelson.db"))
	if err != nil {
		return "", err
	}
	version, err := userVersion(b)
	return fmt.Sprintf("keelson-schema%d", version), errors.Join(err, os.RemoveAll(dir))
}

// userVersion reads SQLite's user_version from a database's first page.
func userVersion(db []byte) (uint32, error) {
	const at = 60
	if len(db) < at+4 || string(db[:15]) != "SQLite format 3" {
		return 0, errors.New("not an SQLite database")
	}
	return binary.BigEndian.Uint32(db[at:]), nil
}
