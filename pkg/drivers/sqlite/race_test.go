//go:build race

package sqlite

// sparse is by how much tests that only compute try less: the race detector
// makes them twenty times as slow and has nothing to find there.
const sparse = 16
