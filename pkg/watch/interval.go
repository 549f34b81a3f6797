package watch

// node is the root of an interval tree: an AVL tree of ranges by start and
// end, each node knowing the greatest end below it. A nil node is an empty
// tree. Changing methods return the new root.
type node struct {
	group       *group
	left, right *node
	height      int
	maxEnd      string // greatest end in the subtree
	maxOpen     bool   // some range in the subtree has no upper end
}

func (n *node) find(s span) *group {
	for n != nil {
		c := s.compare(n.group.span)
		if c == 0 {
			return n.group
		}
		if c < 0 {
			n = n.left
		} else {
			n = n.right
		}
	}
	return nil
}

// insert adds g; its span is not in the tree yet.
func (n *node) insert(g *group) *node {
	switch {
	case n == nil:
		n = &node{group: g}
	case g.span.compare(n.group.span) < 0:
		n.left = n.left.insert(g)
	default:
		n.right = n.right.insert(g)
	}
	return n.balance()
}

// remove takes the group of s out, if it is there.
func (n *node) remove(s span) *node {
	if n == nil {
		return nil
	}
	switch c := s.compare(n.group.span); {
	case c < 0:
		n.left = n.left.remove(s)
	case c > 0:
		n.right = n.right.remove(s)
	case n.left == nil:
		return n.right
	case n.right == nil:
		return n.left
	default:
		next := n.right
		for next.left != nil {
			next = next.left
		}
		n.group = next.group
		n.right = n.right.remove(next.group.span)
	}
	return n.balance()
}

// stab appends the groups of all ranges that hold key to dst.
func (n *node) stab(key []byte, dst []*group) []*group {
	for n != nil && (n.maxOpen || string(key) < n.maxEnd) {
		dst = n.left.stab(key, dst)
		if string(key) < n.group.span.start {
			return dst
		}
		if n.group.span.open || string(key) < n.group.span.end {
			dst = append(dst, n.group)
		}
		n = n.right
	}
	return dst
}

func (n *node) depth() int {
	if n == nil {
		return 0
	}
	return n.height
}

// update recomputes what n knows of its subtree.
func (n *node) update() {
	n.height = 1 + max(n.left.depth(), n.right.depth())
	n.maxEnd, n.maxOpen = n.group.span.end, n.group.span.open
	for _, c := range [...]*node{n.left, n.right} {
		if c != nil {
			n.maxEnd = max(n.maxEnd, c.maxEnd)
			n.maxOpen = n.maxOpen || c.maxOpen
		}
	}
}

func (n *node) balance() *node {
	n.update()
	switch lean := n.left.depth() - n.right.depth(); {
	case lean > 1:
		if n.left.left.depth() < n.left.right.depth() {
			n.left = n.left.rotateLeft()
		}
		return n.rotateRight()
	case lean < -1:
		if n.right.right.depth() < n.right.left.depth() {
			n.right = n.right.rotateRight()
		}
		return n.rotateLeft()
	}
	return n
}

func (n *node) rotateLeft() *node {
	top := n.right
	n.right, top.left = top.left, n
	n.update()
	top.update()
	return top
}

func (n *node) rotateRight() *node {
	top := n.left
	n.left, top.right = top.right, n
	n.update()
	top.update()
	return top
}
