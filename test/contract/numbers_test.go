package contract

import (
	"strconv"
	"testing"
)

// statementCount is how many statements the list has.
const statementCount = 46

// issues are etcd's bugs that the list wants a test for. 19179 is 18089's.
var issues = []int{14370, 15220, 15271, 17529, 17780, 18055, 18089, 18667, 20221, 20418}

// TestNumbers checks that every statement and every issue has a test.
func TestNumbers(t *testing.T) {
	has := map[string]bool{}
	for _, s := range statements() {
		number, rest := s.name[:2], s.name
		if rest[:min(6, len(rest))] == "issue_" {
			number = rest[6:11]
		}
		has[number] = true
	}
	for n := range statementCount {
		if name := strconv.Itoa(101 + n)[1:]; !has[name] {
			t.Errorf("statement %s has no test", name)
		}
	}
	for _, n := range issues {
		if !has[strconv.Itoa(n)] {
			t.Errorf("issue %d has no test", n)
		}
	}
}
