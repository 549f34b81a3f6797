//go:build !race

package raftlog

// Sparse: see the one with the race detector.
const Sparse = 1
