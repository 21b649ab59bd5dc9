package postgres

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// agent starts Patroni and mends what could destroy commits or data directories:
// how releases up to 3.1 renew and release the leader key, and demotions that run
// beside each other.
//
//go:embed agent.py
var agent []byte

// pythonOf returns the command that runs Patroni's script, so that the agent
// finds the same modules: the first line of the script, as the kernel reads it,
// is an interpreter and at most one argument.
func pythonOf(script string) ([]string, error) {
	line, err := firstLine(script)
	if err != nil {
		return nil, fmt.Errorf("patroni: %w", err)
	}
	command, ok := strings.CutPrefix(line, "#!")
	interpreter, argument, _ := strings.Cut(strings.TrimSpace(command), " ")
	python := []string{interpreter}
	if argument = strings.TrimSpace(argument); argument != "" {
		python = append(python, argument)
	}
	program := interpreter
	if filepath.Base(interpreter) == "env" {
		program = argument
	}
	if !ok || !filepath.IsAbs(interpreter) || !strings.HasPrefix(filepath.Base(program), "python") {
		return nil, fmt.Errorf("patroni: %s begins with %q, want \"#!\" and the path of a Python", script, line)
	}
	return python, nil
}

func firstLine(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // the path comes from the component's own configuration
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 256) // more than the kernel reads of an interpreter's line
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	return string(line), nil
}
