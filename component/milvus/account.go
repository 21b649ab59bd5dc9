package milvus

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/milvus-io/milvus-proto/go-api/v2/milvuspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// factoryPassword is what every new Milvus has for root.
const factoryPassword = "Milvus"

// errDenied says that the server does not know this password.
var errDenied = errors.New("milvus refuses the password of root")

// AccountConfig describes the task that sets the password.
type AccountConfig struct {
	// Name of the task in the plan; empty means "milvus-account".
	Name string
	// Address is the server's host:port.
	Address string
	// PasswordFile has the password that root gets, 6 to 72 characters.
	PasswordFile string
	// After names the units that have to be ready before: the server.
	After []string
	// Timeout bounds the task; 0 means 60 s.
	Timeout time.Duration
}

// AccountTask returns the plan's line that replaces root's factory password. It
// finds its work done when the password in the file works.
func AccountTask(cfg AccountConfig) (process.Unit, error) {
	if cfg.Name == "" {
		cfg.Name = "milvus-account"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	var f prepare.Fields
	f.HostPort("Address", cfg.Address)
	f.Path("PasswordFile", cfg.PasswordFile)
	if err := f.Err("milvus account"); err != nil {
		return process.Unit{}, err
	}
	return process.Unit{
		Name: cfg.Name, Kind: "milvus-account", After: cfg.After,
		Task: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
			defer cancel()
			for {
				err := cfg.set(ctx)
				if err == nil {
					return nil
				}
				select {
				case <-ctx.Done():
					return fmt.Errorf("set the password of Milvus: %w", err)
				case <-time.After(250 * time.Millisecond):
				}
			}
		},
	}, nil
}

func (c *AccountConfig) set(ctx context.Context) error {
	password, err := prepare.Secret(c.PasswordFile)
	if err != nil {
		return err
	}
	if len(password) < 6 || len(password) > 72 {
		return fmt.Errorf("%s: Milvus takes passwords of 6 to 72 characters", c.PasswordFile)
	}
	if _, err := showLoaded(ctx, c.Address, password); err == nil || !errors.Is(err, errDenied) {
		return err
	}
	conn, client, err := dial(c.Address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	answer, err := client.UpdateCredential(as(ctx, factoryPassword), &milvuspb.UpdateCredentialRequest{
		Username: "root", OldPassword: encode(factoryPassword), NewPassword: encode(password),
	})
	if err != nil {
		if status.Code(err) == codes.Unauthenticated {
			return fmt.Errorf("%w: neither the one in %s nor the factory's works; restore the file the data was made with", errDenied, c.PasswordFile)
		}
		return fmt.Errorf("set password: %w", err)
	}
	if answer.GetCode() != 0 || answer.GetReason() != "" {
		return fmt.Errorf("set password: %s (code %d)", answer.GetReason(), answer.GetCode())
	}
	// The server's cache of passwords must have it before the first client comes.
	_, err = showLoaded(ctx, c.Address, password)
	return err
}

// showLoaded lists the collections that are meant to be in memory, and tells
// which of them is still loading, if any.
func showLoaded(ctx context.Context, address, password string) (loading string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*prepare.ProbeTimeout)
	defer cancel()
	conn, client, err := dial(address)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	answer, err := client.ShowCollections(as(ctx, password), &milvuspb.ShowCollectionsRequest{Type: milvuspb.ShowType_All})
	if err == nil && answer.GetStatus().GetCode() == 0 && len(answer.GetCollectionNames()) > 0 {
		answer, err = client.ShowCollections(as(ctx, password), &milvuspb.ShowCollectionsRequest{Type: milvuspb.ShowType_InMemory})
	}
	if err != nil {
		if status.Code(err) == codes.Unauthenticated {
			return "", errDenied
		}
		return "", fmt.Errorf("list collections: %w", err)
	}
	if s := answer.GetStatus(); s.GetCode() != 0 {
		return "", fmt.Errorf("list collections: %s (code %d)", s.GetReason(), s.GetCode())
	}
	//nolint:staticcheck // deprecated for a call that asks one collection at a time; servers of all versions fill it in
	for i, percent := range answer.GetInMemoryPercentages() {
		if percent < 100 && i < len(answer.GetCollectionNames()) {
			return fmt.Sprintf("collection %s is loaded to %d %%", answer.GetCollectionNames()[i], percent), nil
		}
	}
	return "", nil
}

func dial(address string) (*grpc.ClientConn, milvuspb.MilvusServiceClient, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return conn, milvuspb.NewMilvusServiceClient(conn), nil
}

func as(ctx context.Context, password string) context.Context {
	token := base64.StdEncoding.EncodeToString([]byte("root:" + password))
	return metadata.AppendToOutgoingContext(ctx, "authorization", token)
}
