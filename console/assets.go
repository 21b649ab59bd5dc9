package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

// assets are the files of the page, read and compressed once.
type assets map[string]*asset

type asset struct {
	kind, tag    string
	plain, small []byte
	// forever says that the name changes with the content.
	forever bool
}

// hashedFolder holds the files whose names carry a hash of their content.
const hashedFolder = "assets/"

func loadAssets(page fs.FS) (assets, error) {
	out := assets{}
	err := fs.WalkDir(page, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(page, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(text)
		a := &asset{
			kind: mime.TypeByExtension(path.Ext(name)), plain: text, tag: `"` + hex.EncodeToString(sum[:8]) + `"`,
			forever: strings.HasPrefix(name, hashedFolder),
		}
		if a.kind == "" {
			a.kind = "application/octet-stream"
		}
		var small bytes.Buffer
		zip, err := gzip.NewWriterLevel(&small, gzip.BestCompression)
		if err != nil {
			return err
		}
		_, err = zip.Write(text)
		if err := errors.Join(err, zip.Close()); err != nil {
			return err
		}
		if small.Len() < len(text) {
			a.small = small.Bytes()
		}
		out["/"+name] = a
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	if out["/index.html"] == nil {
		return nil, errors.New("read the page: it has no index.html")
	}
	out["/"] = out["/index.html"]
	return out, nil
}

func (a assets) serve(w http.ResponseWriter, r *http.Request) {
	file := a[r.URL.Path]
	if file == nil {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", file.kind)
	h.Set("ETag", file.tag)
	h.Set("Vary", "Accept-Encoding")
	h.Set("Cache-Control", "no-cache")
	if file.forever {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	if r.Header.Get("If-None-Match") == file.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	text := file.plain
	if file.small != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		text = file.small
	}
	_, _ = w.Write(text) // the client is gone when this fails
}
