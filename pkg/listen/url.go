package listen

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// URL is a place to listen on or to be reached at, in etcd's notation: http,
// https, unix or unixs (TLS over a unix socket).
type URL struct {
	Scheme  string
	Address string // host:port, or the path of a unix socket
}

// ParseURL parses one URL. As in etcd, unix://name is relative to the working
// directory and unix:///name is absolute.
func ParseURL(s string) (URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return URL{}, fmt.Errorf("%q is not a URL: write http://host:port, https://host:port or unix:///path", s)
	}
	switch u.Scheme {
	case "unix", "unixs":
		path := u.Host + u.Path
		if u.Opaque != "" {
			path, err = url.PathUnescape(u.Opaque)
		}
		if err != nil || path == "" || strings.HasSuffix(path, "/") {
			return URL{}, fmt.Errorf("%q names no socket: write unix:///path/to/keelson.sock", s)
		}
		if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return URL{}, fmt.Errorf("%q: write scheme and path only, as in unix:///path/to/keelson.sock", s)
		}
		return URL{Scheme: u.Scheme, Address: path}, nil
	case "http", "https":
	default:
		return URL{}, fmt.Errorf("%q: the scheme must be http, https, unix or unixs: write http://host:port or unix:///path", s)
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil {
		return URL{}, fmt.Errorf("%q has no port: write %s://host:2379", s, u.Scheme)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return URL{}, fmt.Errorf("%q: port %q is not a number from 0 to 65535", s, port)
	} else if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return URL{}, fmt.Errorf("%q: write scheme, host and port only", s)
	} else if host == "" && n == 0 {
		return URL{}, fmt.Errorf("%q has no host: write %s://127.0.0.1:2379", s, u.Scheme)
	}
	return URL{Scheme: u.Scheme, Address: u.Host}, nil
}

// ParseURLs parses a list, which must not name a place twice.
func ParseURLs(list []string) ([]URL, error) {
	urls := make([]URL, 0, len(list))
	seen := make(map[string]bool)
	for _, s := range list {
		u, err := ParseURL(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		place := u.Network() + u.Address
		if seen[place] && !strings.HasSuffix(u.Address, ":0") {
			return nil, fmt.Errorf("%s is there twice: name each address once", u)
		}
		seen[place] = true
		urls = append(urls, u)
	}
	return urls, nil
}

// pathEscaper escapes what would end the path of a URL.
var pathEscaper = strings.NewReplacer("%", "%25", "?", "%3F", "#", "%23")

// String returns the URL as clients write it.
func (u URL) String() string {
	if u.Network() == "unix" {
		return u.Scheme + "://" + pathEscaper.Replace(u.Address)
	}
	return u.Scheme + "://" + strings.ReplaceAll(u.Address, "%", "%25") // before an IPv6 zone
}

// Network is what package net calls it: tcp or unix.
func (u URL) Network() string {
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		return "unix"
	}
	return "tcp"
}

// Secure reports whether the URL means TLS.
func (u URL) Secure() bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// Host is the host without port; empty for unix sockets.
func (u URL) Host() string {
	if u.Network() == "unix" {
		return ""
	}
	host, _, err := net.SplitHostPort(u.Address)
	if err != nil {
		return ""
	}
	return host
}

// Loopback reports whether only this machine can reach the URL.
func (u URL) Loopback() bool {
	if u.Network() == "unix" || u.Host() == "localhost" {
		return true
	}
	ip := net.ParseIP(u.Host())
	return ip != nil && ip.IsLoopback()
}

// Wildcard reports whether the URL stands for all addresses of the machine,
// so that a client cannot connect to it as it is written.
func (u URL) Wildcard() bool {
	if u.Network() == "unix" {
		return false
	}
	ip := net.ParseIP(u.Host())
	return u.Host() == "" || ip != nil && ip.IsUnspecified()
}
