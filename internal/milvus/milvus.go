// Package milvus is a small client of Milvus' gRPC interface: just what a Dify
// dataset needs (one collection with an HNSW index per dataset), in the way that
// Dify's own client uses it. It serves real Milvus and Milvus Lite alike.
package milvus

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/milvus-io/milvus-proto/go-api/v2/commonpb"
	"github.com/milvus-io/milvus-proto/go-api/v2/milvuspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// DefaultTimeout bounds one call when the caller's context has no earlier
// deadline. Dify sets none; without one a lost server would hold callers for ever.
const DefaultTimeout = 10 * time.Second

// ErrNotFound says that the collection does not exist.
var ErrNotFound = errors.New("milvus: collection not found")

// Config says where Milvus is and who asks.
type Config struct {
	// Address is host:port of the gRPC interface, usually port 19530.
	Address string
	// User and Password go into the authorization metadata of every call; an
	// empty User sends none.
	User, Password string
	// Database is the Milvus database; empty means the default one.
	Database string
	// Timeout bounds each call; 0 means DefaultTimeout.
	Timeout time.Duration
}

// Error is a refusal by the server.
type Error struct {
	// Code is Milvus' own error code (2.3 and newer), or 0.
	Code int32
	// Reason is the server's text.
	Reason string
	legacy int32 // the older code, all that servers before 2.3 fill in
}

func (e *Error) Error() string {
	return fmt.Sprintf("milvus: %s (code %d/%d)", e.Reason, e.Code, e.legacy)
}

// Milvus' numbers for a missing collection, new and old.
const (
	codeCollectionNotFound = 100
	legacyNotFound         = 4
)

// Is makes errors.Is(err, ErrNotFound) answer for every form in which server
// versions say that a collection is missing.
func (e *Error) Is(target error) bool {
	return target == ErrNotFound &&
		(e.Code == codeCollectionNotFound || e.legacy == legacyNotFound)
}

// Client is one connection to Milvus. It is safe for concurrent use.
type Client struct {
	cfg  Config
	conn *grpc.ClientConn
	rpc  milvuspb.MilvusServiceClient

	mu sync.Mutex
	// written is the timestamp of this client's last write per collection. Reads
	// ask for at least that: Milvus' "Session" consistency, which is a property
	// of the client, as in pymilvus.
	written map[string]uint64
}

// New returns a client. The connection is made when it is first used, and made
// again after it was lost, so a Milvus that is down is an error of the calls.
func New(cfg Config) (*Client, error) {
	if cfg.Address == "" {
		return nil, errors.New("milvus: address is empty: set host and port")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		return nil, fmt.Errorf("milvus: client of %s: %w", cfg.Address, err)
	}
	return &Client{cfg: cfg, conn: conn, rpc: milvuspb.NewMilvusServiceClient(conn), written: map[string]uint64{}}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Connect greets the server as Milvus' own clients do and returns its version.
// It is optional: every other call works without it.
func (c *Client) Connect(ctx context.Context) (string, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	r, err := c.rpc.Connect(ctx, &milvuspb.ConnectRequest{ClientInfo: &commonpb.ClientInfo{
		SdkType: "Go", SdkVersion: "fournines", LocalTime: time.Now().UTC().Format(time.RFC3339),
		User: c.cfg.User,
	}})
	if err := check("connect", r.GetStatus(), err); err != nil {
		return "", err
	}
	return r.GetServerInfo().GetBuildTags(), nil
}

// call returns the context of one call: bounded, with the account's metadata.
func (c *Client) call(ctx context.Context) (context.Context, context.CancelFunc) {
	var kv []string
	if c.cfg.User != "" {
		token := base64.StdEncoding.EncodeToString([]byte(c.cfg.User + ":" + c.cfg.Password))
		kv = append(kv, "authorization", token)
	}
	if c.cfg.Database != "" {
		kv = append(kv, "dbname", c.cfg.Database)
	}
	if len(kv) > 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, kv...)
	}
	return context.WithTimeout(ctx, c.cfg.Timeout)
}

// check turns the two ways in which a call fails into one error.
func check(what string, st *commonpb.Status, err error) error {
	if err != nil {
		return fmt.Errorf("milvus: %s: %w", what, err)
	}
	legacy := int32(st.GetErrorCode()) //nolint:staticcheck // deprecated, but all that servers before 2.3 fill in
	if st.GetCode() != 0 || legacy != 0 {
		return fmt.Errorf("%s: %w", what, &Error{Code: st.GetCode(), Reason: st.GetReason(), legacy: legacy})
	}
	return nil
}

// Unavailable tells whether err means that Milvus could not be reached or did
// not answer in time, as opposed to an answer that refuses.
func Unavailable(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	default:
		return false
	}
}

func (c *Client) wrote(collection string, ts uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.written[collection] < ts {
		c.written[collection] = ts
	}
}

// eventually is the guarantee timestamp by which Milvus reads what it has.
const eventually = 1

func (c *Client) guarantee(collection string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ts := c.written[collection]; ts > 0 {
		return ts
	}
	return eventually
}
