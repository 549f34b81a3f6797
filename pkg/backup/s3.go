package backup

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// S3Options say where in S3-compatible storage backups are kept. What the
// credentials are is known to the environment (AWS_ACCESS_KEY_ID and so on),
// to AWS's files or to the machine's role, and is asked for again each time.
type S3Options struct {
	URL       string        // s3://bucket/prefix
	Endpoint  string        // URL of the server; empty: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or AWS
	Region    string        // empty: AWS_REGION, AWS_DEFAULT_REGION or what the server says
	CAFile    string        // of the server's certificate; empty: the system's
	PathStyle bool          // the bucket is in the path and not in the name of the host
	Patience  time.Duration // after which a server that does nothing is given up; 0 is a minute
}

const (
	// S3Scheme is how the URL of a bucket begins.
	S3Scheme = "s3://"

	defaultPatience = time.Minute
	defaultRegion   = "us-east-1" // what servers that have no regions go by
	s3Tries         = 3           // of one request; whole backups are tried again as well

	// What failed is undone in undoTimeout, and in abortTimeout once the server
	// stops.
	undoTimeout  = time.Minute
	abortTimeout = 2 * time.Second

	// tryObject is what Try puts there: of one name, so that no more than one is
	// left.
	tryObject = "keelson.try"

	// abandonedAfter is how old an unfinished upload is that nobody works on.
	abandonedAfter = day
)

// S3 is a Place in S3-compatible storage.
type S3 struct {
	bucket, prefix string
	host           string
	secure         bool
	aws            bool
	region         string
	lookup         minio.BucketLookupType
	transport      *http.Transport
}

// NewS3 reads opt, as far as that is possible without the server; the error is
// ErrUsage.
func NewS3(opt S3Options) (*S3, error) {
	u, err := url.Parse(opt.URL)
	if err != nil || u.Scheme+"://" != S3Scheme || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// Not repeated: it may hold a secret where none belongs.
		return nil, fmt.Errorf("%w: write s3://bucket/prefix and nothing more; credentials are those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS's files", ErrUsage)
	}
	if err := s3utils.CheckValidBucketName(u.Host); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	s := &S3{bucket: u.Host, prefix: strings.Trim(u.Path, "/")}
	s.region = cmp.Or(opt.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
	if opt.PathStyle {
		s.lookup = minio.BucketLookupPath
	}
	if err := s.setEndpoint(cmp.Or(opt.Endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"))); err != nil {
		return nil, err
	}
	if err := s.setTransport(opt); err != nil {
		return nil, err
	}
	if _, err := s.connect(credentials.NewStaticV4("none", "none", ""), s.transport); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return s, nil
}

func (s *S3) setEndpoint(endpoint string) error {
	if endpoint == "" {
		s.host, s.secure, s.aws = "s3.amazonaws.com", true, true
		return nil
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%w: the endpoint is not a URL such as https://s3.example.com:9000", ErrUsage)
	}
	s.host, s.secure = u.Host, u.Scheme == "https"
	s.aws = strings.HasSuffix(u.Hostname(), ".amazonaws.com") || strings.HasSuffix(u.Hostname(), ".amazonaws.com.cn")
	if !s.aws {
		s.region = cmp.Or(s.region, defaultRegion)
	}
	return nil
}

func (s *S3) setTransport(opt S3Options) error {
	transport, err := minio.DefaultTransport(s.secure)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	patience := cmp.Or(opt.Patience, defaultPatience)
	dialer := &net.Dialer{Timeout: min(patience, 10*time.Second)}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &patientConn{c, patience}, nil
	}
	transport.ResponseHeaderTimeout = patience
	if opt.CAFile != "" {
		if !s.secure {
			return fmt.Errorf("%w: a CA file is of no use without an https endpoint", ErrUsage)
		}
		pem, err := os.ReadFile(opt.CAFile)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%w: %s has no certificate", ErrUsage, opt.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	s.transport = transport
	return nil
}

// patientConn is a connection on which something happens within some time.
type patientConn struct {
	net.Conn
	patience time.Duration
}

func (c *patientConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write also lets a Read wait on that is for the answer to a long request.
func (c *patientConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.patience)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Secure reports whether the connection is encrypted.
func (s *S3) Secure() bool { return s.secure }

func (s *S3) String() string { return S3Scheme + path.Join(s.bucket, s.prefix) }

func (s *S3) object(name string) string { return path.Join(s.prefix, name) }

func (s *S3) connect(c *credentials.Credentials, transport http.RoundTripper) (*minio.Client, error) {
	return minio.New(s.host, &minio.Options{
		Creds: c, Secure: s.secure, Transport: transport, Region: s.region, BucketLookup: s.lookup, MaxRetries: s3Tries,
	})
}

// ending is a transport whose requests all end with a context: minio aborts an
// upload in one of its own, with a patience that a stop does not have.
type ending struct {
	*http.Transport
	ctx context.Context
}

// RoundTrip implements http.RoundTripper.
func (e *ending) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(e.ctx, cancel) // the body of the response is read after this
	return e.Transport.RoundTrip(r.WithContext(ctx))
}

// outlast returns a context that ends when end is called, or abortTimeout after
// ctx has ended.
func outlast(ctx context.Context) (longer context.Context, end context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(abortTimeout, cancel) })
	return longer, func() { stop(); cancel() }
}

// client connects with the credentials that there are now. What it does ends
// when end is called, or soon after ctx has ended.
func (s *S3) client(ctx context.Context) (c *minio.Client, end context.CancelFunc, err error) {
	requests, end := outlast(ctx)
	transport := &ending{s.transport, requests}
	providers := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	if s.aws || os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE")+os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")+os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") != "" {
		providers = append(providers, &credentials.IAM{Client: &http.Client{Timeout: 10 * time.Second}})
	}
	var errs []error
	for _, p := range providers {
		value, err := p.RetrieveWithCredContext(&credentials.CredContext{Client: http.DefaultClient, Context: ctx})
		if err == nil && value.AccessKeyID != "" && value.SecretAccessKey != "" {
			c, err := s.connect(credentials.New(p), transport)
			return c, end, err
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, explainProvider(p, err))
		}
	}
	end()
	return nil, nil, errors.Join(append([]error{
		fmt.Errorf("%s: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE", s),
	}, errs...)...)
}

// explainProvider says who was asked for credentials.
func explainProvider(p credentials.Provider, err error) error {
	switch p.(type) {
	case *credentials.EnvAWS:
		return fmt.Errorf("the environment: %w", err)
	case *credentials.FileAWSCredentials:
		return fmt.Errorf("AWS's files: %w", err)
	}
	return fmt.Errorf("the role of the machine, container or service account, asked of its metadata service: %w", err)
}

// Try implements Place: it puts an object, and removes it.
func (s *S3) Try(ctx context.Context) error {
	c, end, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	object := s.object(tryObject)
	_, err = c.PutObject(ctx, s.bucket, object, strings.NewReader("keelson\n"), 8, minio.PutObjectOptions{SendContentMd5: true})
	if minio.ToErrorResponse(err).StatusCode == http.StatusForbidden {
		// Who may remove nothing may not be allowed to replace anything either:
		// then one that is left says nothing about new objects.
		if _, statErr := c.StatObject(ctx, s.bucket, object, minio.StatObjectOptions{}); statErr == nil {
			return fmt.Errorf("%w: %w", ErrNotRemoved, s.explain("replace "+tryObject, err))
		}
	}
	if err != nil {
		return s.explain("upload", err)
	}
	if err := c.RemoveObject(ctx, s.bucket, object, minio.RemoveObjectOptions{}); err != nil {
		return fmt.Errorf("%w: %w", ErrNotRemoved, s.explain("remove", err))
	}
	return nil
}

// List implements Place.
func (s *S3) List(ctx context.Context, prefix string) ([]string, error) {
	c, end, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	start := s.start(prefix)
	var names []string
	for object := range c.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: start, Recursive: true}) {
		if object.Err != nil {
			return nil, s.explain("list the backups", object.Err)
		}
		// What is further down is not a backup.
		if name := object.Key[len(start)-len(prefix):]; !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	return names, ctx.Err()
}

// start is how the keys of objects begin whose names begin with prefix.
func (s *S3) start(prefix string) string {
	if s.prefix == "" {
		return prefix
	}
	return s.prefix + "/" + prefix
}

// Keep implements Place: what was uploaded is read again and compared.
func (s *S3) Keep(ctx context.Context, file, name string) error {
	c, end, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	longer, stop := outlast(ctx)
	defer stop()
	sent, err := s.upload(ctx, c, file, name)
	if err == nil {
		if err = s.compare(ctx, c, name, sent); err == nil {
			return nil
		}
	}
	// Whatever is there must not be taken for a backup; also when the server
	// stops, though not for long.
	undoing, cancel := context.WithTimeout(longer, undoTimeout)
	defer cancel()
	_ = c.RemoveIncompleteUpload(undoing, s.bucket, s.object(name))
	removeErr := c.RemoveObject(undoing, s.bucket, s.object(name), minio.RemoveObjectOptions{})
	if removeErr != nil && sent != nil { // else nothing, or all of it, is there
		err = errors.Join(err, s.explain("remove "+name+", which is not a backup", removeErr))
	}
	return err
}

// upload returns the checksum of what the server has taken.
func (s *S3) upload(ctx context.Context, c *minio.Client, file, name string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	_, err = c.PutObject(ctx, s.bucket, s.object(name), &hashing{f, sum}, info.Size(), minio.PutObjectOptions{
		ContentType: "application/octet-stream", SendContentMd5: true,
	})
	if err != nil {
		return nil, s.explain("upload", err)
	}
	return sum.Sum(nil), nil
}

// hashing reads and hashes a file: only in order, so that nothing is read
// twice.
type hashing struct {
	f   *os.File
	sum hash.Hash
}

func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.f.Read(p)
	h.sum.Write(p[:n])
	return n, err
}

// compare reads an object and compares its checksum.
func (s *S3) compare(ctx context.Context, c *minio.Client, name string, want []byte) error {
	object, err := c.GetObject(ctx, s.bucket, s.object(name), minio.GetObjectOptions{})
	if err != nil {
		return s.explain("read back", err)
	}
	sum := sha256.New()
	_, err = io.Copy(sum, object)
	if err = errors.Join(err, object.Close()); err != nil {
		return s.explain("read back", err)
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return fmt.Errorf("%s: %s: %w", s, name, ErrMismatch)
	}
	return nil
}

// Remove implements Place.
func (s *S3) Remove(ctx context.Context, name string) error {
	c, end, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	return s.explain("remove", c.RemoveObject(ctx, s.bucket, s.object(name), minio.RemoveObjectOptions{}))
}

// Tidy implements Place: it aborts uploads in parts that nobody ends. Those that
// have begun lately may be another process's.
func (s *S3) Tidy(ctx context.Context, prefix string) error {
	c, end, err := s.client(ctx)
	if err != nil {
		return err
	}
	defer end()
	listing, stop := context.WithCancel(ctx)
	defer stop() // ends the listing
	for upload := range c.ListIncompleteUploads(listing, s.bucket, s.start(prefix), true) {
		err := upload.Err
		if err == nil && time.Since(upload.Initiated) > abandonedAfter {
			err = minio.Core{Client: c}.AbortMultipartUpload(ctx, s.bucket, upload.Key, upload.UploadID)
		}
		if err != nil && minio.ToErrorResponse(err).Code != "NoSuchUpload" { // else it has ended by now
			return s.explain("abort unfinished uploads", err)
		}
	}
	return ctx.Err()
}

// explain says what was tried where, and what there is to do about it.
func (s *S3) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	advice := ""
	var response minio.ErrorResponse
	if errors.As(err, &response) {
		switch response.Code {
		case "NoSuchBucket":
			advice = ": make the bucket first"
		case "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidTokenId", "ExpiredToken":
			advice = ": look at the credentials and what they allow"
		case "RequestTimeTooSkewed":
			advice = ": set the clock of this machine, or the server's"
		}
	}
	return fmt.Errorf("%s: %s: %w%s", s, what, err, advice)
}
