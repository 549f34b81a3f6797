module github.com/keelson-io/keelson/test/harness

go 1.26.0
