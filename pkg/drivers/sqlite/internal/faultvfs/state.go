package faultvfs

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

const sectorSize = 512

// State is what is on a disk: for sure, and perhaps.
type State struct {
	names map[string]*file // as the programs see them
	// older is what names may still stand for after a power cut: all that
	// they were since the directory was synced. nil is no file.
	older map[string][]*file
}

// file is one file, whatever its name.
type file struct {
	seen    []byte // as the programs see it
	durable []byte // as it is after a power cut that keeps nothing else
	pending []Op   // writes and truncations since the last sync, in order
	meant   []byte // as the newest write that failed should have made it
}

func newState() State {
	return State{names: make(map[string]*file), older: make(map[string][]*file)}
}

// apply does one operation.
func (s *State) apply(op Op) {
	f := s.names[op.Name]
	if op.Kind == Write && op.fault != 0 {
		f.meant = change(slices.Clone(f.seen), Op{Kind: Write, offset: op.offset, data: op.meant})
	}
	switch op.fault {
	case Refused, Full:
		return
	case Dropped, Stale:
		f.durable = f.cut(rand.New(rand.NewPCG(op.seed, 0)))
		f.pending = nil
		if op.fault == Dropped {
			f.seen = slices.Clone(f.durable)
		}
		return
	}
	switch op.Kind {
	case Write, Truncate:
		f.seen = change(f.seen, op)
		f.pending = append(f.pending, op)
	case Sync:
		for _, op := range f.pending {
			f.durable = change(f.durable, op)
		}
		f.pending = nil
	case Delete:
		s.rename(op.Name, nil)
	case Create:
		s.rename(op.Name, &file{})
	case adopt:
		s.names[op.Name] = &file{seen: slices.Clone(op.data), durable: slices.Clone(op.data)}
		delete(s.older, op.Name)
	case gone:
		delete(s.names, op.Name)
		delete(s.older, op.Name)
	}
	if op.dir {
		clear(s.older)
	}
}

// rename lets name stand for another file, or for none.
func (s *State) rename(name string, to *file) {
	s.older[name] = append(s.older[name], s.names[name])
	if to == nil {
		delete(s.names, name)
	} else {
		s.names[name] = to
	}
}

// change does a write or a truncation to content.
func change(content []byte, op Op) []byte {
	end := op.offset
	if op.Kind == Write {
		end += int64(len(op.data))
	}
	if int64(len(content)) < end {
		content = append(content, make([]byte, end-int64(len(content)))...)
	}
	if op.Kind == Truncate {
		return content[:end]
	}
	copy(content[op.offset:], op.data)
	return content
}

// Kill writes the files into dir as a killed process leaves them.
func (s *State) Kill(dir string) error {
	for name, f := range s.names {
		if err := os.WriteFile(filepath.Join(dir, name), f.seen, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Meant returns what a file was to be: as it is seen, and if a write of it has
// failed, as it would be seen otherwise.
func (s *State) Meant(name string) [][]byte {
	f := s.names[name]
	if f == nil {
		return nil
	}
	return [][]byte{f.seen, f.meant}
}

// PowerCut writes the files into dir as a power cut might leave them.
func (s *State) PowerCut(dir string, random *rand.Rand) error {
	var names []string
	for name := range s.names {
		names = append(names, name)
	}
	for name := range s.older {
		if s.names[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names) // the same for the same random
	for _, name := range names {
		versions := append(slices.Clone(s.older[name]), s.names[name])
		f := versions[random.IntN(len(versions))]
		if f == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), f.cut(random), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// cut is the content after a power cut.
func (f *file) cut(random *rand.Rand) []byte {
	content := slices.Clone(f.durable)
	ops := f.pending
	switch random.IntN(4) {
	case 0: // nothing more has reached the disk
		return content
	case 1: // in order: some operations, and a part of the next one
		n := random.IntN(len(ops) + 1)
		for _, op := range ops[:n] {
			content = change(content, op)
		}
		if n < len(ops) {
			content = tear(content, ops[n], 0.5, random)
		}
		return content
	}
	share := []float64{0.03, 0.5, 0.9, 0.99}[random.IntN(4)]
	for _, op := range ops {
		content = tear(content, op, share, random)
	}
	// The length may be known to the disk before the content is.
	if len(content) < len(f.seen) && random.IntN(2) == 0 {
		content = change(content, Op{Kind: Truncate, offset: int64(len(f.seen))})
	}
	return content
}

// tear does this share of the sectors of an operation to content.
func tear(content []byte, op Op, share float64, random *rand.Rand) []byte {
	if op.Kind == Truncate {
		if random.Float64() < share {
			content = change(content, op)
		}
		return content
	}
	for at, end := op.offset, op.offset+int64(len(op.data)); at < end; {
		next := min(end, (at/sectorSize+1)*sectorSize)
		if random.Float64() < share {
			content = change(content, Op{Kind: Write, offset: at, data: op.data[at-op.offset : next-op.offset]})
		}
		at = next
	}
	return content
}

// Replay does the operations of a trace again, without the program.
type Replay struct {
	State
	ops  []Op
	done int
}

// NewReplay returns a replay that has done nothing yet.
func NewReplay(ops []Op) *Replay { return &Replay{State: newState(), ops: ops} }

// Next does the next operation; it returns false when none is left.
func (r *Replay) Next() bool {
	if r.done == len(r.ops) {
		return false
	}
	r.apply(r.ops[r.done])
	r.done++
	return true
}

// Done is the number of operations done.
func (r *Replay) Done() int { return r.done }
