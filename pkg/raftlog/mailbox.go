package raftlog

import "sync"

// mailbox is a queue without bound that has one reader. Its length is bounded
// by what fills it: Raft's window of messages in flight, callers that wait.
type mailbox[T any] struct {
	mu    sync.Mutex
	items []T           // mu
	wake  chan struct{} // buffered; holds a token after put
}

func newMailbox[T any]() *mailbox[T] { return &mailbox[T]{wake: make(chan struct{}, 1)} }

// put adds an item.
func (m *mailbox[T]) put(item T) {
	m.mu.Lock()
	m.items = append(m.items, item)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// len returns how many wait.
func (m *mailbox[T]) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.items)
}

// take returns all that wait, in order.
func (m *mailbox[T]) take() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := m.items
	m.items = nil
	return items
}
