package kine

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// ErrURL: the datastore's URL cannot be used. No error repeats it: it may hold
// a password.
var ErrURL = errors.New("URL of kine's datastore")

// defaultDatabase is kine's if the URL names none.
const defaultDatabase = "kubernetes"

const (
	connectTimeout = 10 * time.Second
	sessionsEnd    = 2 * time.Second
	leaveTimeout   = 5 * time.Second
)

// Options are those of OpenURL.
type Options struct {
	// TLS is used for MySQL, if not nil; for PostgreSQL the URL says all.
	TLS *tls.Config

	// WhileRunning reads even if somebody else seems to use the table: what is
	// written after the start is missing then.
	WhileRunning bool
}

// OpenURL opens the datastore of a kine that was started with this endpoint:
// postgres://user@host:port/database?parameters as libpq has it,
// mysql://user@tcp(host:port)/database?parameters as Go's driver has it, or
// sqlite://path. A password that is not in it is taken from libpq's files and
// variables, or MYSQL_PWD.
func OpenURL(ctx context.Context, endpoint string, opt Options) (src *Source, err error) {
	scheme, rest, ok := strings.Cut(endpoint, "://")
	if !ok {
		return nil, fmt.Errorf("%w: write postgres://…, mysql://… or sqlite://…", ErrURL)
	}
	s := &Source{}
	defer func() {
		if err != nil {
			src, err = nil, errors.Join(err, s.Close())
		}
	}()
	switch scheme {
	case "sqlite":
		path, _, _ := strings.Cut(rest, "?")
		return OpenFile(ctx, path)
	case "postgres", "postgresql":
		err = s.openPostgres(ctx, endpoint, opt)
	case "mysql":
		err = s.openMySQL(ctx, rest, opt)
	default:
		return nil, fmt.Errorf("%w: %s://: it is postgres, mysql or sqlite", ErrURL, scheme)
	}
	if err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// Redact returns an endpoint, or a path, without user and parameters, which may
// be secret.
func Redact(endpoint string) string {
	scheme, rest, ok := strings.Cut(endpoint, "://")
	if !ok {
		return endpoint
	}
	rest, _, _ = strings.Cut(rest, "?")
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = rest[at+1:]
	}
	return "kine:" + scheme + "://" + rest
}

// snapshotOnly makes every statement of a transaction see the same state.
var snapshotOnly = &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}

// othersOfPostgres counts the sessions whose last statement was about kine's
// table, as far as the user may see them. Kine asks for news every second.
const othersOfPostgres = `SELECT COUNT(*) FROM pg_stat_activity
	WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name NOT LIKE 'keelson%' AND query ILIKE '%kine%'`

func (s *Source) openPostgres(ctx context.Context, raw string, opt Options) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("%w: it cannot be parsed: write postgres://user@host:port/database?parameters", ErrURL)
	}
	// As kine does it.
	if u.Path = strings.ToLower(u.Path); u.Path == "" || u.Path == "/" {
		u.Path = "/" + defaultDatabase
	}
	config, err := pgx.ParseConfig(u.String())
	if err != nil {
		return fmt.Errorf("%w: PostgreSQL's driver does not take it", ErrURL)
	}
	config.RuntimeParams["application_name"] = "keelson import"
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	if !u.Query().Has("connect_timeout") {
		config.ConnectTimeout = connectTimeout
	}
	db := stdlib.OpenDB(*config)
	var standby bool
	if err := db.QueryRowContext(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		// What the driver says of each address has a line of its own.
		return errors.Join(fmt.Errorf("PostgreSQL of kine: %s", strings.Join(strings.Fields(err.Error()), " ")), db.Close())
	}
	if standby {
		return errors.Join(errors.New("PostgreSQL of kine: this is a standby, which may lack what was written last: use the primary"), db.Close())
	}
	return s.openServer(ctx, db, othersOfPostgres, opt)
}

// othersOfMySQL counts the other sessions that use the database, as far as the
// user may see them; what they did last cannot be seen.
const othersOfMySQL = `SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB = DATABASE() AND ID <> CONNECTION_ID()`

func (s *Source) openMySQL(ctx context.Context, dsn string, opt Options) error {
	config, err := mysql.ParseDSN(dsn)
	if err != nil {
		return fmt.Errorf("%w: write mysql://user@tcp(host:port)/database?parameters", ErrURL)
	}
	if config.DBName == "" {
		config.DBName = defaultDatabase
	}
	if config.Passwd == "" {
		config.Passwd = os.Getenv("MYSQL_PWD")
	}
	if config.Timeout == 0 {
		config.Timeout = connectTimeout
	}
	if opt.TLS != nil {
		config.TLS = opt.TLS.Clone() // instead of what the URL says, as kine has it
	}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return fmt.Errorf("%w: MySQL's driver does not take it", ErrURL)
	}
	return s.openServer(ctx, sql.OpenDB(connector), othersOfMySQL, opt)
}

// openServer begins the transaction unless somebody else uses the table.
func (s *Source) openServer(ctx context.Context, db *sql.DB, others string, opt Options) error {
	db.SetMaxOpenConns(1) // or the others are ourselves
	sessions, err := countOthers(ctx, db, others)
	// Those of a kine that was just stopped take a moment to end.
	for patience := time.After(sessionsEnd); err == nil && sessions > 0 && !opt.WhileRunning; {
		select {
		case <-patience:
			return errors.Join(fmt.Errorf("%w: %d other sessions use its database: stop every kine and k3s server first", ErrRunning, sessions), db.Close())
		case <-time.After(sessionsEnd / 20):
			sessions, err = countOthers(ctx, db, others)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("datastore of kine: %w", err), db.Close())
	}
	err = s.begin(ctx, db, snapshotOnly)
	release := s.release
	s.release = []func() error{func() error { return leave(release) }}
	if err != nil {
		return fmt.Errorf("datastore of kine: %w", err)
	}
	return nil
}

// leave takes leave of a server. One that does not answer is left as it is:
// nothing was changed there, and it notices when the process ends.
func leave(release []func() error) error {
	done := make(chan error, 1)
	go func() { done <- closeAll(release) }()
	select {
	case err := <-done:
		return err
	case <-time.After(leaveTimeout):
		return nil
	}
}

func countOthers(ctx context.Context, db *sql.DB, statement string) (n int, err error) {
	err = db.QueryRowContext(ctx, statement).Scan(&n)
	return n, err
}
