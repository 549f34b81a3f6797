package watch

// span is what a watcher watches: one key, or all keys in [start, end), or all
// keys from start on.
type span struct {
	start, end string
	open       bool // no upper end
	single     bool // only start
}

// newSpan reads etcd's convention: no end means one key, "\0" all keys from
// key on.
func newSpan(key, end []byte) span {
	switch {
	case len(end) == 0:
		return span{start: string(key), single: true}
	case len(end) == 1 && end[0] == 0:
		return span{start: string(key), open: true}
	}
	return span{start: string(key), end: string(end)}
}

// empty says whether no key can be in the span.
func (s span) empty() bool { return !s.single && !s.open && s.start >= s.end }

func (s span) contains(key []byte) bool {
	if s.single {
		return string(key) == s.start
	}
	return string(key) >= s.start && (s.open || string(key) < s.end)
}

// compare orders ranges by start, then by end.
func (s span) compare(o span) int {
	switch {
	case s.start < o.start:
		return -1
	case s.start > o.start:
		return 1
	case s.open != o.open:
		if o.open {
			return -1
		}
		return 1
	case s.end < o.end:
		return -1
	case s.end > o.end:
		return 1
	}
	return 0
}

// group is the watchers in sync that watch the same span.
type group struct {
	span     span
	watchers []*watcher
	pending  *run // what the batch being published holds for the group
}

// index finds the groups that watch a key, in O(log n) for each.
//
// Invariant: no group in it is empty.
type index struct {
	single map[string]*group
	ranges *node
}

func (x *index) add(w *watcher) {
	var g *group
	if w.span.single {
		if x.single == nil {
			x.single = map[string]*group{}
		}
		if g = x.single[w.span.start]; g == nil {
			g = &group{span: w.span}
			x.single[w.span.start] = g
		}
	} else if g = x.ranges.find(w.span); g == nil {
		g = &group{span: w.span}
		x.ranges = x.ranges.insert(g)
	}
	w.group, w.place = g, len(g.watchers)
	g.watchers = append(g.watchers, w)
}

func (x *index) remove(w *watcher) {
	g := w.group
	end := len(g.watchers) - 1
	g.watchers[w.place] = g.watchers[end]
	g.watchers[w.place].place = w.place
	g.watchers[end] = nil
	g.watchers = g.watchers[:end]
	w.group = nil
	if end > 0 {
		return
	}
	if g.span.single {
		delete(x.single, g.span.start)
	} else {
		x.ranges = x.ranges.remove(g.span)
	}
}

// match appends the groups that watch key to dst.
func (x *index) match(key []byte, dst []*group) []*group {
	if g := x.single[string(key)]; g != nil {
		dst = append(dst, g)
	}
	return x.ranges.stab(key, dst)
}
