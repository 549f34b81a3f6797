package sqlite

import "errors"

// FailAppend makes the next commit fail, after it was done if persisted.
func (l *Log) FailAppend(persisted bool) {
	l.onCommit = func(commit func() error) error {
		if persisted {
			if err := commit(); err != nil {
				return err
			}
		}
		return errors.New("injected fault")
	}
}
