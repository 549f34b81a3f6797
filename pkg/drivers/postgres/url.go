package postgres

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DefaultSchema is the schema if the URL names none.
const DefaultSchema = "keelson"

const (
	defaultConns = 8
	// reservedConns are kept for Append and Head: without them a few long
	// reads would hold up every request.
	reservedConns = 2
	minConns      = reservedConns + 1

	connectTimeout = 5 * time.Second
	pingTimeout    = time.Second
)

// schemaName needs no escape anywhere and leaves room for the prefix of the
// channel's name within the 63 bytes of an identifier.
var schemaName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,48}$`)

// settings is a URL that was understood.
type settings struct {
	pool    *pgxpool.Config
	schema  string
	channel string // of NOTIFY
}

// String names the database without any secret.
func (s *settings) String() string {
	c := s.pool.ConnConfig
	return fmt.Sprintf("schema %s of database %s on %s, as %s", s.schema, c.Database, c.Host, c.User)
}

// CheckURL reports, as ErrURL, what can be told of a URL without connecting.
func CheckURL(raw string) error {
	_, err := parseURL(raw)
	return err
}

// parseURL reads what keelson adds to libpq's URLs and sets what should be
// other than pgx's defaults. No error repeats the URL: it may hold a password.
func parseURL(raw string) (*settings, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, fmt.Errorf("%w: write postgres://user@host:port/database?parameters", ErrURL)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: its parameters are not name=value&name=value", ErrURL)
	}
	s := &settings{schema: DefaultSchema}
	if query.Has("schema") {
		s.schema = query.Get("schema")
		query.Del("schema")
	}
	if !schemaName.MatchString(s.schema) {
		return nil, fmt.Errorf("%w: schema: use 1 to 48 letters, digits, _ and -", ErrURL)
	}
	s.channel = "keelson_" + s.schema
	u.RawQuery = query.Encode()
	if s.pool, err = pgxpool.ParseConfig(u.String()); err != nil {
		return nil, urlError(err, u)
	}
	if !query.Has("pool_max_conns") {
		s.pool.MaxConns = defaultConns
	}
	if s.pool.MaxConns < minConns {
		return nil, fmt.Errorf("%w: pool_max_conns %d is too few: use at least %d", ErrURL, s.pool.MaxConns, minConns)
	}
	s.pool.PingTimeout = pingTimeout
	c := s.pool.ConnConfig
	if !query.Has("connect_timeout") {
		c.ConnectTimeout = connectTimeout
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "keelson"
	}
	if c.ValidateConnect == nil {
		// A standby would answer reads with the past.
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	c.DialFunc = dialer.DialContext
	return s, nil
}

// urlError is an error of pgx about u, without what it cites of it.
func urlError(err error, u *url.URL) error {
	if password, ok := u.User.Password(); ok && password != "" && strings.Contains(err.Error(), password) {
		return fmt.Errorf("%w: it cannot be parsed", ErrURL)
	}
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) && parse.Unwrap() != nil {
		err = parse.Unwrap()
	}
	return fmt.Errorf("%w: %w", ErrURL, err)
}
