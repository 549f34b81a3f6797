package etcdctl

import (
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

// TestNoAuth has what `auth`, `user` and `role` say while authentication is
// off and there are no users and roles.
func TestNoAuth(t *testing.T) {
	compare(t, func(s *session) {
		s.do("auth status", "auth disable", "user list", "role list", "user get nobody", "role get nothing",
			"auth status x", "user add", "role add", "role grant-permission a", "role grant-permission a none k",
			"get k --user nobody:nothing", "auth", "user", "role")
	})
}

// TestNoDowngrade has what `downgrade` says while there is none and to versions
// that etcd does not downgrade to.
func TestNoDowngrade(t *testing.T) {
	compare(t, func(s *session) {
		s.do("downgrade cancel", "downgrade cancel -w json", "downgrade validate 3.5", "downgrade validate 3.7.0", "downgrade validate 3.8.1",
			"downgrade validate 2.6", "downgrade validate x", "downgrade enable 3.5.0", "downgrade enable 3", "downgrade enable", "downgrade")
	})
}

// TestUnsupported has the commands that keelson does not have yet. Each fails
// and says what is missing.
func TestUnsupported(t *testing.T) {
	s := newSession(t, harness.Keelson)
	id, _, _ := strings.Cut(string(s.stdout("member", "list")), ",")
	const auth = "users and roles are not supported"
	type command struct{ args, says string }
	commands := []command{
		{"auth enable", auth},
		{"user add somebody:secret", auth},
		{"user delete somebody", auth},
		{"user passwd somebody --interactive=false", auth},
		{"user grant-role somebody something", auth},
		{"user revoke-role somebody something", auth},
		{"role add something", auth},
		{"role delete something", auth},
		{"role grant-permission something readwrite key", auth},
		{"role revoke-permission something key", auth},
		{"downgrade validate 3.6", "downgrades are not supported"},
		{"downgrade enable 3.6.0", "downgrades are not supported"},
	}
	if s.nodes == 1 {
		commands = append(commands,
			command{"member add another --peer-urls=http://127.0.0.1:1", "members cannot be added"},
			command{"member add another --learner --peer-urls=http://127.0.0.1:1", "members cannot be added"},
			command{"member remove " + id, "its only member cannot be removed"},
			command{"member update " + id + " --peer-urls=http://127.0.0.1:1", "cannot be given other peer URLs"})
	}
	for _, c := range commands {
		t.Run(c.args, func(t *testing.T) {
			printed := s.run(t, step{args: c.args, stdin: "secret\n"})
			if !strings.HasPrefix(printed, "exit: exit status") || !strings.Contains(printed, c.says) {
				t.Errorf("%q is not an error that says %q", printed, c.says)
			}
		})
	}
	s.quiet("put still 1", "get still")
}
