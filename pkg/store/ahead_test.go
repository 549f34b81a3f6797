package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// TestReadAhead: a get of a value that is not in memory brings in those of the
// keys after it, in one read, as long as half of the cache is free: what is
// deleted is none, and what is damaged is no matter to others.
func TestReadAhead(t *testing.T) {
	disk := &memlog.Disk{}
	f := open(t, disk, Options{})
	const keys = 3 * aheadKeys
	key := func(i int) string { return fmt.Sprintf("key%04d", i) }
	for i := range keys {
		f.put(key(i), "old")
		f.put(key(i), fmt.Sprint("value ", i))
	}
	f.delete(key(5), "")
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	cached := func(f *fixture) (n int) {
		for i := range keys {
			if e, ok := f.now().keys.Get(key(i)); ok && f.values.cache.has(e.last.seq) {
				n++
			}
		}
		return n
	}

	f, l := openFaulty(t, disk, nil)
	f.opt.CacheBytes = DefaultCacheBytes
	f.values.cache = newValueCache(DefaultCacheBytes)
	reads := make(chan struct{}, keys)
	l.set(&l.values, func() error { reads <- struct{}{}; return nil })
	f.get(key(3), 0)
	await(t, "the values after that of a get", func() bool { return cached(f) == 1+aheadKeys })
	f.get(key(4), 0)
	f.get(key(1+aheadKeys), 0)
	if n := len(reads); n != 2 {
		t.Errorf("%d reads, want that of the get and one of the keys after it", n)
	}
	if e, _ := f.now().keys.Get(key(5)); f.values.cache.has(e.last.seq) {
		t.Error("the value of a key that is deleted is cached")
	}

	// A cache that is half full takes in what was asked for.
	f.opt.CacheBytes = 2 * f.values.cache.size()
	f.get(key(keys-10), 0)
	if n := len(f.aheadOf); n != 0 || cached(f) != 2+aheadKeys {
		t.Errorf("%d values are cached, want %d", cached(f), 2+aheadKeys)
	}

	// Nobody hears that others' values cannot be read.
	f.opt.CacheBytes = DefaultCacheBytes
	for len(reads) > 0 {
		<-reads
	}
	second := false // by l.mu
	l.set(&l.values, func() error {
		reads <- struct{}{}
		if second {
			return errFault
		}
		second = true
		return nil
	})
	f.get(key(keys-20), 0)
	<-reads
	<-reads
	l.set(&l.values, nil)
	f.get(key(keys-19), 0)
	if err := f.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestReadAheadDamage: beside a record that is damaged the others are read ahead,
// and it is tried no more than once for that.
func TestReadAheadDamage(t *testing.T) {
	const keys = 2 * aheadKeys
	disk := &memlog.Disk{}
	l := &damagedLog{Log: disk.Open(nil), seqs: []int64{aheadKeys / 2}}
	f := openOn(t, disk, l, Options{CacheBytes: 1})
	key := func(i int) string { return fmt.Sprintf("key%04d", i) }
	for i := range keys {
		f.put(key(i), fmt.Sprint("value ", i)) // of record i+1
	}
	f.opt.CacheBytes = DefaultCacheBytes
	f.values.cache = newValueCache(DefaultCacheBytes)
	all := func(n int64) func() bool {
		return func() bool {
			for seq := int64(1); seq <= n; seq++ {
				if f.values.cache.has(seq) == (seq == aheadKeys/2) {
					return false
				}
			}
			return true
		}
	}
	f.get(key(0), 0)
	await(t, "the values beside a record that is damaged", all(aheadKeys+1))
	if n := l.failed.Load(); n != 2 {
		t.Errorf("%d reads have failed, want the one of many and that of the record", n)
	}
	f.values.cache.drop(1)
	f.get(key(0), 0)
	await(t, "more values", all(keys))
	if n := l.failed.Load(); n != 2 {
		t.Errorf("%d reads have failed, want no more than two", n)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}
