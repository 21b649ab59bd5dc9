package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"fournines/internal/process"
)

// credentialsFile is the name of the file for the user, in the data directory.
const credentialsFile = "credentials.json"

// Credentials are what a user of a stack needs to reach its services. The file
// is read by other programs: fields are added, never renamed or removed.
type Credentials struct {
	Gateway      GatewayCredentials  `json:"gateway"`
	Postgres     PostgresCredentials `json:"postgres"`
	Redis        ServiceCredentials  `json:"redis"`
	Milvus       ServiceCredentials  `json:"milvus"`
	Prometheus   URLOnly             `json:"prometheus"`
	Alertmanager URLOnly             `json:"alertmanager"`
	Console      ConsoleCredentials  `json:"console"`
}

// GatewayCredentials open Dify's API. The keys belong to the simulator's demo
// application and knowledge base; they are empty in front of a real Dify, whose
// console makes its own.
type GatewayCredentials struct {
	URL         string `json:"url"`
	AppKey      string `json:"appKey,omitempty"`
	WorkflowKey string `json:"workflowKey,omitempty"`
	DatasetKey  string `json:"datasetKey,omitempty"`
}

// PostgresCredentials open Dify's database through pgproxy.
type PostgresCredentials struct {
	URL      string `json:"url"`
	Host     string `json:"host"`
	Port     int    `json:"port"`
	Database string `json:"database"`
	User     string `json:"user"`
	Password string `json:"password"`
}

// ServiceCredentials open a service that has an account and a password.
type ServiceCredentials struct {
	Host     string `json:"host"`
	Port     int    `json:"port"`
	User     string `json:"user"`
	Password string `json:"password"`
}

// ConsoleCredentials open the web page of the stack.
type ConsoleCredentials struct {
	URL string `json:"url"`
	// Token is asked for when other machines can reach the page; else it is empty.
	Token string `json:"token,omitempty"`
}

// URLOnly is a service without accounts.
type URLOnly struct {
	URL string `json:"url"`
}

func (c *Credentials) write(dir string) (string, error) {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode credentials: %w", err)
	}
	path := filepath.Join(dir, credentialsFile)
	return path, process.WriteFile(path, append(text, '\n'), 0o600, process.Owner{})
}

// ReadCredentials reads the credentials of the stack in the data directory dir.
func ReadCredentials(dir string) (*Credentials, error) {
	text, err := os.ReadFile(filepath.Join(dir, credentialsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no stack was ever started in %s: run `fournines up` first", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	var c Credentials
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	return &c, nil
}
