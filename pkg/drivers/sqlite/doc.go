// Package sqlite keeps a log in one SQLite file (modernc.org/sqlite, no cgo).
package sqlite
