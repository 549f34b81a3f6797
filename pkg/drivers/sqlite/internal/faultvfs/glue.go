package faultvfs

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"unsafe"

	"modernc.org/libc"
	"modernc.org/libc/sys/types"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite was translated from C: its pointers are uintptrs, and those to
// functions are Go func values. All that SQLite gets to see of ours is memory
// of libc's, which Go's collector does not know, or functions that are no
// closures.

// ptr makes a pointer of one of C's.
func ptr(p uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

// The types of the functions that are replaced, and of those called.
type (
	openFunc        = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, outFlags uintptr) int32
	deleteFunc      = func(tls *libc.TLS, vfs, name uintptr, syncDir int32) int32
	closeFunc       = func(tls *libc.TLS, file uintptr) int32
	transferFunc    = func(tls *libc.TLS, file, buffer uintptr, n int32, offset int64) int32
	truncateFunc    = func(tls *libc.TLS, file uintptr, size int64) int32
	syncFunc        = func(tls *libc.TLS, file uintptr, flags int32) int32
	function[F any] struct{ f F }
)

// toC makes a C pointer of a function.
func toC[F any](f F) uintptr { return *(*uintptr)(unsafe.Pointer(&function[F]{f})) }

// fromC makes a function of a C pointer.
func fromC[F any](p uintptr) F { return *(*F)(unsafe.Pointer(&struct{ uintptr }{p})) }

var (
	// plain is SQLite's VFS, shim the one in front of it; set by register.
	plain, shim uintptr

	disks sync.Map // directory → *Disk

	// handles are the open files that are on Disks, by their C pointer.
	handles sync.Map // uintptr → *handle

	// shimmed are the io_methods with our functions in them.
	shimmed struct {
		sync.Mutex
		by map[uintptr]uintptr // SQLite's own → ours
	}
)

// handle is an open file.
type handle struct {
	disk *Disk
	name string
	base *sqlite3.Tsqlite3_io_methods
}

var register = sync.OnceFunc(func() {
	tls := libc.NewTLS()
	plain = sqlite3.Xsqlite3_vfs_find(tls, 0)
	shim = alloc(tls, unsafe.Sizeof(sqlite3.Tsqlite3_vfs{}))
	vfs := (*sqlite3.Tsqlite3_vfs)(ptr(shim))
	*vfs = *(*sqlite3.Tsqlite3_vfs)(ptr(plain))
	name, err := libc.CString("keelson-fault")
	if err != nil {
		panic(err)
	}
	vfs.FzName = name
	vfs.FxOpen = toC[openFunc](xOpen)
	vfs.FxDelete = toC[deleteFunc](xDelete)
	shimmed.by = make(map[uintptr]uintptr)
})

// Install makes the shim SQLite's default VFS until the function it returns is
// called. Files that are on no Disk pass through it unchanged.
func Install() (restore func()) {
	register()
	setDefault(shim)
	return func() { setDefault(plain) }
}

func setDefault(vfs uintptr) {
	tls := libc.NewTLS()
	defer tls.Close()
	if code := sqlite3.Xsqlite3_vfs_register(tls, vfs, 1); code != sqlite3.SQLITE_OK {
		panic("sqlite3_vfs_register failed")
	}
}

// alloc returns memory that is never given back.
func alloc(tls *libc.TLS, size uintptr) uintptr {
	p := libc.Xcalloc(tls, 1, types.Size_t(size))
	if p == 0 {
		panic("no memory")
	}
	return p
}

// lookUp finds the Disk of a path.
func lookUp(path uintptr) (*Disk, string) {
	if path == 0 {
		return nil, "" // a temporary file
	}
	p := libc.GoString(path)
	d, ok := disks.Load(filepath.Dir(p))
	if !ok {
		return nil, ""
	}
	return d.(*Disk), filepath.Base(p)
}

func xOpen(tls *libc.TLS, _, path, file uintptr, flags int32, outFlags uintptr) int32 {
	base := fromC[openFunc]((*sqlite3.Tsqlite3_vfs)(ptr(plain)).FxOpen)
	open := func(Op) int32 { return base(tls, plain, path, file, flags, outFlags) }
	disk, name := lookUp(path)
	if disk == nil {
		return open(Op{})
	}
	// SQLite closes what has methods, opened or not.
	(*sqlite3.Tsqlite3_file)(ptr(file)).FpMethods = 0
	var code int32
	if _, err := os.Stat(libc.GoString(path)); err != nil && flags&sqlite3.SQLITE_OPEN_CREATE != 0 {
		code = disk.do(Op{Kind: Create, Name: name}, open, nil)
	} else if code = open(Op{}); code == sqlite3.SQLITE_OK && disk.meet(name) != nil {
		code = sqlite3.SQLITE_CANTOPEN
	}
	if methods := (*sqlite3.Tsqlite3_file)(ptr(file)).FpMethods; methods != 0 {
		handles.Store(file, &handle{disk: disk, name: name, base: (*sqlite3.Tsqlite3_io_methods)(ptr(methods))})
		(*sqlite3.Tsqlite3_file)(ptr(file)).FpMethods = shimOf(tls, methods)
	}
	return code
}

// shimOf returns methods with ours in them.
func shimOf(tls *libc.TLS, methods uintptr) uintptr {
	shimmed.Lock()
	defer shimmed.Unlock()
	ours := shimmed.by[methods]
	if ours == 0 {
		ours = alloc(tls, unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{}))
		m := (*sqlite3.Tsqlite3_io_methods)(ptr(ours))
		*m = *(*sqlite3.Tsqlite3_io_methods)(ptr(methods))
		m.FxClose = toC[closeFunc](xClose)
		m.FxRead = toC[transferFunc](xRead)
		m.FxWrite = toC[transferFunc](xWrite)
		m.FxTruncate = toC[truncateFunc](xTruncate)
		m.FxSync = toC[syncFunc](xSync)
		shimmed.by[methods] = ours
	}
	return ours
}

func xDelete(tls *libc.TLS, _, path uintptr, syncDir int32) int32 {
	base := fromC[deleteFunc]((*sqlite3.Tsqlite3_vfs)(ptr(plain)).FxDelete)
	remove := func(Op) int32 { return base(tls, plain, path, syncDir) }
	disk, name := lookUp(path)
	if disk == nil {
		return remove(Op{})
	}
	if _, err := os.Stat(libc.GoString(path)); err != nil {
		return remove(Op{}) // says that it is not there
	}
	return disk.do(Op{Kind: Delete, Name: name, dir: syncDir&1 != 0}, remove, nil)
}

func open(file uintptr) *handle {
	h, _ := handles.Load(file)
	return h.(*handle)
}

func xClose(tls *libc.TLS, file uintptr) int32 {
	h, _ := handles.LoadAndDelete(file)
	return fromC[closeFunc](h.(*handle).base.FxClose)(tls, file)
}

func xRead(tls *libc.TLS, file, buffer uintptr, n int32, offset int64) int32 {
	h := open(file)
	if !h.disk.read() {
		return sqlite3.SQLITE_IOERR_READ
	}
	return fromC[transferFunc](h.base.FxRead)(tls, file, buffer, n, offset)
}

func xWrite(tls *libc.TLS, file, buffer uintptr, n int32, offset int64) int32 {
	h := open(file)
	data := bytes.Clone(unsafe.Slice((*byte)(ptr(buffer)), n))
	return h.disk.do(Op{Kind: Write, Name: h.name, offset: offset, data: data}, func(op Op) int32 {
		return fromC[transferFunc](h.base.FxWrite)(tls, file, buffer, int32(len(op.data)), offset)
	}, nil)
}

func xTruncate(tls *libc.TLS, file uintptr, size int64) int32 {
	h := open(file)
	return h.disk.do(Op{Kind: Truncate, Name: h.name, offset: size}, func(Op) int32 {
		return fromC[truncateFunc](h.base.FxTruncate)(tls, file, size)
	}, nil)
}

func xSync(tls *libc.TLS, file uintptr, _ int32) int32 {
	h := open(file)
	// SQLite's own xSync syncs the directory with the first sync of a WAL or
	// journal that it may have created.
	unix := (*sqlite3.TunixFile)(ptr(file))
	dir := unix.FctrlFlags&sqlite3.UNIXFILE_DIRSYNC != 0
	return h.disk.do(Op{Kind: Sync, Name: h.name, dir: dir}, func(Op) int32 {
		unix.FctrlFlags &^= sqlite3.UNIXFILE_DIRSYNC
		return sqlite3.SQLITE_OK
	}, func(content []byte) {
		h.overwrite(tls, file, content)
	})
}

// overwrite gives the file another content.
func (h *handle) overwrite(tls *libc.TLS, file uintptr, content []byte) {
	if code := fromC[truncateFunc](h.base.FxTruncate)(tls, file, int64(len(content))); code != sqlite3.SQLITE_OK {
		panic("truncate failed")
	}
	buffer := libc.Xmalloc(tls, pageSize)
	defer libc.Xfree(tls, buffer)
	offset := int64(0)
	for page := range slices.Chunk(content, pageSize) {
		copy(unsafe.Slice((*byte)(ptr(buffer)), len(page)), page)
		if code := fromC[transferFunc](h.base.FxWrite)(tls, file, buffer, int32(len(page)), offset); code != sqlite3.SQLITE_OK {
			panic("write failed")
		}
		offset += int64(len(page))
	}
}

const pageSize = 4096
