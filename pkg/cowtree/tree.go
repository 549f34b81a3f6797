// Package cowtree is an ordered tree whose copies are free: a B+ tree with
// copy-on-write nodes. One goroutine edits it; any number read the trees that
// were frozen before, without a lock and without being in its way.
//
//	edit:    t.Edit() ── Set, Delete …  ── t (frozen by the next Edit)
//	readers:             old t, unchanged for ever
//
// Every node knows how many of its items count (Weight) and an upper bound of
// their mark, so that counting a range is O(log n) and a search for recently
// marked items passes over the subtrees that have none.
package cowtree

import (
	"math"
	"slices"
)

// Item is what a tree holds. Items are immutable while they are in a tree.
type Item[K any] interface {
	// Key returns what the item is ordered by.
	Key() K
	// Compare returns how the item's key compares with key: <0, 0 or >0.
	Compare(key K) int
	// Weight returns what the item adds to Count (0 or more), and its mark.
	Weight() (count int, mark int64)
}

// maxItems is the most items of a leaf and children of an inner node; measured
// between 16 and 128 it makes little difference, and 64 keeps copies small.
const maxItems = 64

// Tree is an ordered set of items, by value: an assignment is a snapshot as
// far as edits made after the next Edit are concerned. The zero Tree is empty
// and must be Edit-ed before it is changed.
//
// Invariant: a node is changed only if its owner is the tree's, that is, if
// this edit has made it and no frozen tree can reach it.
type Tree[K any, T Item[K]] struct {
	root  *node[K, T]
	owner *edit
}

// edit is the identity of one Edit. It must not be empty, or all would have
// one address.
type edit struct{ _ byte }

// node is a leaf (items) or an inner node (children with lower bounds). An
// item that was replaced or deleted may live on as a bound until its node is
// split or merged: one in maxItems at most.
type node[K any, T Item[K]] struct {
	owner    *edit
	items    []T           // leaf: in order
	children []*node[K, T] // inner: in order; nil in a leaf
	bounds   []T           // inner: children[i-1] < bounds[i] ≤ children[i], in keys, for i > 0
	size     int           // items below
	count    int           // sum of the items' counts
	mark     int64         // ≥ every item's mark
}

// Edit freezes what was copied from t so far and returns t for changing.
func (t Tree[K, T]) Edit() Tree[K, T] {
	t.owner = &edit{}
	return t
}

// Len returns the number of items.
func (t Tree[K, T]) Len() int {
	if t.root == nil {
		return 0
	}
	return t.root.size
}

// Count returns the sum of the items' counts.
func (t Tree[K, T]) Count() int {
	if t.root == nil {
		return 0
	}
	return t.root.count
}

// Get returns the item with key.
func (t Tree[K, T]) Get(key K) (item T, ok bool) {
	n := t.root
	if n == nil {
		return item, false
	}
	for n.children != nil {
		n = n.children[n.child(key)]
	}
	if i, found := n.search(key); found {
		return n.items[i], true
	}
	return item, false
}

// search returns the index of the first item of a leaf that is not before
// key, and whether it has that key.
func (n *node[K, T]) search(key K) (int, bool) {
	lo, hi := 0, len(n.items)
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := n.items[mid].Compare(key); {
		case c < 0:
			lo = mid + 1
		case c > 0:
			hi = mid
		default:
			return mid, true
		}
	}
	return lo, false
}

// child returns the index of the child that holds key if any does.
func (n *node[K, T]) child(key K) int {
	lo, hi := 1, len(n.children)
	for lo < hi {
		mid := (lo + hi) / 2
		if n.bounds[mid].Compare(key) > 0 {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo - 1
}

// first returns the first item below n.
func (n *node[K, T]) first() T {
	for n.children != nil {
		n = n.children[0]
	}
	return n.items[0]
}

// Set inserts item, or replaces the one with its key.
func (t *Tree[K, T]) Set(item T) {
	if t.root == nil {
		t.root = &node[K, T]{owner: t.owner}
	}
	t.root = t.root.editable(t.owner)
	right := t.root.set(t.owner, item)
	if right == nil {
		return
	}
	root := &node[K, T]{
		owner:    t.owner,
		children: append(make([]*node[K, T], 0, maxItems+1), t.root, right),
		bounds:   append(make([]T, 0, maxItems+1), t.root.first(), right.first()),
	}
	root.sum()
	t.root = root
}

// editable returns n itself if owner's edit has made it, else a copy.
func (n *node[K, T]) editable(owner *edit) *node[K, T] {
	if n.owner == owner {
		return n
	}
	c := *n
	c.owner = owner
	if n.children == nil {
		c.items = append(make([]T, 0, len(n.items)+1), n.items...)
	} else {
		c.children = append(make([]*node[K, T], 0, len(n.children)+1), n.children...)
		c.bounds = append(make([]T, 0, len(n.bounds)+1), n.bounds...)
	}
	return &c
}

// set puts item below n, which is editable, and returns the node that n had
// to be split off, if so.
func (n *node[K, T]) set(owner *edit, item T) (right *node[K, T]) {
	if n.children == nil {
		i, found := n.search(item.Key())
		count, mark := item.Weight()
		n.mark = max(n.mark, mark)
		if found {
			old, _ := n.items[i].Weight()
			n.items[i] = item
			n.count += count - old
			return nil
		}
		n.items = insert(n.items, i, item)
		n.count += count
		n.size++
		if len(n.items) > maxItems {
			return n.split(owner, i == len(n.items)-1)
		}
		return nil
	}
	i := n.child(item.Key())
	child := n.children[i].editable(owner)
	n.children[i] = child
	size, count := child.size, child.count
	right = child.set(owner, item)
	n.size += child.size - size
	n.count += child.count - count
	n.mark = max(n.mark, child.mark)
	if right == nil {
		return nil
	}
	n.size += right.size
	n.count += right.count
	n.mark = max(n.mark, right.mark)
	n.children = insert(n.children, i+1, right)
	n.bounds = insert(n.bounds, i+1, right.first())
	if len(n.children) > maxItems {
		return n.split(owner, i == len(n.children)-2)
	}
	return nil
}

// split moves the upper part of n to a new node and returns it: half of it,
// or just the end where keys come in ascending order.
func (n *node[K, T]) split(owner *edit, ascending bool) *node[K, T] {
	at := maxItems / 2
	if ascending {
		at = maxItems - 1
	}
	right := &node[K, T]{owner: owner}
	if n.children == nil {
		right.items = append(make([]T, 0, maxItems+1), n.items[at:]...)
		n.items = truncate(n.items, at)
	} else {
		right.children = append(make([]*node[K, T], 0, maxItems+1), n.children[at:]...)
		right.bounds = append(make([]T, 0, maxItems+1), n.bounds[at:]...)
		n.children = truncate(n.children, at)
		n.bounds = truncate(n.bounds, at)
	}
	n.sum()
	right.sum()
	return right
}

// sum computes n's aggregates anew.
func (n *node[K, T]) sum() {
	n.size, n.count, n.mark = len(n.items), 0, 0
	for _, item := range n.items {
		count, mark := item.Weight()
		n.count += count
		n.mark = max(n.mark, mark)
	}
	for _, child := range n.children {
		n.size += child.size
		n.count += child.count
		n.mark = max(n.mark, child.mark)
	}
}

// Delete takes the item with key out, if there is one.
func (t *Tree[K, T]) Delete(key K) {
	if _, ok := t.Get(key); !ok {
		return
	}
	t.root = t.root.editable(t.owner)
	t.root.delete(t.owner, key)
	for len(t.root.children) == 1 {
		t.root = t.root.children[0]
	}
	if t.root.size == 0 {
		t.root = nil
	}
}

// delete takes the item with key, which is there, out from below n, which is
// editable.
func (n *node[K, T]) delete(owner *edit, key K) {
	if n.children == nil {
		i, _ := n.search(key)
		count, _ := n.items[i].Weight()
		n.items = remove(n.items, i)
		n.size--
		n.count -= count
		return
	}
	i := n.child(key)
	child := n.children[i].editable(owner)
	n.children[i] = child
	count := child.count
	child.delete(owner, key)
	n.size--
	n.count += child.count - count
	switch {
	case child.size == 0:
		n.children = remove(n.children, i)
		n.bounds = remove(n.bounds, i)
	case child.width() < maxItems/4:
		n.merge(owner, i)
	}
}

// width returns how full n is.
func (n *node[K, T]) width() int { return max(len(n.items), len(n.children)) }

// merge joins the thin child i with a neighbour, where both fit into one node
// with room to spare.
func (n *node[K, T]) merge(owner *edit, i int) {
	left := i
	if i == len(n.children)-1 {
		left = i - 1
	}
	if left < 0 || n.children[left].width()+n.children[left+1].width() > maxItems*3/4 {
		return
	}
	into, from := n.children[left].editable(owner), n.children[left+1]
	into.items = append(into.items, from.items...)
	if from.children != nil {
		into.children = append(into.children, from.children...)
		into.bounds = append(into.bounds, n.bounds[left+1]) // from's own first bound is not kept up
		into.bounds = append(into.bounds, from.bounds[1:]...)
	}
	into.size += from.size
	into.count += from.count
	into.mark = max(into.mark, from.mark)
	n.children[left] = into
	n.children = remove(n.children, left+1)
	n.bounds = remove(n.bounds, left+1)
}

// Ascend calls fn for the items from key on, in order, until fn returns false.
func (t Tree[K, T]) Ascend(from K, fn func(T) bool) {
	if t.root != nil {
		t.root.ascend(from, true, math.MinInt64, fn)
	}
}

// AscendMarked is Ascend for the items with a mark of at least mark. (Others
// may come up, too: a subtree's mark is an upper bound.)
func (t Tree[K, T]) AscendMarked(from K, mark int64, fn func(T) bool) {
	if t.root != nil {
		t.root.ascend(from, true, mark, fn)
	}
}

func (n *node[K, T]) ascend(from K, bounded bool, mark int64, fn func(T) bool) bool {
	if n.mark < mark {
		return true
	}
	i := 0
	if n.children == nil {
		if bounded {
			i, _ = n.search(from)
		}
		for ; i < len(n.items); i++ {
			if !fn(n.items[i]) {
				return false
			}
		}
		return true
	}
	if bounded {
		i = n.child(from)
	}
	for ; i < len(n.children); i++ {
		if !n.children[i].ascend(from, bounded, mark, fn) {
			return false
		}
		bounded = false
	}
	return true
}

// CountBefore returns the sum of the counts of the items before key.
func (t Tree[K, T]) CountBefore(key K) int {
	return t.CountBeforeAt(key, math.MaxInt64, nil)
}

// CountBeforeAt returns the sum, over the items before key, of their counts
// where their mark is at most mark, and of fn(item) where it is above. A
// subtree without a mark above mark is not visited.
func (t Tree[K, T]) CountBeforeAt(key K, mark int64, fn func(T) int) int {
	total := 0
	for n := t.root; n != nil; {
		if n.children == nil {
			i, _ := n.search(key)
			return total + countItems[K](n.items[:i], mark, fn)
		}
		i := n.child(key)
		for _, child := range n.children[:i] {
			total += child.countAt(mark, fn)
		}
		n = n.children[i]
	}
	return total
}

// CountAt is CountBeforeAt for all items.
func (t Tree[K, T]) CountAt(mark int64, fn func(T) int) int {
	if t.root == nil {
		return 0
	}
	return t.root.countAt(mark, fn)
}

func (n *node[K, T]) countAt(mark int64, fn func(T) int) int {
	if n.mark <= mark {
		return n.count
	}
	total := countItems[K](n.items, mark, fn)
	for _, child := range n.children {
		total += child.countAt(mark, fn)
	}
	return total
}

func countItems[K any, T Item[K]](items []T, mark int64, fn func(T) int) int {
	total := 0
	for _, item := range items {
		if count, m := item.Weight(); m <= mark {
			total += count
		} else {
			total += fn(item)
		}
	}
	return total
}

func insert[E any](s []E, i int, e E) []E {
	if cap(s) == len(s) { // one growth for all of the node's inserts
		s = append(make([]E, 0, maxItems+1), s...)
	}
	return slices.Insert(s, i, e)
}

func remove[E any](s []E, i int) []E { return slices.Delete(s, i, i+1) }

// truncate shortens s and clears what it cuts off, for the collector's sake.
func truncate[E any](s []E, n int) []E {
	clear(s[n:])
	return s[:n]
}
