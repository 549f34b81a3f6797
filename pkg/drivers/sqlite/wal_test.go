package sqlite

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// image is what a crash leaves: the database, its WAL, and the number of
// batches acknowledged.
type image struct {
	db, wal []byte
	batches int64
}

func takeImage(t testing.TB, l *Log) image {
	t.Helper()
	im := image{batches: l.head.Load()}
	for suffix, b := range map[string]*[]byte{"": &im.db, "-wal": &im.wal} {
		var err error
		if *b, err = os.ReadFile(l.path + suffix); err != nil {
			t.Fatal(err)
		}
	}
	return im
}

// open writes the image, with wal for its WAL, into a directory and returns
// the number of batches that Open and Load find in it.
func (im image) open(t testing.TB, wal []byte) (int64, error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	if err := errors.Join(os.WriteFile(path, im.db, 0o600), os.WriteFile(path+"-wal", wal, 0o600)); err != nil {
		t.Fatal(err)
	}
	return openImage(dir)
}

func openImage(dir string) (int64, error) {
	logger := logrus.New()
	logger.SetOutput(&bytes.Buffer{})
	l, err := Open(context.Background(), Options{Dir: dir, Logger: logrus.NewEntry(logger)})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	head, err := l.Load(context.Background(), func(*eventlog.Record) error { return nil })
	return int64(head.Position), err
}

// readers returns the state in which each frame is read, and the offsets
// behind the commit frames that SQLite sees.
func readers(wal []byte) (before []walReader, ends []int) {
	w := walReader{salts: [8]byte(wal[16:]), prev: storedSum(wal[24:])}
	for at := walHeader; at+frameSize <= len(wal); at += frameSize {
		before = append(before, w)
		w.next(wal[at:at+frameSize], int64(at))
		if w.broken == 0 && binary.BigEndian.Uint32(wal[at+4:]) != 0 {
			ends = append(ends, at+frameSize)
		}
	}
	return before, ends
}

func damageOf(t testing.TB, wal []byte) (string, int64) {
	t.Helper()
	what, offset, err := walDamage(bytes.NewReader(wal))
	if err != nil {
		t.Fatal(err)
	}
	return what, offset
}

// value is a value without zeros that nothing else has.
func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + r.IntN(255))
	}
	return b
}

// noiseBatch is the next batch, of n puts of this size.
func noiseBatch(l *Log, r *rand.Rand, n, size int) *eventlog.Batch {
	head := l.head.Load()
	b := &eventlog.Batch{ID: eventlog.NewBatchID(), Base: eventlog.Position(head)}
	for i := range n {
		b.Records = append(b.Records, eventlog.Record{
			Seq: l.headSeq + 1 + int64(i), Position: b.Position(), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: head + 1, Sub: int64(i)},
			Key: noise(r, 30), Value: noise(r, size), CreateRevision: 1, Version: head + 1,
		})
	}
	return b
}

func appendNoise(t testing.TB, l *Log, r *rand.Rand, n, size int) {
	t.Helper()
	if err := l.Append(context.Background(), noiseBatch(l, r, n, size)); err != nil {
		t.Fatalf("Append: %v", err)
	}
}

// appendSparse appends a put whose value has sectors with a single byte in
// them: what a lost sector of zeros differs in from damage cannot be said.
func appendSparse(t testing.TB, l *Log, r *rand.Rand) {
	t.Helper()
	b := noiseBatch(l, r, 1, 20_000)
	clear(b.Records[0].Value)
	for i := 500; i < 20_000; i += 1000 {
		b.Records[0].Value[i] = 1
	}
	if err := l.Append(context.Background(), b); err != nil {
		t.Fatalf("Append: %v", err)
	}
}

// compactAtOnce is Compact in one transaction: it would take as many as its
// clock says. No free pages are given back after it.
func compactAtOnce(l *Log, seqs []int64) error {
	ctx := context.Background()
	all := func(func() bool) error { return l.deleteDoomed(func() bool { return true }) }
	return l.alone(ctx, func() error { return errors.Join(l.doom(ctx, seqs), l.step(ctx, all)) })
}

// used fills a log so that its WAL has been started over, and has batches of
// several sizes and a compaction in it, with older frames behind.
func used(t *testing.T, r *rand.Rand) *Log {
	t.Helper()
	l := mustOpen(t, t.TempDir())
	t.Cleanup(func() { _ = l.Close() })
	for _, size := range []int{100, 9000, 3000, 20_000, 400, 20_000, 20_000} {
		appendNoise(t, l, r, 3, size)
	}
	l.writerDo(t, func() {
		l.markSeq = 20 // as if it were one
		if err := l.checkpointAll("PRAGMA wal_checkpoint(RESTART)"); err != nil {
			t.Fatal(err)
		}
	})
	appendNoise(t, l, r, 1, 100)
	appendNoise(t, l, r, 2, 2000)
	if err := compactAtOnce(l, []int64{1, 2, 7}); err != nil {
		t.Fatal(err)
	}
	appendNoise(t, l, r, 1, 300)
	return l
}

// lostSector reports whether a flip of bit in byte at, which is done, may also
// come of a lost sector of zeros: one is there, and it may have had one byte
// that the flip has cleared, or one with the same effect on the checksum as
// one of the ten highest bits of another word.
func lostSector(wal []byte, at, bit int) bool {
	begin := walHeader + (at-walHeader)/frameSize*frameSize
	end := begin + frameSize
	field := at - begin
	bit += at % 4 * 8 // words are little-endian
	if field >= 16 && field < frameHeader {
		bit ^= 24 // but for the checksum itself
	}
	for sector := begin / sectorSize; sector <= (end-1)/sectorSize; sector++ {
		if allZeros(wal[max(begin, sector*sectorSize):min(end, (sector+1)*sectorSize)]) && (bit >= 22 || sector == at/sectorSize) {
			return true
		}
	}
	return false
}

// TestWALFlips flips bits of every byte of a WAL: what SQLite would drop then
// without a word is reported. Unknown remains in the last transaction what may
// come of a lost sector of zeros.
func TestWALFlips(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for name, last := range map[string]func(l *Log){
		"small last batch":  func(l *Log) { appendNoise(t, l, r, 1, 100) },
		"medium last batch": func(l *Log) { appendNoise(t, l, r, 3, 1000) },
		"large last batch":  func(l *Log) { appendNoise(t, l, r, 1, 9000) },
		"sparse last batch": func(l *Log) { appendSparse(t, l, r) },
		"last a compaction": func(l *Log) {
			if err := compactAtOnce(l, []int64{8, 9}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := used(t, r)
			last(l)
			im := takeImage(t, l)
			before, ends := readers(im.wal)
			end := ends[len(ends)-1]
			begin := ends[len(ends)-2] // of the last transaction
			if len(ends) < 5 || len(im.wal) < end+frameSize {
				t.Fatalf("transactions end at %v in %d bytes", ends, len(im.wal))
			}
			if what, _ := damageOf(t, im.wal); what != "" {
				t.Fatalf("before any damage: %s", what)
			}
			tried, unseen := 0, 0
			wal := bytes.Clone(im.wal)
			for at := range wal {
				for bit := range 8 {
					if at < begin && (at+bit)%(8*sparse) != 0 || at >= begin && (at+bit)%(3*sparse) != 0 {
						continue // enough are left
					}
					if at >= begin && at < end {
						tried++
					}
					wal[at] ^= 1 << bit
					var damaged bool
					var offset int64
					if at < walHeader {
						var what string
						what, offset = damageOf(t, wal)
						damaged = what != ""
					} else {
						w := before[(at-walHeader)/frameSize]
						for from := at - (at-walHeader)%frameSize; from+frameSize <= len(wal) && !damaged; from += frameSize {
							damaged = w.next(wal[from:from+frameSize], int64(from))
						}
						offset = w.broken
					}
					switch {
					case at >= end: // frames of an earlier use, which do not count
						if damaged {
							t.Errorf("bit %d of byte %d, behind the end at %d: damaged", bit, at, end)
						}
					case damaged:
						if want := int64(max(0, at-(at-walHeader+frameSize)%frameSize)); offset != want {
							t.Errorf("bit %d of byte %d: damaged at %d, not %d", bit, at, offset, want)
						}
					case at < begin || !lostSector(wal, at, bit):
						t.Errorf("bit %d of byte %d: not seen; the last transaction is at %d", bit, at, begin)
					default:
						unseen++
					}
					wal[at] ^= 1 << bit
				}
			}
			t.Logf("%d bytes, %d in the last transaction, where %d of %d flips are not seen", end, end-begin, unseen, tried)
			if unseen > tried*10/32 {
				t.Error("too many are not seen")
			}
		})
	}
}

// tornLog is a log before its last transaction, in between, and after it.
type tornLog struct {
	before, after image
	between       [][]byte // WALs
}

// tornLogs returns one for each way in which a last transaction comes about.
func tornLogs(t *testing.T, r *rand.Rand) map[string]tornLog {
	logs := make(map[string]tornLog)
	add := func(name string, l *Log, last func()) {
		var torn tornLog
		torn.before = takeImage(t, l)
		l.onCommit = func(commit func() error) error {
			torn.between = append(torn.between, takeImage(t, l).wal)
			return commit()
		}
		last()
		if n := len(torn.between); n > 1 {
			t.Fatalf("%s: the last transaction is %d", name, n)
		}
		torn.after = takeImage(t, l)
		logs[name] = torn
	}
	checkpoint := func(l *Log, mode string) {
		l.writerDo(t, func() {
			if err := l.checkpointAll("PRAGMA wal_checkpoint(" + mode + ")"); err != nil {
				t.Fatal(err)
			}
		})
	}
	for _, size := range []int{50, 1000, 9000} {
		l := used(t, r)
		add(fmt.Sprintf("batch of %d", size), l, func() { appendNoise(t, l, r, 2, size) })
	}
	l := used(t, r)
	add("sparse batch", l, func() { appendSparse(t, l, r) })
	l = used(t, r)
	add("compaction", l, func() {
		if err := compactAtOnce(l, []int64{8, 9, 10}); err != nil {
			t.Fatal(err)
		}
	})
	l = used(t, r)
	checkpoint(l, "RESTART")
	add("first of a log started over", l, func() { appendNoise(t, l, r, 2, 1000) })
	l = used(t, r)
	checkpoint(l, "TRUNCATE")
	add("first of a new log", l, func() { appendNoise(t, l, r, 2, 1000) })
	add("second of a new log", l, func() { appendNoise(t, l, r, 2, 1000) })

	// Larger than the cache: frames are written before the commit, and again.
	small := func(l *Log) {
		l.writerDo(t, func() {
			if err := l.writer.exec("PRAGMA cache_size=5"); err != nil {
				t.Fatal(err)
			}
		})
	}
	l = used(t, r)
	small(l)
	add("spilled", l, func() { appendNoise(t, l, r, 40, 1000) })
	l = used(t, r)
	small(l)
	add("rolled back", l, func() {
		l.writerDo(t, func() {
			failed := errors.New("failed")
			if err := errors.Join(l.begin(), l.insert(noiseBatch(l, r, 40, 1000))); err != nil {
				t.Fatal(err)
			}
			if err := l.rollback(failed); !errors.Is(err, failed) {
				t.Fatal(err)
			}
		})
	})
	add("over one rolled back", l, func() { appendNoise(t, l, r, 2, 1000) })
	add("second over one rolled back", l, func() { appendNoise(t, l, r, 1, 1000) })
	return logs
}

// place returns where the last transaction is in the WAL after it.
func (torn tornLog) place(t *testing.T) (begin, end int) {
	t.Helper()
	after := torn.after.wal
	begin = walHeader
	if before := torn.before.wal; len(before) > walHeader && bytes.Equal(before[:walHeader], after[:walHeader]) {
		_, ends := readers(before)
		begin = ends[len(ends)-1]
	}
	for end = len(after); end > begin && end <= len(torn.before.wal) && after[end-1] == torn.before.wal[end-1]; end-- {
	}
	if end = begin + (end-begin+frameSize-1)/frameSize*frameSize; end <= begin {
		t.Fatal("there is no last transaction")
	}
	return begin, end
}

// TestWALTorn: whatever a power cut leaves of the last transaction is the end
// of the log, and no damage. It leaves each sector as it was before, in
// between or after; or zero, if it was not there before.
func TestWALTorn(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for name, torn := range tornLogs(t, r) {
		t.Run(name, func(t *testing.T) {
			begin, end := torn.place(t)
			after := torn.after.wal
			images := [][]byte{after}
			for _, im := range append(torn.between, torn.before.wal) {
				// The header is durable before the first frame.
				im = append(bytes.Clone(after[:walHeader]), im[min(walHeader, len(im)):]...)
				images = append(images, append(im, make([]byte, max(0, len(after)-len(im)))...)[:len(after)])
			}
			images = append(images, make([]byte, len(after))) // only for what is the last transaction's alone
			wal := bytes.Clone(after)
			first, last := begin/sectorSize, (end-1)/sectorSize
			set := func(sector, image int) {
				if from := sector * sectorSize; from >= begin || image < len(images)-1 {
					to := min(from+sectorSize, len(wal))
					copy(wal[from:to], images[image][from:to])
				}
			}
			seen := 0
			check := func() {
				t.Helper()
				if what, _ := damageOf(t, wal); what != "" {
					t.Fatalf("%s (the last transaction is at %d to %d)", what, begin, end)
				}
				if seen++; seen%500 == 0 {
					n, err := torn.before.open(t, wal)
					if err != nil || n < torn.before.batches || n > torn.after.batches {
						t.Fatalf("%d batches of %d, %v", n, torn.after.batches, err)
					}
				}
			}
			for sector := first; sector <= last; sector++ {
				for image := 1; image < len(images); image++ {
					set(sector, image) // this one is lost
					check()
					set(sector, 0)
				}
			}
			for range 600 / sparse {
				lost := r.Float64()
				for sector := first; sector <= last; sector++ {
					set(sector, 0)
					if r.Float64() < lost {
						set(sector, 1+r.IntN(len(images)-1))
					}
				}
				check()
			}
			for size := len(after); size >= begin; size -= sparse * (1 + r.IntN(200)) {
				wal = after[:size]
				check()
			}
			t.Logf("%d bytes, %d images, %d tears", end-begin, len(images), seen)
		})
	}
}

// TestWALOverTorn: a commit that a power cut tore is the end of the log, also
// when it is written over in a file that could not be emptied, because
// somebody else was reading.
func TestWALOverTorn(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	l := used(t, r)
	before := takeImage(t, l)
	appendNoise(t, l, r, 3, 9000)
	wal := takeImage(t, l).wal
	_, ends := readers(wal)
	begin := ends[len(ends)-2]
	clear(wal[begin+frameSize/2 : begin+frameSize])

	path := filepath.Join(t.TempDir(), FileName)
	if err := errors.Join(os.WriteFile(path, before.db, 0o600), os.WriteFile(path+"-wal", wal, 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := openConn(path, "PRAGMA wal_autocheckpoint=0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for _, sql := range []string{
		"UPDATE kept SET floor = floor + 1", "UPDATE kept SET floor = floor + 1", "INSERT INTO log VALUES (1000, 1, NULL, 'x', NULL, NULL)",
	} {
		if err := c.exec(sql); err != nil {
			t.Fatal(err)
		}
		now, err := os.ReadFile(path + "-wal")
		if err != nil || len(now) != len(wal) || bytes.Equal(now, wal) || !bytes.Equal(now[:begin], wal[:begin]) {
			t.Fatalf("the torn frames were not written over (%v)", err)
		}
		if what, _ := damageOf(t, now); what != "" {
			t.Fatal(what)
		}
	}
}

// TestWALKill: a process that is killed within a transaction larger than the
// cache leaves a log that ends before it.
func TestWALKill(t *testing.T) {
	t.Parallel()
	torn := tornLogs(t, rand.New(rand.NewPCG(7, 8)))["spilled"]
	for _, wal := range torn.between {
		if n, err := torn.before.open(t, wal); err != nil || n != torn.before.batches || bytes.Equal(wal, torn.before.wal) {
			t.Fatalf("%d batches, %v, want %d", n, err, torn.before.batches)
		}
	}
}

// TestWALDamage: the error says what helps.
func TestWALDamage(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(9, 10))
	im := takeImage(t, used(t, r))
	if n, err := im.open(t, im.wal); err != nil || n != im.batches {
		t.Fatalf("undamaged: %d batches of %d, %v", n, im.batches, err)
	}
	_, ends := readers(im.wal)
	for _, at := range []int{3, walHeader + 100, ends[0] + 17, ends[1] + 5000, ends[len(ends)-1] - 4} {
		dir := t.TempDir()
		path := filepath.Join(dir, FileName)
		wal := bytes.Clone(im.wal)
		wal[at] ^= 4
		if err := errors.Join(os.WriteFile(path, im.db, 0o600), os.WriteFile(path+"-wal", wal, 0o600)); err != nil {
			t.Fatal(err)
		}
		_, err := openImage(dir)
		if !errors.Is(err, eventlog.ErrCorrupt) {
			t.Fatalf("byte %d changed: %v, want ErrCorrupt", at, err)
		}
		if now, err := os.ReadFile(path + "-wal"); err != nil || !bytes.Equal(now, wal) {
			t.Fatalf("the file was changed (%v)", err)
		}
		// The second way out that the message names.
		_, advice, _ := strings.Cut(err.Error(), "truncate -s ")
		var size int64
		if _, scanErr := fmt.Sscanf(advice, "%d", &size); scanErr != nil || !strings.Contains(advice, path+"-wal") {
			t.Fatalf("the message: %v", err)
		}
		if err := os.Truncate(path+"-wal", size); err != nil {
			t.Fatal(err)
		}
		before := int64(0) // where the transactions end that are whole
		for _, end := range ends {
			if end <= at {
				before = int64(end)
			}
		}
		if size < before || size > int64(at) {
			t.Fatalf("byte %d changed: truncate to %d, and what is before %d is whole", at, size, before)
		}
		want, err := im.open(t, im.wal[:before])
		if err != nil {
			t.Fatal(err)
		}
		if n, err := openImage(dir); err != nil || n != want {
			t.Fatalf("truncated to %d: %d batches, %v, want %d", size, n, err, want)
		}
	}
}

// TestWALUnsynced: a mode that does not sync its batches knows no damage.
func TestWALUnsynced(t *testing.T) {
	im := takeImage(t, used(t, rand.New(rand.NewPCG(11, 12))))
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	im.wal[walHeader+100] ^= 1
	if err := errors.Join(os.WriteFile(path, im.db, 0o600), os.WriteFile(path+"-wal", im.wal, 0o600)); err != nil {
		t.Fatal(err)
	}
	l, err := Open(context.Background(), Options{Dir: dir, Synchronous: UnsafeLosesAcknowledgedWritesOnPowerCut})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// chain gives the frames of wal the salts and checksums that belong there.
func chain(wal []byte, bigEndian bool) {
	w := walReader{bigEndian: bigEndian}
	magic := uint32(walMagic)
	if bigEndian {
		magic |= 1
	}
	binary.BigEndian.PutUint32(wal, magic)
	sum := w.add(walSum{}, wal[:24])
	copy(wal[24:], sum.bytes())
	for at := walHeader; at+frameSize <= len(wal); at += frameSize {
		copy(wal[at+8:], wal[16:24])
		sum = w.addFrame(sum, wal[at:at+frameSize])
		copy(wal[at+16:], sum.bytes())
	}
}

// TestWALBigEndian: the log of a big-endian machine is read as SQLite does.
func TestWALBigEndian(t *testing.T) {
	im := takeImage(t, used(t, rand.New(rand.NewPCG(13, 14))))
	_, ends := readers(im.wal)
	wal := im.wal[:ends[len(ends)-1]]
	chain(wal, true)
	if n, err := im.open(t, wal); err != nil || n != im.batches {
		t.Fatalf("%d batches of %d, %v", n, im.batches, err)
	}
	for _, at := range []int{0, walHeader, walHeader + 9, len(wal) - 7} {
		wal[at] ^= 2
		if _, err := im.open(t, wal); !errors.Is(err, eventlog.ErrCorrupt) {
			t.Fatalf("byte %d changed: %v, want ErrCorrupt", at, err)
		}
		wal[at] ^= 2
	}
}

// TestWALHeader: what may be there without a frame that counts.
func TestWALHeader(t *testing.T) {
	im := takeImage(t, used(t, rand.New(rand.NewPCG(15, 16))))
	header := bytes.Clone(im.wal[:walHeader])
	damagedHeader := bytes.Clone(header)
	damagedHeader[30] ^= 1
	newHeader := bytes.Clone(header)
	newHeader[17]++
	chain(newHeader, false)
	for name, wal := range map[string][]byte{
		"empty":                  {},
		"a part of a header":     header[:20],
		"header":                 header,
		"header alone, damaged":  damagedHeader,
		"header, part of frame":  im.wal[:walHeader+1000],
		"zeros":                  make([]byte, 3*frameSize),
		"header, zeros":          append(bytes.Clone(header), make([]byte, 3*frameSize)...),
		"started over, no frame": append(newHeader, im.wal[walHeader:]...),
	} {
		if what, _ := damageOf(t, wal); what != "" {
			t.Errorf("%s: %s", name, what)
		}
	}
	other := bytes.Clone(im.wal)
	binary.BigEndian.PutUint32(other[8:], 8192)
	chain(other, false)
	if what, _ := damageOf(t, other); !strings.Contains(what, "8192") {
		t.Errorf("a WAL with other pages: %q", what)
	}
}

func BenchmarkCheckWAL(b *testing.B) {
	const frames = 64 << 20 / frameSize
	r := rand.New(rand.NewPCG(1, 1))
	wal := make([]byte, walHeader+frames*frameSize)
	for at := 8; at < len(wal); at += 8 {
		binary.LittleEndian.PutUint64(wal[at:], r.Uint64())
	}
	binary.BigEndian.PutUint32(wal[8:], pageSize)
	chain(wal, false)
	path := filepath.Join(b.TempDir(), "wal")
	if err := os.WriteFile(path, wal, 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(wal)))
	for b.Loop() {
		if err := checkWAL(path); err != nil {
			b.Fatal(err)
		}
	}
}
