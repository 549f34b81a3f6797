//go:build race

package raftlog

// Sparse is by how much tests that only compute, or play random scripts, try
// less: the race detector makes them many times as slow, and finds in a few
// what it finds in all. It is odd, so that each bit of a byte has its turn.
const Sparse = 5
