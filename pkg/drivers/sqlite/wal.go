package sqlite

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// SQLite takes the first frame of the WAL that does not verify for the end of
// the log. After a power cut it is; where a bit has changed on the disk, the
// acknowledged batches behind it would be gone without a word. checkWAL tells
// the two apart, before SQLite opens the file.
//
//	header   magic version pageSize checkpoint salt(8) checksum(8)
//	frame    page commit salt(8) checksum(8) content(pageSize)
//
// commit is not 0 in the last frame of a transaction. A frame's checksum goes
// on from that of the frame before and covers page, commit and content; its
// salts are the header's, so that frames of an earlier use of the file, which
// may follow, are known as such.
//
// What a power cut can do: every commit is fsynced before the next
// transaction writes, and the header before the first frame. So only the
// last transaction can be torn. Of it whole sectors are lost, which means that
// they are as before: frames of an earlier use of the file, or zeros. A sector
// that was there already and is only written to behind its old content keeps
// that, as SQLite's own durability requires (SQLITE_IOCAP_POWERSAFE_OVERWRITE).
//
// Frames of a transaction that was rolled back, or that a killed process had
// begun, stay until others are written over them. Those are chained to another
// frame than the one that is before them now, and none of them commits. Of a
// commit that was torn, and is written over, the commit frame may be left, but
// then nothing that was chained to it. So it proves damage if, behind the
// first frame that does not verify, a commit is followed by a frame that is
// chained to it.
//
// Without that proof, damage can only be in the last transaction or at the end
// of the one before. There a single byte that has changed is told from what a
// power cut does; see oneByte. What remains unknown: some bytes that may come
// of a lost sector, in the last transaction; damage of more than a byte, in
// these two; and a file that has become shorter.
const (
	walMagic    = 0x377f0682 // the lowest bit: checksums are of big-endian words
	frameHeader = frameSize - pageSize
	sectorSize  = 512
)

// checkWAL returns an ErrCorrupt that says what to do if the WAL at path is
// damaged. Nobody else may write to it meanwhile.
func checkWAL(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	what, offset, err := walDamage(f)
	if err != nil || what == "" {
		return err
	}
	return fmt.Errorf("%w: %s: %s; restore a backup, or give up what was written from there on: truncate -s %d '%s'",
		eventlog.ErrCorrupt, path, what, offset, path)
}

// walDamage says what is damaged in a WAL and where, or nothing.
func walDamage(file io.Reader) (what string, offset int64, err error) {
	r := bufio.NewReaderSize(file, 64*frameSize)
	if _, err := r.Peek(walHeader + frameSize); err != nil {
		return "", 0, atEnd(err) // without a frame nothing is lost
	}
	var header [walHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return "", 0, err
	}
	w := walReader{bigEndian: binary.BigEndian.Uint32(header[:])&1 != 0, salts: [8]byte(header[16:])}
	w.prev = w.add(walSum{}, header[:24])
	if binary.BigEndian.Uint32(header[:])&^1 != walMagic || w.prev != storedSum(header[24:]) {
		empty, err := onlyZeros(io.MultiReader(bytes.NewReader(header[:]), r))
		if err != nil || empty {
			return "", 0, err
		}
		return "the header is damaged", 0, nil
	}
	if size := binary.BigEndian.Uint32(header[8:]); size != pageSize {
		return fmt.Sprintf("it is of a database with pages of %d bytes", size), 0, nil
	}
	frame := make([]byte, frameSize)
	for offset = walHeader; ; offset += frameSize {
		if _, err := io.ReadFull(r, frame); err != nil {
			return "", 0, atEnd(err)
		}
		if w.next(frame, offset) {
			return fmt.Sprintf("frame %d, at offset %d, is damaged", (w.broken-walHeader)/frameSize+1, w.broken), w.broken, nil
		}
	}
}

// atEnd returns nil for the end of the file, wherever it is.
func atEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func onlyZeros(r io.Reader) (bool, error) {
	buf := make([]byte, pageSize)
	for {
		n, err := r.Read(buf)
		if !allZeros(buf[:n]) {
			return false, nil
		}
		if err != nil {
			return true, atEnd(err)
		}
	}
}

func allZeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// walReader takes the frames of a WAL one after the other.
type walReader struct {
	bigEndian bool
	salts     [8]byte
	prev      walSum // as the frame before has it
	broken    int64  // offset of the first frame that does not verify; 0: none yet
	sum       walSum // with which that frame would
	commit    bool   // behind broken: the frame before ends a transaction
}

// next takes the frame at offset and reports whether the one at w.broken is
// now known to be damaged.
func (w *walReader) next(frame []byte, offset int64) (damaged bool) {
	stored := storedSum(frame[16:])
	ours := [8]byte(frame[8:]) == w.salts
	chained := false
	switch {
	case w.broken == 0:
		sum := w.addFrame(w.prev, frame)
		if chained = ours && sum == stored; !chained {
			w.broken, w.sum = offset, sum
			damaged = w.oneByte(frame, offset)
		}
	case ours:
		chained = w.addFrame(w.prev, frame) == stored
		onlySum := offset == w.broken+frameSize && differ(w.prev.bytes(), w.sum.bytes()) == 1 && w.addFrame(w.sum, frame) == stored
		damaged = chained && w.commit || onlySum
	}
	// A header that is in one sector is of one piece, even if its frame's
	// content is not.
	trusted := chained || offset%sectorSize <= sectorSize-frameHeader
	w.commit = w.broken != 0 && trusted && binary.BigEndian.Uint32(frame[4:]) != 0
	w.prev = stored
	return damaged
}

// oneByte reports whether the frame at w.broken would verify if one byte of it
// were another, and a power cut cannot have made it so.
//
// A false alarm after a power cut takes one of these:
//   - a frame of another origin that fits in all but one of 8 bytes: below
//     2^-40.
//   - a frame that lacks one sector alone, in whose place is that of an earlier
//     use of the file, at least walTarget bytes of log before, and differs in
//     that byte only. It would be of the same page, which is by chance at the
//     same place; the pages that change least (the row of kept, a pointer map)
//     change in several bytes over so many transactions.
//
// A lost sector of zeros takes less: it is not called damage, nor is what may
// come of one.
func (w *walReader) oneByte(frame []byte, offset int64) bool {
	stored := storedSum(frame[16:])
	if stored == w.sum {
		return differ(frame[8:16], w.salts[:]) == 1
	}
	if [8]byte(frame[8:]) != w.salts {
		return false
	}
	damaged := differ(stored.bytes(), w.sum.bytes()) == 1
	// The checksum is linear: a word that is higher by delta and has n words
	// behind it makes it higher by delta times the Fibonacci numbers n and
	// n+1, mod 2^32. One of them is odd, so there is one delta to try.
	d0, d1 := stored.s0-w.sum.s0, stored.s1-w.sum.s1
	for n, f0, f1 := 0, uint32(0), uint32(1); n < (8+pageSize)/4; n, f0, f1 = n+1, f1, f0+f1 {
		delta := d1 * inverse(f1)
		if f1%2 == 0 {
			delta = d0 * inverse(f0)
		}
		if delta*f0 != d0 || delta*f1 != d1 {
			continue
		}
		at := frameSize - 4 - 4*n
		if at < frameHeader {
			at -= frameHeader - 8 // between are salts and checksum
		}
		was := make([]byte, 4)
		w.putWord(was, w.word(frame[at:])+delta)
		if differ(was, frame[at:at+4]) != 1 {
			continue
		}
		sector := (offset+int64(at))/sectorSize*sectorSize - offset
		if allZeros(frame[max(sector, 0):min(sector+sectorSize, frameSize)]) {
			return false
		}
		damaged = true
	}
	return damaged
}

// differ counts the bytes in which a and b, of one length, differ.
func differ(a, b []byte) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// inverse is the multiplicative inverse of the odd number x, by Newton's
// iteration: x is its own inverse in the lowest three bits, and each round
// doubles those.
func inverse(x uint32) uint32 {
	y := x
	for range 4 {
		y *= 2 - x*y
	}
	return y
}

// walSum is the checksum of a WAL up to some frame.
type walSum struct{ s0, s1 uint32 }

func storedSum(b []byte) walSum {
	return walSum{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
}

func (s walSum) bytes() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, s.s0), s.s1)
}

// addFrame goes on from s with a frame.
func (w *walReader) addFrame(s walSum, frame []byte) walSum {
	return w.add(w.add(s, frame[:8]), frame[frameHeader:])
}

// add goes on from s with b, a multiple of 8 bytes.
func (w *walReader) add(s walSum, b []byte) walSum {
	for ; len(b) >= 8; b = b[8:] {
		s.s0 += w.word(b) + s.s1
		s.s1 += w.word(b[4:]) + s.s0
	}
	return s
}

func (w *walReader) word(b []byte) uint32 {
	x := binary.LittleEndian.Uint32(b)
	if w.bigEndian {
		x = bits.ReverseBytes32(x)
	}
	return x
}

func (w *walReader) putWord(b []byte, x uint32) {
	if w.bigEndian {
		x = bits.ReverseBytes32(x)
	}
	binary.LittleEndian.PutUint32(b, x)
}
