package backup

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

const (
	accessKey = "AKIAEXAMPLE"
	secretKey = "correct-horse-battery-staple"
	bucket    = "backups"
)

// storage is an S3 server with faults.
type storage struct {
	*httptest.Server
	backend *s3mem.Backend
	// fault, if set, stands before the server; it returns true if it has
	// answered.
	fault atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newStorage(t *testing.T, secure bool, options ...gofakes3.Option) *storage {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", accessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secretKey)
	s := &storage{backend: s3mem.New()}
	if err := s.backend.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	inner := gofakes3.New(s.backend, append(options, gofakes3.WithLogger(gofakes3.DiscardLog()))...).Server()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The server does not look at credentials.
		if !strings.Contains(r.Header.Get("Authorization"), "Credential="+accessKey+"/") {
			refuse(w, "InvalidAccessKeyId")
			return
		}
		if fault := s.fault.Load(); fault == nil || !(*fault)(w, r) {
			inner.ServeHTTP(w, r)
		}
	})
	if secure {
		s.Server = httptest.NewTLSServer(handler)
	} else {
		s.Server = httptest.NewServer(handler)
	}
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func refuse(w http.ResponseWriter, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusForbidden)
	_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>no</Message></Error>")
}

func (s *storage) setFault(fault func(http.ResponseWriter, *http.Request) bool) {
	s.fault.Store(&fault)
}

func (s *storage) place(t *testing.T, opt S3Options) *S3 {
	t.Helper()
	if opt.URL == "" {
		opt.URL = "s3://" + bucket + "/some/prefix"
	}
	opt.Endpoint = s.URL
	if ca := s.Certificate(); ca != nil {
		opt.CAFile = filepath.Join(t.TempDir(), "ca.pem")
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
		if err := os.WriteFile(opt.CAFile, block, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	place, err := NewS3(opt)
	if err != nil {
		t.Fatal(err)
	}
	return place
}

func (s *storage) objects(t *testing.T) []string {
	t.Helper()
	list, err := s.backend.ListBucket(bucket, nil, gofakes3.ListBucketPage{})
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, c := range list.Contents {
		keys = append(keys, c.Key)
	}
	return keys
}

func file(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, bytes.Repeat([]byte("keelson\n"), size/8), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestS3 keeps two backups, and leaves what is not its own.
func TestS3(t *testing.T) {
	s := newStorage(t, true)
	f := newFixture(t, "@every 1h", "2")
	place := s.place(t, S3Options{PathStyle: true})
	f.opt.Place = place
	others := []string{name(otherID, 1, time.Unix(0, 0)), "x/" + name(ourID, 1, time.Unix(0, 0)), "keelson-" + ourID + "-"}
	for _, other := range others {
		if err := place.Keep(t.Context(), file(t, 8), other); err != nil {
			t.Fatal(err)
		}
	}
	b := New(f.opt)
	for range 3 {
		b.due(t.Context(), time.Now(), time.Now().Add(time.Hour))
	}
	objects := slices.DeleteFunc(s.objects(t), func(key string) bool {
		return slices.Contains(others, strings.TrimPrefix(key, "some/prefix/"))
	})
	if len(objects) != 2 || !strings.Contains(objects[0], "-11-") || !strings.Contains(objects[1], "-12-") || len(s.objects(t)) != 5 {
		t.Errorf("%q of %q", objects, s.objects(t))
	}
	if len(f.files(t)) != 0 {
		t.Errorf("left: %q", f.files(t))
	}
	for _, e := range f.hook.AllEntries() {
		if line, _ := e.String(); strings.Contains(line, secretKey) || strings.Contains(line, accessKey) {
			t.Errorf("the log shows the credentials: %s", line)
		}
	}
	// After a restart it knows which is the newest.
	b = New(f.opt)
	if b.recall(t.Context()); b.last.IsZero() || !strings.HasSuffix(objects[1], b.last.Format(nameTime)+".db") {
		t.Errorf("the newest is of %v", b.last)
	}
}

// TestS3InParts uploads more than one request takes. Without TLS the server
// would not understand how minio signs the parts.
func TestS3InParts(t *testing.T) {
	s := newStorage(t, true)
	path := file(t, 40<<20)
	if err := s.place(t, S3Options{}).Keep(t.Context(), path, "large"); err != nil {
		t.Fatal(err)
	}
	object, err := s.backend.GetObject(bucket, "some/prefix/large", nil)
	if err != nil || object.Size != 40<<20 {
		t.Errorf("%+v, %v", object, err)
	}
}

// TestS3Fails: after each failure nothing of the backup is there, and the error
// says what and where.
func TestS3Fails(t *testing.T) {
	put := func(r *http.Request) bool { return r.Method == http.MethodPut || r.Method == http.MethodPost }
	for name, tt := range map[string]struct {
		size  int
		fault func(s *storage) func(http.ResponseWriter, *http.Request) bool
		want  string
	}{
		"500": {8, func(*storage) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if put(r) {
					w.WriteHeader(http.StatusInternalServerError)
				}
				return put(r)
			}
		}, "500 Internal Server Error"},
		"slow": {8, func(*storage) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				if put(r) {
					_, _ = io.Copy(io.Discard, r.Body) // so that it is noticed when the client goes
					<-r.Context().Done()
				}
				return put(r)
			}
		}, "timeout"},
		"does not read": {12 << 20, func(*storage) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				if put(r) {
					time.Sleep(1500 * time.Millisecond)
				}
				return put(r)
			}
		}, "upload: Put"},
		"cut off": {40 << 20, func(*storage) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				if put(r) && r.URL.Query().Get("partNumber") == "2" {
					_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}, "upload: Put"},
		"other content": {8, func(s *storage) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodGet {
					_, _ = s.backend.PutObject(bucket, "some/prefix/backup", map[string]string{}, strings.NewReader("Keelson\n"), 8, nil)
				}
				return false
			}
		}, ErrMismatch.Error()},
		"gone": {8, func(s *storage) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodGet {
					_, _ = s.backend.DeleteObject(bucket, "some/prefix/backup")
				}
				return false
			}
		}, "read back"},
		"refused": {8, func(*storage) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if put(r) {
					refuse(w, "AccessDenied")
				}
				return put(r)
			}
		}, "look at the credentials and what they allow"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStorage(t, name == "cut off")
			s.setFault(tt.fault(s))
			opt := S3Options{}
			if name == "slow" || name == "does not read" {
				opt.Patience = 300 * time.Millisecond
			}
			start := time.Now()
			err := s.place(t, opt).Keep(t.Context(), file(t, tt.size), "backup")
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "s3://backups/some/prefix") || strings.Contains(err.Error(), secretKey) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if objects := s.objects(t); len(objects) != 0 {
				t.Errorf("%q is there", objects)
			}
		})
	}
}

// TestS3Recovers: a server that fails now and then does not make a backup fail.
func TestS3Recovers(t *testing.T) {
	s := newStorage(t, false)
	var n atomic.Int64
	s.setFault(func(w http.ResponseWriter, _ *http.Request) bool {
		fails := n.Add(1)%2 == 1
		if fails {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return fails
	})
	if err := s.place(t, S3Options{}).Keep(t.Context(), file(t, 8), "backup"); err != nil {
		t.Fatal(err)
	}
	if len(s.objects(t)) != 1 {
		t.Error("it is not there")
	}
}

func TestS3Refuses(t *testing.T) {
	s := newStorage(t, false, gofakes3.WithTimeSource(gofakes3.FixedTimeSource(time.Now().Add(-time.Hour))))
	err := s.place(t, S3Options{}).Keep(t.Context(), file(t, 8), "backup")
	if err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("clock: %v", err)
	}

	s = newStorage(t, false)
	err = s.place(t, S3Options{URL: "s3://nowhere"}).Keep(t.Context(), file(t, 8), "backup")
	if err == nil || !strings.Contains(err.Error(), "make the bucket first") {
		t.Errorf("bucket: %v", err)
	}
	if _, err = s.place(t, S3Options{URL: "s3://nowhere"}).List(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "make the bucket first") {
		t.Errorf("bucket: %v", err)
	}

	place := s.place(t, S3Options{})
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
	if err = place.Keep(t.Context(), file(t, 8), "backup"); err == nil || !strings.Contains(err.Error(), "look at the credentials") {
		t.Errorf("credentials: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	if err = place.Keep(t.Context(), file(t, 8), "backup"); err == nil || !strings.Contains(err.Error(), "there are no credentials") {
		t.Errorf("no credentials: %v", err)
	}
	credentials := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", credentials)
	t.Setenv("AWS_PROFILE", "backup")
	if err := os.WriteFile(credentials, []byte("[backup]\naws_access_key_id="+accessKey+"\naws_secret_access_key="+secretKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err = place.Keep(t.Context(), file(t, 8), "backup"); err != nil {
		t.Errorf("credentials in a file: %v", err)
	}

	s.Close()
	if err = place.Keep(t.Context(), file(t, 8), "backup"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("down: %v", err)
	}
}

// TestS3DeletesRefused: backups go on, and what is old stays.
func TestS3DeletesRefused(t *testing.T) {
	s := newStorage(t, false)
	s.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodDelete {
			refuse(w, "AccessDenied")
		}
		return r.Method == http.MethodDelete
	})
	f := newFixture(t, "@every 1h", "1")
	f.opt.Place = s.place(t, S3Options{})
	b := New(f.opt)
	b.prepare(t.Context())
	if f.metric(t, "failures_total") != 0 || f.logged("backups cannot be removed from the place for them") != 1 {
		t.Error("it is taken for more at the start")
	}
	b.due(t.Context(), time.Now(), time.Now().Add(time.Hour))
	b.due(t.Context(), time.Now(), time.Now().Add(time.Hour))
	if len(s.objects(t)) != 3 || f.metric(t, "successes_total") != 2 || f.metric(t, "removal_failures_total") != 1 || f.logged("what they allow") != 2 {
		t.Errorf("%q", s.objects(t))
	}
}

// TestS3Unverified: an object that can neither be read back nor removed is no
// backup: another is made, none is removed for its sake, and it is once it can be.
func TestS3Unverified(t *testing.T) {
	s := newStorage(t, false)
	f := newFixture(t, "@every 1h", "2")
	f.opt.FirstPause = time.Millisecond
	place := s.place(t, S3Options{})
	f.opt.Place = place
	good := name(ourID, 1, time.Now().Add(-time.Hour))
	if err := place.Keep(t.Context(), file(t, 8), good); err != nil {
		t.Fatal(err)
	}
	var puts atomic.Int64
	s.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			puts.Add(1)
			return false
		}
		bad := puts.Load() <= 2 && strings.Contains(r.URL.Path, namePrefix) // it may be listed
		if bad {
			refuse(w, "AccessDenied")
		}
		return bad
	})
	b := New(f.opt)
	b.due(t.Context(), time.Now(), time.Now().Add(time.Hour))
	if f.metric(t, "failures_total") != 2 || f.metric(t, "successes_total") != 1 || f.metric(t, "removal_failures_total") != 2 {
		t.Errorf("%v failures, %v backups", f.metric(t, "failures_total"), f.metric(t, "successes_total"))
	}
	if objects := s.objects(t); len(objects) != 4 || !slices.Contains(objects, "some/prefix/"+good) {
		t.Errorf("%q", objects)
	}
	b.due(t.Context(), time.Now(), time.Now().Add(time.Hour))
	if objects := s.objects(t); len(objects) != 2 || !strings.Contains(objects[0], "-12-") || !strings.Contains(objects[1], "-13-") {
		t.Errorf("then %q", objects)
	}
}

// TestS3Stop: a stop does not wait for a server that hangs, whether in the first
// request or in that which would undo what was sent.
func TestS3Stop(t *testing.T) {
	for name, size := range map[string]int{"one request": 8, "in parts": 20 << 20} {
		t.Run(name, func(t *testing.T) {
			s := newStorage(t, true)
			hangs := make(chan struct{}, 10)
			s.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPost && size > 8 { // the upload begins, or is completed
					return false
				}
				_, _ = io.Copy(io.Discard, r.Body)
				hangs <- struct{}{}
				<-r.Context().Done()
				return true
			})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- s.place(t, S3Options{}).Keep(ctx, file(t, size), "backup") }()
			<-hangs
			start := time.Now()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) || time.Since(start) > abortTimeout+3*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	}
}

// TestS3Try notices what would make a backup fail, and leaves nothing.
func TestS3Try(t *testing.T) {
	s := newStorage(t, false)
	if err := s.place(t, S3Options{}).Try(t.Context()); err != nil || len(s.objects(t)) != 0 {
		t.Errorf("%v, %q", err, s.objects(t))
	}
	if err := s.place(t, S3Options{URL: "s3://nowhere"}).Try(t.Context()); err == nil || !strings.Contains(err.Error(), "make the bucket first") {
		t.Errorf("bucket: %v", err)
	}
	refuses := func(methods ...string) {
		s.setFault(func(w http.ResponseWriter, r *http.Request) bool {
			refused := slices.Contains(methods, r.Method)
			if refused {
				refuse(w, "AccessDenied")
			}
			return refused
		})
	}
	refuses(http.MethodPut)
	if err := s.place(t, S3Options{}).Try(t.Context()); err == nil || errors.Is(err, ErrNotRemoved) {
		t.Errorf("put: %v", err)
	}
	refuses(http.MethodDelete)
	for range 2 {
		err := s.place(t, S3Options{}).Try(t.Context())
		if !errors.Is(err, ErrNotRemoved) || !strings.Contains(err.Error(), "remove: ") || len(s.objects(t)) != 1 {
			t.Errorf("delete: %v, %q", err, s.objects(t))
		}
	}
	refuses(http.MethodDelete, http.MethodPut) // as where nothing is replaced
	if err := s.place(t, S3Options{}).Try(t.Context()); !errors.Is(err, ErrNotRemoved) {
		t.Errorf("replace: %v", err)
	}
	refuses(http.MethodDelete, http.MethodPut, http.MethodHead)
	if err := s.place(t, S3Options{}).Try(t.Context()); err == nil || errors.Is(err, ErrNotRemoved) {
		t.Errorf("all: %v", err)
	}
}

// TestS3Tidy aborts the uploads of the data that began long ago.
func TestS3Tidy(t *testing.T) {
	old := time.Now().Add(-2 * abandonedAfter).UTC().Format(time.RFC3339)
	now := time.Now().UTC().Format(time.RFC3339)
	s := newStorage(t, false)
	var aborted []string
	s.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodGet && r.URL.Query().Has("uploads"):
			if got := r.URL.Query().Get("prefix"); got != "some/prefix/keelson-"+ourID+"-" {
				t.Errorf("prefix %q", got)
			}
			w.Header().Set("Content-Type", "application/xml")
			upload := func(key, id, at string) string {
				return "<Upload><Key>some/prefix/" + key + "</Key><UploadId>" + id + "</UploadId><Initiated>" + at + "</Initiated></Upload>"
			}
			_, _ = io.WriteString(w, "<ListMultipartUploadsResult><Bucket>"+bucket+"</Bucket><IsTruncated>false</IsTruncated>"+
				upload("keelson-"+ourID+"-1-x.db", "old", old)+upload("keelson-"+ourID+"-2-x.db", "new", now)+"</ListMultipartUploadsResult>")
			return true
		case r.Method == http.MethodDelete && r.URL.Query().Has("uploadId"):
			aborted = append(aborted, r.URL.Query().Get("uploadId"))
			w.WriteHeader(http.StatusNoContent)
			return true
		}
		return false
	})
	if err := s.place(t, S3Options{}).Tidy(t.Context(), namePrefix+ourID+"-"); err != nil || !slices.Equal(aborted, []string{"old"}) {
		t.Errorf("%v, aborted %q", err, aborted)
	}
}

// TestS3Role: an error of the metadata service says whose it is.
func TestS3Role(t *testing.T) {
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { refuse(w, "AccessDenied") }))
	t.Cleanup(role.Close)
	s := newStorage(t, false)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
	if err := s.place(t, S3Options{}).Try(t.Context()); err == nil || !strings.Contains(err.Error(), "asked of its metadata service: ") {
		t.Error(err)
	}
}

func TestS3Options(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, opt := range []S3Options{
		{}, {URL: "s3://"}, {URL: "s3:///prefix"}, {URL: "s3://key:" + secretKey + "@bucket"}, {URL: "s3://bucket?x=y"}, {URL: "http://bucket/x"}, {URL: "s3://b/x"},
		{URL: "s3://bucket", Endpoint: "ftp://x"}, {URL: "s3://bucket", Endpoint: "https://u:" + secretKey + "@x"}, {URL: "s3://bucket", Endpoint: "https://x/path"},
		{URL: "s3://bucket", CAFile: ca}, {URL: "s3://bucket", CAFile: "/nowhere"}, {URL: "s3://bucket", Endpoint: "http://x", CAFile: ca},
	} {
		if _, err := NewS3(opt); !errors.Is(err, ErrUsage) || strings.Contains(err.Error(), secretKey) {
			t.Errorf("%+v: %v", opt, err)
		}
	}
	for host, aws := range map[string]bool{"s3.cn-north-1.amazonaws.com.cn": true, "s3.eu-west-1.amazonaws.com": true, "s3.amazonaws.com.example.com": false} {
		if s, err := NewS3(S3Options{URL: "s3://bucket", Endpoint: "https://" + host}); err != nil || s.aws != aws {
			t.Errorf("%s: %+v, %v", host, s, err)
		}
	}
	for _, opt := range []S3Options{{URL: "s3://bucket"}, {URL: "s3://bucket/a/b/"}, {URL: "s3://bucket/a", Endpoint: "minio:9000", Region: "eu"}} {
		s, err := NewS3(opt)
		if err != nil || !s.Secure() || s.String() != strings.TrimSuffix(opt.URL, "/") {
			t.Errorf("%+v: %v, %v", opt, s, err)
		}
	}
}
