package postgres

import "errors"

// FailAppend makes the next Append fail, after it was done if persisted.
func (l *Log) FailAppend(persisted bool) {
	l.onAppend = func(send func() error) error {
		l.onAppend = nil
		if persisted {
			if err := send(); err != nil {
				return err
			}
		}
		return errors.New("injected fault")
	}
}
