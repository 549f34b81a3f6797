package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// NameFile, beside the database, names the data in the names of its backups, so
// that those of other data are not taken for its own. An import removes it
// before anything else.
const NameFile = "snapshot-id"

// ImportOptions are those of NewImporter.
type ImportOptions struct {
	// Dir is the data directory; it is made if it is not there. Nobody else
	// can open it before the import has ended.
	Dir string

	// Replace makes the import take the place of a database that there is;
	// without, there must be none.
	Replace bool

	// OnReplace, with Replace, is called when the database that there was can
	// no longer be opened and the new one not yet: it removes what belongs to
	// the former. After a crash it is called again.
	OnReplace func() error

	// OnInstalled, unless nil, is called when the new database is in its place,
	// and nobody else can have opened it.
	OnInstalled func() error
}

// Importer makes a database of records, all or nothing. They are written to a
// file beside, which takes the database's name when it is whole and durable.
type Importer struct {
	opt     ImportOptions
	path    string   // of the database
	made    []string // the directories that were not there, the innermost first
	marked  bool     // begun is in the place of the database, and was not before
	lock    *fileLock
	tree    *treeWriter // of the file beside; nil after the end
	rows    int64
	floor   int64
	newest  eventlog.Record
	scratch []byte

	onStep func() error // before each step of install, for tests; nil otherwise
}

// NewImporter begins an import, which Finish or Abort ends. The errors are
// ErrExists, ErrLocked or those of the file system; nothing was changed then.
func NewImporter(opt ImportOptions) (*Importer, error) {
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil, err
	}
	im := &Importer{opt: opt, path: filepath.Join(dir, FileName)}
	for d := dir; absent(d); d = filepath.Dir(d) {
		im.made = append(im.made, d)
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("import into %s: %w", dir, err)
	}
	if im.lock, err = lockFile(im.path + ".lock"); err != nil {
		return nil, fmt.Errorf("import into %s: %w", dir, err)
	}
	if err := im.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("import into %s: %w", dir, err), im.leave())
	}
	return im, nil
}

func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// CheckImport returns the errors of NewImporter that can be told by looking, and
// changes nothing.
func CheckImport(opt ImportOptions) error {
	im := &Importer{opt: opt, path: filepath.Join(opt.Dir, FileName)}
	err := checkLock(im.path + ".lock")
	if err == nil {
		_, err = im.mayBegin()
	}
	if err != nil {
		return fmt.Errorf("import into %s: %w", opt.Dir, err)
	}
	return nil
}

// mayBegin refuses a database that is not to be replaced, and reports whether
// there is one.
func (im *Importer) mayBegin() (there bool, err error) {
	if there, err = im.exists(); err == nil && there && !im.opt.Replace {
		err = fmt.Errorf("%w: %s", ErrExists, im.path)
	}
	return there, err
}

func (im *Importer) begin() error {
	there, err := im.mayBegin()
	if err != nil {
		return err
	}
	if !there && absent(im.path) {
		im.marked = true
		if err := durable.Write(im.path, []byte(begun)); err != nil {
			return err
		}
	}
	part := im.path + partSuffix
	if err := createPart(part); err != nil {
		return errors.Join(err, removeDatabase(part))
	}
	if im.tree, err = openTreeWriter(part); err != nil {
		return errors.Join(err, removeDatabase(part))
	}
	return nil
}

// exists reports whether there is a database, or what is left of one.
func (im *Importer) exists() (bool, error) {
	for _, suffix := range []string{"", "-wal"} {
		info, err := os.Lstat(im.path + suffix)
		if err == nil && info.Mode().IsRegular() && info.Size() == int64(len(begun)) {
			if text, err := os.ReadFile(im.path + suffix); err != nil || string(text) == begun {
				continue
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// Add adds the next record; id is that of the batch that it is the first of,
// or nil. It does not keep the record.
func (im *Importer) Add(r *eventlog.Record, id *eventlog.BatchID) error {
	im.scratch = eventlog.AppendHeader(im.scratch[:0], r)
	row := Row{Seq: r.Seq, Header: im.scratch}
	if len(r.Key) > 0 {
		row.Key = r.Key
	}
	if id != nil {
		row.Batch = eventlog.EncodeBatchID(r.Seq, *id)
	}
	if r.Kind == eventlog.KindPut {
		if row.Value = r.Value; row.Value == nil {
			row.Value = []byte{}
		}
	}
	return im.insert(r, &row)
}

// insert adds the row of a record.
func (im *Importer) insert(record *eventlog.Record, r *Row) error {
	prev := &im.newest
	gap := r.Seq != prev.Seq+1
	if r.Seq <= prev.Seq || record.Position < prev.Position || !gap && record.Position > prev.Position+1 {
		return fmt.Errorf("%w: record %d of position %d follows record %d of position %d",
			eventlog.ErrCorrupt, r.Seq, record.Position, prev.Seq, prev.Position)
	}
	if gap {
		im.floor = r.Seq - 1
	}
	im.newest.Seq, im.newest.Position = r.Seq, record.Position
	im.rows++
	return im.tree.add(r, record.Revision.Main)
}

// Finish makes what was added the database if it is whole, which head tells:
// it is durable then. An error leaves what there was before, or something that
// Open refuses until another import has taken its place. The Importer cannot be
// used after that.
func (im *Importer) Finish(head eventlog.Head) error {
	if im.newest.Seq != head.Seq || im.newest.Position != head.Position {
		return errors.Join(im.Abort(), fmt.Errorf("%w: the last record is %d of position %d, not %d of position %d",
			eventlog.ErrCorrupt, im.newest.Seq, im.newest.Position, head.Seq, head.Position))
	}
	if err := im.complete(head); err != nil {
		return errors.Join(err, im.Abort())
	}
	err := im.install()
	if err != nil {
		err = errors.Join(fmt.Errorf("the database cannot be put in its place, and that may be empty now: import it again: %w", err), removeDatabase(im.path+partSuffix))
	} else if im.opt.OnInstalled != nil {
		err = im.opt.OnInstalled()
	}
	return errors.Join(err, im.lock.release())
}

// complete makes the file beside a whole database, durably.
func (im *Importer) complete(head eventlog.Head) error {
	if err := im.tree.finish(); err != nil {
		return err
	}
	if err := im.closeTree(); err != nil {
		return err
	}
	part := im.path + partSuffix
	c, err := openConn(part, "PRAGMA synchronous=OFF")
	if err != nil {
		return err
	}
	err = writeKept(c, kept{im.floor, head.Seq - im.rows, head.Revision})
	if err == nil {
		err = c.exec("PRAGMA wal_checkpoint(TRUNCATE)") // close would not say that it failed
	}
	if err = errors.Join(err, c.close()); err != nil {
		return err
	}
	return durable.Sync(part)
}

// install gives the file beside the database's name. A database that there was
// goes first, and something that is none takes its place meanwhile: no crash
// may leave the new database with the WAL of the old one, nor nothing, which
// would be taken for a directory without data.
func (im *Importer) install() error {
	dir := filepath.Dir(im.path)
	steps := []func() error{
		func() error { return remove(filepath.Join(dir, NameFile)) },
		func() error { return durable.Sync(dir) },
	}
	if im.opt.Replace {
		steps = append(steps,
			func() error { return durable.Write(im.path, []byte(cutOff)) },
			func() error { return remove(im.path+"-wal", im.path+"-shm") },
			im.opt.OnReplace,
			func() error { return durable.Sync(dir) },
		)
	}
	steps = append(steps,
		func() error { return os.Rename(im.path+partSuffix, im.path) },
		func() error { return durable.Sync(dir) },
	)
	for _, step := range steps {
		if im.onStep != nil {
			if err := im.onStep(); err != nil {
				return err
			}
		}
		if step == nil {
			continue
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Abort ends an import that is not to be finished, and removes what was added.
func (im *Importer) Abort() error {
	return errors.Join(im.closeTree(), removeDatabase(im.path+partSuffix), im.leave())
}

func (im *Importer) closeTree() error {
	if im.tree == nil {
		return nil
	}
	err := im.tree.close()
	im.tree = nil
	return err
}

// leave gives the lock up, and removes what NewImporter has made.
func (im *Importer) leave() error {
	var err error
	if im.marked {
		err = remove(im.path, im.path+".tmp")
	}
	if len(im.made) > 0 {
		// lockFile notices that the file is not there any more.
		if err := os.Remove(im.path + ".lock"); err != nil {
			return errors.Join(err, im.lock.release())
		}
		for _, dir := range im.made {
			_ = os.Remove(dir) // unless there is something else in it
		}
	}
	return errors.Join(err, im.lock.release())
}
