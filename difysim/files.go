package difysim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
)

// uploadRow is a file in the shared folder and its row.
type uploadRow struct {
	key, name, extension, mime, sum, role, by string
	size                                      int64
}

// errTooLarge says that a file is over the limit.
var errTooLarge = errors.New("file is too large")

// store writes a file under a new name. It appears only when it is complete.
func (a *API) store(tenant, extension string, from io.Reader) (key string, size int64, sum string, err error) {
	key = storageKey(tenant, uuid.NewString()+extension)
	full := filepath.Join(a.cfg.Storage.Path, filepath.FromSlash(key))
	if err := os.MkdirAll(filepath.Dir(full), 0o750); err != nil {
		return "", 0, "", fmt.Errorf("storage folder: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(full), ".upload-*")
	if err != nil {
		return "", 0, "", fmt.Errorf("storage: %w", err)
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	hash := sha256.New()
	limit := a.cfg.Storage.UploadLimit
	size, err = io.Copy(io.MultiWriter(tmp, hash), io.LimitReader(from, limit+1))
	if err == nil && size > limit {
		err = errTooLarge
	}
	if err == nil {
		err = tmp.Chmod(0o640)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return "", 0, "", fmt.Errorf("store file: %w", err)
	}
	if err := os.Rename(tmp.Name(), full); err != nil {
		return "", 0, "", fmt.Errorf("store file: %w", err)
	}
	return key, size, hex.EncodeToString(hash.Sum(nil)), nil
}

func (q *request) insertUpload(ctx context.Context, u uploadRow) (id string, err error) {
	_, err = q.db.First(ctx, `INSERT INTO upload_files (tenant_id, storage_type, key, name, size, extension, mime_type, created_by_role, created_by, hash) VALUES ($1::uuid, 'local', $2, $3, $4, $5, $6, $7, $8::uuid, $9) RETURNING upload_files.id`,
		[]any{q.tenantID, u.key, u.name, u.size, u.extension, u.mime, u.role, u.by, u.sum}, &id)
	if err != nil {
		return "", err
	}
	return id, q.db.Commit(ctx)
}

// allowed are the extensions that Dify accepts.
func allowed(extension string) bool {
	switch extension {
	case "jpg", "jpeg", "png", "webp", "gif", "svg", "txt", "markdown", "md", "pdf", "html", "htm", "xlsx", "docx", "csv":
		return true
	}
	return false
}

func errNoFile() *apiError {
	return &apiError{Code: "no_file_uploaded", Message: "Please upload your file.", Status: http.StatusBadRequest}
}

// upload streams one file of a form to the shared folder.
func (a *API) upload(ctx context.Context, q *request) error {
	const formRoom = 1 << 20 // for the other parts and the boundaries
	q.r.Body = http.MaxBytesReader(q.w, q.r.Body, a.cfg.Storage.UploadLimit+formRoom)
	form, err := q.r.MultipartReader()
	if err != nil {
		return errNoFile()
	}
	var file *uploadRow
	user := ""
	discard := func() {
		if file != nil {
			_ = os.Remove(filepath.Join(a.cfg.Storage.Path, filepath.FromSlash(file.key)))
		}
	}
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			switch part.FormName() {
			case "user":
				var raw []byte
				raw, err = io.ReadAll(io.LimitReader(part, 4096))
				user = string(raw)
			case "file":
				if file != nil {
					discard()
					return &apiError{Code: "too_many_files", Message: "Only one file is allowed.", Status: http.StatusBadRequest}
				}
				file, err = a.storePart(q, part)
			}
		}
		if err != nil {
			discard()
			return uploadError(err)
		}
	}
	if file == nil {
		return errNoFile()
	}
	if err := q.endUser(ctx, user); err != nil {
		discard()
		return err
	}
	file.by = q.user.id
	id, err := q.insertUpload(ctx, *file)
	if err != nil {
		discard()
		return err
	}
	return writeJSON(q.w, http.StatusCreated, object{
		"id", id, "name", file.name, "size", file.size, "extension", file.extension, "mime_type", file.mime,
		"created_by", q.user.id, "created_at", time.Now().Unix(),
	})
}

func (a *API) storePart(q *request, part *multipart.Part) (*uploadRow, error) {
	name := part.FileName()
	if name == "" {
		return nil, errNoFile()
	}
	if len(name) > 200 {
		name = name[len(name)-200:]
	}
	name = strings.ToValidUTF8(strings.ReplaceAll(name, "\x00", ""), "")
	dotted := strings.ToLower(filepath.Ext(name))
	extension := strings.TrimPrefix(dotted, ".")
	if !allowed(extension) {
		return nil, &apiError{Code: "unsupported_file_type", Message: "File type not allowed.", Status: http.StatusUnsupportedMediaType}
	}
	kind, _, err := mime.ParseMediaType(part.Header.Get("Content-Type"))
	if err != nil || len(kind) > 200 {
		kind = "application/octet-stream"
	}
	key, size, sum, err := a.store(q.tenantID, dotted, part)
	if err != nil {
		return nil, err
	}
	return &uploadRow{key: key, name: name, size: size, extension: extension, mime: kind, sum: sum, role: "end_user"}, nil
}

func uploadError(err error) error {
	var known *apiError
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, errTooLarge), errors.As(err, &tooLong):
		return &apiError{Code: "file_too_large", Message: "File size exceeded.", Status: http.StatusRequestEntityTooLarge}
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, multipart.ErrMessageTooLarge):
		return invalidParam("the form is not complete")
	}
	return err
}
